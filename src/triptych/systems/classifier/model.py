"""A small residual network that reads labels off pictures (arXiv:1512.03385, arXiv:1603.05027).

It judges conditional samples: its answers say whether a picture shows what was asked for, and its
features are the space in which sets of pictures are compared. Several groups of labels (shape,
colour, size) are read by one network; a plain class label is a single group.

Dimensions: B pictures, C channels, H height, W width, D features, G groups of labels, K labels of
a group, I and O channels into and out of a block.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.loss import Loss
from triptych.system import ModelKind


@dataclass(frozen=True)
class ClassifierConfig:
    """Size of a classifier."""

    height: int
    width: int
    channels: int
    groups: tuple[int, ...]
    """How many labels each group has to choose from: (10,) for plain classes, ten of them."""
    widths: tuple[int, ...] = (24, 48, 96)
    """Channels of each stage; all but the first halve the picture. The last is the features' D."""

    def __post_init__(self) -> None:
        for name in ("height", "width", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.groups or min(self.groups) < 2:
            raise ValueError(f"groups must each have at least 2 labels, not {self.groups}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be positive numbers, at least one, not {self.widths}")


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; normalised before each, so the shortcut stays untouched.

    Batch normalisation: at equal time on two cores it read MNIST better than group normalisation.
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
        if self.shortcut is not None:  # averaged, not skipped over: every pixel counts
            x = h if self.stride == 1 else F.avg_pool2d(h, self.stride, ceil_mode=True)
            x = self.shortcut(x)
        residual: Tensor = self.conv2(F.relu(self.norm2(self.conv1(h))))
        return x + residual


class Classifier(nn.Module):
    """Pictures to logits, one set for each group of labels; made for sides of 8 to 64 pixels."""

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
        """What the heads decide from: the space of the distances between sets of pictures.

        Pictures are in [-1, 1] and of the configured size. Put the classifier into evaluation mode
        first: in training mode a feature depends on the whole batch.
        """
        expected = (self.config.channels, self.config.height, self.config.width)
        if tuple(image.shape[1:]) != expected:
            given = " x ".join(map(str, image.shape[1:]))
            wanted = " x ".join(map(str, expected))
            raise ValueError(f"this classifier reads pictures of {wanted} (C x H x W), not {given}")
        # Channels last runs a third faster on a CPU; the weights stay as files want them.
        x = self.stem(image).contiguous(memory_format=torch.channels_last)
        return F.relu(self.norm(self.blocks(x))).mean((2, 3))

    def logits(self, features: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B K"], ...]:
        """The heads alone, for features at hand."""
        return tuple(head(features) for head in self.heads)

    def forward(self, image: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B K"], ...]:
        """One tensor of logits for each group, in the order of the configuration."""
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

    `label` holds indices, (B,) for a single group. `shift` moves each picture by up to so many
    pixels each way, its edge repeated: worth it where the label does not depend on the place.
    Terms: `accuracy`, the share of right answers over all groups.
    """
    label = label[:, None] if label.ndim == 1 else label
    if label.shape[1] != len(model.config.groups):
        groups, given = len(model.config.groups), label.shape[1]
        raise ValueError(f"labels need a column for each of {groups} groups, not {given}")
    logits = model(shifted(image, shift) if shift else image)
    total, right = image.new_zeros((), dtype=torch.float32), image.new_zeros(())
    for answers, truth in zip(logits, label.T, strict=True):
        total = total + F.cross_entropy(
            answers.float(), truth, reduction="sum", label_smoothing=smoothing
        )
        right = right + (answers.argmax(1) == truth).sum()
    return Loss(total, len(image), {"accuracy": right / label.numel()})


def shifted(image: Float[Tensor, "B C H W"], pixels: int) -> Float[Tensor, "B C H W"]:
    """Each picture moved on its own by up to `pixels` either way, its edge repeated."""
    batch, channels, height, width = image.shape
    dy, dx = torch.randint(-pixels, pixels + 1, (2, batch, 1)).to(image.device)
    rows = (torch.arange(height, device=image.device) + dy).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width, device=image.device) + dx).clamp(0, width - 1)  # (B, W)
    image = image.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
    return image.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))


KINDS = {"classifier": ModelKind(ClassifierConfig, Classifier)}
