"""Calibration: is accuracy what confidence says? (arXiv:1706.04599)

Dimensions: N answers, L labels.
"""

import math
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

BINS = 15
SHARPEST, FLATTEST = 1e-3, 1e3  # the range of temperatures searched


@dataclass(frozen=True)
class Bin:
    """Answers whose confidence is in one interval."""

    low: float
    high: float
    count: int
    confidence: float | None
    """Mean confidence; None without answers."""
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy."""

    error: float
    """Expected calibration error: their mean absolute difference, 0 to 1 (equation 3)."""
    confidence: float
    accuracy: float
    count: int
    bins: tuple[Bin, ...]


def calibration(
    confidence: Float[Tensor, " N"], right: Bool[Tensor, " N"], bins: int = BINS
) -> Calibration:
    """The expected calibration error over bins of equal width, each open below and closed above.

    Raises:
        ValueError: no answers, shapes that differ, or a confidence outside [0, 1].
    """
    if confidence.shape != right.shape or confidence.ndim != 1 or not len(right) or bins < 1:
        raise ValueError(
            f"calibration takes one confidence per answer and at least one bin, not "
            f"{tuple(confidence.shape)}, {tuple(right.shape)} and {bins}"
        )
    confidence, right = confidence.double().cpu(), right.double().cpu()
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise ValueError("a confidence is not a probability in [0, 1]")
    place = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    intervals, error = [], 0.0
    for number in range(bins):
        inside = place == number
        count = int(inside.sum())
        mean = float(confidence[inside].mean()) if count else None
        share = float(right[inside].mean()) if count else None
        intervals.append(Bin(number / bins, (number + 1) / bins, count, mean, share))
        if mean is not None and share is not None:
            error += count / len(right) * abs(mean - share)
    return Calibration(
        error, float(confidence.mean()), float(right.mean()), len(right), tuple(intervals)
    )


def fit_temperature(logits: Float[Tensor, "N L"], truth: Int64[Tensor, " N"]) -> float:
    """The T that minimises the negative log likelihood of softmax(logits / T) (section 4.2).

    It is convex in 1 / T, so bisection finds the minimum. Without one (every answer is right) the
    lower limit is returned, 0.001.

    Raises:
        ValueError: the shapes of logits and truth do not match.
    """
    if logits.ndim != 2 or truth.shape != logits.shape[:1] or not len(truth):
        raise ValueError(
            f"logits must be (N, L) with truth (N,): {tuple(logits.shape)}, {tuple(truth.shape)}"
        )
    logits = logits.double()
    low, high = math.log(1 / FLATTEST), math.log(1 / SHARPEST)  # of 1 / T
    for _ in range(50):
        middle = (low + high) / 2
        if _slope(logits, truth, math.exp(middle)) > 0:
            high = middle
        else:
            low = middle
    return math.exp(-(low + high) / 2)


def negative_log_likelihood(logits: Float[Tensor, "N L"], truth: Int64[Tensor, " N"]) -> float:
    """Nats per answer of the softmax over labels; ln L is chance."""
    return float(F.cross_entropy(logits.double(), truth))


def _slope(logits: Tensor, truth: Tensor, sharpness: float) -> float:
    """Derivative of the negative log likelihood by 1 / T: expected minus true logit."""
    expected = ((sharpness * logits).softmax(1) * logits).sum(1)
    return float((expected - logits.gather(1, truth[:, None])[:, 0]).mean())
