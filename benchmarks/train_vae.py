"""Pictures a second of `fit` on a convolutional VAE of 1.7 M parameters against a bare step.

The bare step is what one writes without a library: AdamW, pictures already floats in memory, and
once the plain network below (the condition at one layer), once ours (the condition at every layer).
`fit` reads bytes in keyed order and does all that the loop does: seeding, exact accumulation, the
norm and the check that it is finite, clipping, journal. Interleaved pairs.

    TRIPTYCH_DATA=FOLDER python benchmarks/train_vae.py [float32|bfloat16 ...]
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import measure
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.data.order.batches import take
from triptych.data.sources import open_source
from triptych.requests import TrainCvae, Training
from triptych.systems.cvae.model import Cvae, CvaeConfig, objective
from triptych.train.loop import fit
from triptych.training import build

BATCH, LATENT, STEPS, PAIRS = 128, 20, 10, 20


class Plain(nn.Module):
    """The same layers as `TrainCvae(widths=(32, 64, 256), latent=20)`, the label appended."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.SiLU(),
            nn.Flatten(), nn.Linear(64 * 49, 256), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(256 + 10, 2 * LATENT)
        self.decoder = nn.Sequential(
            nn.Linear(LATENT + 10, 256), nn.SiLU(), nn.Linear(256, 64 * 49), nn.SiLU(),
            nn.Unflatten(1, (64, 7, 7)), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(32, 1, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.head(torch.cat([self.encoder(x), c], 1)).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decoder(torch.cat([z, c], 1)), mean, log_variance


def bare(data: str, precision: str, network: str) -> Callable[[], float]:
    source = open_source(data)
    batch = take(source, range(10_000))
    pictures, labels = (batch["image"] + 1) / 2, F.one_hot(batch["label"], 10).float()
    ours = Cvae(CvaeConfig(28, 28, 1, "label", 10, LATENT, widths=(32, 64, 256)))
    model = Plain() if network == "plain" else ours
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def same_network(rows: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, precision == "bfloat16"):
            return objective(ours, batch["image"][rows], batch["label"][rows]).total / BATCH

    def plain_network(rows: Tensor) -> Tensor:
        x, c = pictures[rows], labels[rows]
        with torch.autocast("cpu", torch.bfloat16, precision == "bfloat16"):
            output, mean, log_variance = model(x, c)
        output, mean, log_variance = output.float(), mean.float(), log_variance.float()
        loss = F.binary_cross_entropy_with_logits(output, x, reduction="sum") / BATCH
        return loss - 0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum() / BATCH

    def step() -> None:
        rows = torch.randint(len(pictures), (BATCH,))
        loss = plain_network(rows) if network == "plain" else same_network(rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def seconds() -> float:
        began = time.perf_counter()
        for _ in range(STEPS):
            step()
        return time.perf_counter() - began

    step()
    return seconds


def ours(data: str, precision: str, run: Path) -> Callable[[], float]:
    training = Training(
        data=data, steps=10**6, batch_size=BATCH, precision=precision, save_every=10**6,
        sample_every=0, device="cpu",
    )  # fmt: skip
    request = TrainCvae(training, latent=LATENT, widths=(32, 64, 256))
    steps = fit(build(request), training, run)

    def seconds() -> float:
        began = time.perf_counter()
        for _ in range(STEPS):
            next(steps)
        return time.perf_counter() - began

    next(steps)
    return seconds


def main(precisions: list[str]) -> None:
    torch.set_num_threads(2)
    data = str(Path(os.environ["TRIPTYCH_DATA"]) / "mnist")
    for precision, network in product(precisions, ("plain", "ours")):
        with tempfile.TemporaryDirectory() as folder:
            a, b = measure.pairs(
                ours(data, precision, Path(folder)), bare(data, precision, network), PAIRS
            )
        ratios = [theirs / mine for mine, theirs in zip(a, b, strict=True)]
        measure.emit(
            benchmark="train_vae",
            precision=precision,
            bare_network=network,
            batch=BATCH,
            pairs=PAIRS,
            fit_pictures_per_second=STEPS * BATCH / statistics.median(a),
            bare_pictures_per_second=STEPS * BATCH / statistics.median(b),
            ratio=statistics.median(ratios),
            interval=measure.interval(ratios),
            **measure.machine(),
        )


if __name__ == "__main__":
    if "TRIPTYCH_DATA" not in os.environ:
        sys.exit("TRIPTYCH_DATA must name the folder with the data sets (mnist/)")
    main(sys.argv[1:] or ["float32", "bfloat16"])
