"""Zero-shot classification of labelled pictures: accuracy, confusion matrix, calibration.

Dimensions: N pictures, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from triptych.runtime import generator, key
from triptych.scores.accuracy import Accuracy, accuracy, wilson_interval
from triptych.systems.classification.calibration import (
    Calibration,
    calibration,
    fit_temperature,
    negative_log_likelihood,
)


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy on the pictures of one class."""

    name: str
    accuracy: Accuracy | None
    """None for a class without pictures."""
    taken_for: str
    """The most frequent wrong label; empty if there is none."""


@dataclass(frozen=True)
class HeldOut:
    """Calibration on one half of the pictures, with a temperature fitted on the other half."""

    temperature: float
    """Divides the logits, after the learned scale; above 1: the model is overconfident."""
    before: Calibration
    after: Calibration
    likelihood_before: float
    """Negative log likelihood, nats a picture, of the softmax over labels."""
    likelihood_after: float
    likelihood_chance: float
    """ln L: every label equally likely."""


@dataclass(frozen=True)
class ZeroShot:
    """Scores of a classifier that knows only the names of its labels."""

    top1: Accuracy
    top5: Accuracy | None
    """None for five labels or fewer."""
    mean_class: float
    """The mean of the classes' accuracies."""
    classes: tuple[ClassAccuracy, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Counts; row: true class, column: predicted label."""
    reads: str
    calibration: Calibration
    """Of the best label's probability by the model's own softmax or sigmoid."""
    held_out: HeldOut | None
    """Of the softmax over labels; None for one picture."""


def zero_shot(
    logits: Float[Tensor, "N L"],
    truth: Int64[Tensor, " N"],
    labels: Sequence[str],
    reads: str,
    seed: int = 0,
) -> ZeroShot:
    """All scores of a classifier. Among equal logits the first label is the answer.

    Raises:
        ValueError: shapes do not match, a truth is not a label, or a logit is not finite.
    """
    if logits.ndim != 2 or logits.shape[1] != len(labels) or truth.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (N, L) with truth (N,) and L labels, not {tuple(logits.shape)} with "
            f"{tuple(truth.shape)} and {len(labels)}"
        )
    if not len(truth) or not bool(logits.isfinite().all()):
        raise ValueError("there are no pictures, or a logit is not finite")
    if int(truth.min()) < 0 or int(truth.max()) >= len(labels):
        raise ValueError(f"a truth must be the number of a label, 0 to {len(labels) - 1}")
    predicted = logits.argmax(1)
    pairs = (truth * len(labels) + predicted).bincount(minlength=len(labels) ** 2)
    confusion = pairs.view(len(labels), len(labels))
    top1 = accuracy(predicted, truth)
    classes = tuple(
        _class_accuracy(row, number, labels, top1.chance) for number, row in enumerate(confusion)
    )
    shares = [row.accuracy.value for row in classes if row.accuracy]
    probabilities = logits.softmax(1) if reads == "softmax" else logits.sigmoid()
    return ZeroShot(
        top1=top1,
        top5=top_accuracy(logits, truth, 5) if len(labels) > 5 else None,
        mean_class=sum(shares) / len(shares),
        classes=classes,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        reads=reads,
        calibration=calibration(probabilities.amax(1), predicted == truth),
        held_out=_held_out(logits, truth, seed) if len(truth) > 1 else None,
    )


def top_accuracy(logits: Float[Tensor, "N L"], truth: Int64[Tensor, " N"], k: int) -> Accuracy:
    """How often the truth is among the k best labels.

    Chance is always answering the k most frequent classes.
    """
    hits = int((logits.topk(k, dim=1).indices == truth[:, None]).any(1).sum())
    chance = int(truth.bincount().topk(min(k, int(truth.max()) + 1)).values.sum()) / len(truth)
    return Accuracy(
        hits / len(truth), *wilson_interval(hits, len(truth)), len(truth), min(1.0, chance)
    )


def _class_accuracy(
    row: Tensor, number: int, labels: Sequence[str], chance: float
) -> ClassAccuracy:
    count, hits = int(row.sum()), int(row[number])
    if not count:
        return ClassAccuracy(labels[number], None, "")
    found = Accuracy(hits / count, *wilson_interval(hits, count), count, chance)
    wrong = row.clone()
    wrong[number] = 0
    taken_for = labels[int(wrong.argmax())] if int(wrong.sum()) else ""
    return ClassAccuracy(labels[number], found, taken_for)


def _held_out(logits: Tensor, truth: Tensor, seed: int) -> HeldOut:
    """A temperature from one random half, judged on the other."""
    order = torch.randperm(len(truth), generator=generator(key(seed, "calibration")))
    fitting, judging = order[: len(order) // 2], order[len(order) // 2 :]
    temperature = fit_temperature(logits[fitting], truth[fitting])
    half, answers = logits[judging].double(), truth[judging]
    right = half.argmax(1) == answers
    return HeldOut(
        temperature,
        calibration(half.softmax(1).amax(1), right),
        calibration((half / temperature).softmax(1).amax(1), right),
        negative_log_likelihood(half, answers),
        negative_log_likelihood(half / temperature, answers),
        float(torch.tensor(float(half.shape[1])).log()),
    )
