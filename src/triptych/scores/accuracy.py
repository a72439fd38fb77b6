"""Accuracies, each with its confidence interval and its chance level.

Dimensions: N pictures.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

NORMAL_95 = 1.959964  # half width of the central 95 % of a standard normal, in standard deviations


@dataclass(frozen=True)
class Accuracy:
    """A share of correct answers in [0, 1]."""

    value: float
    low: float
    high: float
    """The 95 % interval."""
    count: int
    """The number of answers."""
    chance: float
    """The accuracy of the best constant answer."""


@dataclass(frozen=True)
class ConditionalAccuracy:
    """How often an independent classifier sees the requested class."""

    overall: Accuracy
    per_class: tuple[Accuracy, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Row: the requested class. Column: the predicted class."""


@dataclass(frozen=True)
class ClassificationScore:
    """CAS (arXiv:1905.10887): how well does a classifier trained on samples read real pictures?"""

    samples: Accuracy
    """On real test pictures, after training on samples with their requested classes."""
    real: Accuracy
    """The same after training on as many real pictures: the upper bound."""
    trained_on: int


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, valid near 0 and 1 and for few trials (Wilson 1927)."""
    if not 0 <= hits <= count or count < 1:
        raise ValueError(f"an interval needs 0 <= hits <= count and count >= 1: {hits} of {count}")
    share, z2 = hits / count, NORMAL_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    half = NORMAL_95 * spread
    return max(0.0, middle - half), min(1.0, middle + half)


def accuracy(seen: Int[Tensor, " N"], truth: Int[Tensor, " N"]) -> Accuracy:
    """The share of correct answers; chance is the share of the most frequent label."""
    if seen.shape != truth.shape or not len(truth):
        raise ValueError(
            f"one prediction per label is needed, and at least one: {seen.shape}, {truth.shape}"
        )
    hits, count = int((seen == truth).sum()), len(truth)
    chance = int(truth.bincount().max()) / count
    return Accuracy(hits / count, *wilson_interval(hits, count), count, chance)


def conditional_accuracy(
    seen: Int[Tensor, " N"], requested: Int[Tensor, " N"], classes: int
) -> ConditionalAccuracy:
    """Accuracy overall and for each class, with the confusion matrix.

    Raises:
        ValueError: a class was never requested, or a class is outside 0 to classes - 1.
    """
    overall = accuracy(seen, requested)
    pairs = (requested * classes + seen).cpu()
    least, most = torch.cat([seen, requested]).aminmax()
    if least < 0 or most >= classes:
        raise ValueError(f"classes must be 0 to {classes - 1}")
    confusion = torch.bincount(pairs, minlength=classes**2).view(classes, classes).tolist()
    per_class = []
    for label, row in enumerate(confusion):
        if not sum(row):
            raise ValueError(f"class {label} was never requested: draw pictures of every class")
        interval = wilson_interval(row[label], sum(row))
        share = row[label] / sum(row)
        # one chance level for all: how often a generator that ignores its condition is right
        per_class.append(Accuracy(share, *interval, sum(row), overall.chance))
    return ConditionalAccuracy(overall, tuple(per_class), tuple(tuple(row) for row in confusion))
