"""A small residual network that classifies pictures (arXiv:1512.03385, arXiv:1603.05027).

The judge of conditional samples: its predictions say whether a picture shows the requested class,
and sets of pictures are compared in its features. One network may predict several groups of labels
(shape, colour, size); a plain class label is one group.

Dimensions: B pictures, C channels, H height, W width, D features, G groups of labels, K labels of
a group, I and O channels into and out of a block.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.fields import bounded
from triptych.nn.checks import require_at_least, require_widths
from triptych.nn.loss import Loss
from triptych.system import ModelKind


@dataclass(frozen=True)
@bounded
class ClassifierConfig:
    """Configuration of a classifier."""

    height: int
    width: int
    channels: int
    groups: tuple[int, ...]
    """Number of labels in each group: (10,) for ten plain classes."""
    widths: tuple[int, ...] = (24, 48, 96)
    """Channels of each stage; all but the first halve the side. The last is D."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "height", "width", "channels")
        if not self.groups or min(self.groups) < 2:
            raise ValueError(f"groups must each have at least 2 labels, not {self.groups}")
        require_widths(self, "widths")


class ResidualBlock(nn.Module):
    """Two convolutions, each after a norm and ReLU, and a shortcut around them.

    Batch normalisation: in equal time on two cores it was more accurate on MNIST than group
    normalisation.
    """

    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        changed = inner != outer or stride > 1
        self.shortcut = nn.Conv2d(inner, outer, 1, bias=False) if changed else None
        self.stride = stride

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        h = F.relu(self.norm1(x))
        if self.shortcut is not None:  # averaged, so that no pixel is skipped
            x = h if self.stride == 1 else F.avg_pool2d(h, self.stride, ceil_mode=True)
            x = self.shortcut(x)
        residual: Tensor = self.conv2(F.relu(self.norm2(self.conv1(h))))
        return x + residual


class Classifier(nn.Module):
    """Pictures to logits of each group of labels; for sides of 8 to 64 pixels."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        first, last = config.widths[0], config.widths[-1]
        if min(config.height, config.width) < 16:
            self.stem = nn.Conv2d(config.channels, first, 3, padding=1)
        else:
            self.stem = nn.Conv2d(config.channels, first, 5, stride=2, padding=2)
        stages = [ResidualBlock(inner, outer, 2) for inner, outer in pairwise(config.widths)]
        self.blocks = nn.Sequential(ResidualBlock(first, first, 1), *stages)
        self.norm = nn.BatchNorm2d(last)
        self.heads = nn.ModuleList([nn.Linear(last, labels) for labels in config.groups])

    def features(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """Pooled features before the heads, of pictures in [-1, 1].

        Put the classifier into evaluation mode first, or features depend on the batch.

        Raises:
            ValueError: the pictures are not of the configured size.
        """
        expected = (self.config.channels, self.config.height, self.config.width)
        if tuple(image.shape[1:]) != expected:
            size, actual = (" x ".join(map(str, s)) for s in (expected, image.shape[1:]))
            raise ValueError(f"this classifier reads pictures of {size} (C x H x W), not {actual}")
        # channels last runs a third faster on a CPU
        x = self.stem(image).contiguous(memory_format=torch.channels_last)
        return F.relu(self.norm(self.blocks(x))).mean((2, 3))

    def logits(self, features: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B K"], ...]:
        """The heads alone, on features."""
        return tuple(head(features) for head in self.heads)

    def forward(self, image: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B K"], ...]:
        """One tensor of logits per group, in the order of the configuration."""
        return self.logits(self.features(image))


def objective(
    model: Classifier,
    image: Float[Tensor, "B C H W"],
    label: Int[Tensor, " B"] | Int[Tensor, "B G"],
    *,
    smoothing: float = 0.05,
    shift: int = 0,
) -> Loss:
    """Cross-entropy with smoothed labels (arXiv:1512.00567), summed over pictures and groups.

    `label` holds indices, (B,) for a single group. `shift` augments: each picture moves by up to
    `shift` pixels each way. Term: `accuracy`, over all groups.

    Raises:
        ValueError: labels of another number of groups.
    """
    label = label[:, None] if label.ndim == 1 else label
    if label.shape[1] != len(model.config.groups):
        groups, columns = len(model.config.groups), label.shape[1]
        raise ValueError(f"labels need a column for each of {groups} groups, not {columns}")
    logits = model(shift_randomly(image, shift) if shift else image)
    total, correct = image.new_zeros((), dtype=torch.float32), image.new_zeros(())
    for answers, truth in zip(logits, label.T, strict=True):
        total = total + F.cross_entropy(
            answers.float(), truth, reduction="sum", label_smoothing=smoothing
        )
        correct = correct + (answers.argmax(1) == truth).sum()
    return Loss(total, len(image), {"accuracy": correct / label.numel()})


def shift_randomly(image: Float[Tensor, "B C H W"], pixels: int) -> Float[Tensor, "B C H W"]:
    """Each picture moved by up to `pixels` in both directions, its edge repeated."""
    batch, channels, height, width = image.shape
    dy, dx = torch.randint(-pixels, pixels + 1, (2, batch, 1)).to(image.device)
    rows = (torch.arange(height, device=image.device) + dy).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width, device=image.device) + dx).clamp(0, width - 1)  # (B, W)
    image = image.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
    return image.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))


KINDS = {"classifier": ModelKind(ClassifierConfig, Classifier)}
