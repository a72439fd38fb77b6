"""Leak probe: a small network tries to read the class from latent codes.

A conditional model gets the class as its condition, so its latent code need not carry it; what a
network can still read from the code has leaked.

Dimensions: N and M codes, Z numbers of a code, K classes.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.scores.accuracy import Accuracy, accuracy


def leak_probe(
    train_codes: Float[Tensor, "N Z"],
    train_labels: Int[Tensor, " N"],
    test_codes: Float[Tensor, "M Z"],
    test_labels: Int[Tensor, " M"],
    *,
    seed: int = 0,
    steps: int = 2000,
    hidden: int = 256,
    batch: int = 512,
    learning_rate: float = 3e-3,
) -> Accuracy:
    """Test accuracy of a two-layer network trained to read the class from codes.

    Codes are standardised with mean and deviation of the training codes. Accuracy at chance means
    no leak that such a network can use. Deterministic on one machine and thread count; the global
    random state is restored.

    Raises:
        ValueError: codes and labels differ in number.
    """
    if len(train_codes) != len(train_labels) or len(test_codes) != len(test_labels):
        raise ValueError("there must be as many labels as codes, in training and in test")
    mean, std = train_codes.mean(0), train_codes.std(0, correction=0)
    scale = torch.where(std > 1e-6 * std.max(), std, torch.inf)  # constant numbers become 0
    x, x_test = (train_codes - mean) / scale, (test_codes - mean) / scale
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = nn.Sequential(
            nn.Linear(x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, classes)
        ).to(x.device)
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        probe.parameters(), lr=learning_rate, weight_decay=1e-3, fused=True
    )
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        rows = torch.randint(len(x), (batch,), generator=order).to(x.device)
        loss = F.cross_entropy(probe(x[rows]), train_labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        predicted = torch.cat([probe(part).argmax(1) for part in x_test.split(8192)])
    return accuracy(predicted, test_labels)
