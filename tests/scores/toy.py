"""A source of toy pictures, and generators whose faults are known."""

import numpy as np
import torch
from torch import Tensor

from triptych.data.source import SourceInfo
from triptych.systems.classifier.model import Classifier, ClassifierConfig, objective

CLASSES = ("left", "right", "both")


def draw(labels, seed):
    """8 x 8 pictures in [-1, 1] of a bright bar, left, right, or both, of random height and shade.

    Picture i is a function of seed + i and its class.
    """
    pictures = torch.full((len(labels), 1, 8, 8), -0.8)
    for i, label in enumerate(labels.tolist()):
        generator = torch.Generator().manual_seed(seed + i)
        top = int(torch.randint(0, 3, (), generator=generator))
        shade = 0.2 + 0.8 * torch.rand((), generator=generator)
        if label in (0, 2):
            pictures[i, 0, top : top + 5, 1:3] = shade
        if label in (1, 2):
            pictures[i, 0, top : top + 5, 5:7] = shade
        pictures[i] += 0.1 * torch.randn(1, 8, 8, generator=generator)
    return pictures.clamp(-1, 1)


class Bars:
    """A split of toy pictures in memory, sorted by class as a folder would be."""

    def __init__(self, split: str, length: int | None, seed: int):
        self.info = SourceInfo("bars", split, length, (8, 8, 1), CLASSES)
        self.seed = seed
        self.largest = 0  # index read so far

    def read(self, indices):
        self.largest = max([self.largest, *indices])
        length = self.info.length
        count = length or 3
        labels = [i * 3 // count if length else i % 3 for i in indices]
        images = [
            draw(torch.tensor([label]), self.seed + i)
            for i, label in zip(indices, labels, strict=True)
        ]
        pixels = ((torch.cat(images) + 1) * 127.5).round().to(torch.uint8)
        return {
            "image": pixels.permute(0, 2, 3, 1).numpy(),
            "label": np.array(labels, dtype=np.int64),
        }


def trained_judge(images: Tensor, labels: Tensor, steps: int = 40) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = Classifier(ClassifierConfig(8, 8, 1, groups=(3,), widths=(8, 16)))
        optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-2)
        for _ in range(steps):
            rows = torch.randint(len(images), (32,))
            loss = objective(judge, images[rows], labels[rows])
            optimizer.zero_grad()
            (loss.total / loss.count).backward()
            optimizer.step()
    return judge.eval()
