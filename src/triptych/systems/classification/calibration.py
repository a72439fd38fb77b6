"""Is a model right as often as it says it is? (arXiv:1706.04599)

Dimensions: N answers, L labels.
"""

import math
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

BINS = 15
SHARPEST, FLATTEST = 1e-3, 1e3  # temperatures between which the best one is looked for


@dataclass(frozen=True)
class Bin:
    """Answers of about one confidence."""

    low: float
    high: float
    count: int
    confidence: float | None
    """The mean of them; None where there is no answer."""
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy."""

    error: float
    """Expected calibration error: how far the two are apart on average, 0 to 1 (equation 3)."""
    confidence: float
    accuracy: float
    count: int
    bins: tuple[Bin, ...]


def calibration(
    confidence: Float[Tensor, " N"], right: Bool[Tensor, " N"], bins: int = BINS
) -> Calibration:
    """The expected calibration error over bins of equal width, each open below and closed above.

    Raises:
        ValueError: no answers, not one confidence for each, or one outside [0, 1].
    """
    if confidence.shape != right.shape or confidence.ndim != 1 or not len(right) or bins < 1:
        raise ValueError(
            f"expected one confidence for each of at least one answer, and a bin, not "
            f"{tuple(confidence.shape)}, {tuple(right.shape)} and {bins}"
        )
    confidence, right = confidence.double().cpu(), right.double().cpu()
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise ValueError("confidences are probabilities, 0 to 1; one is not")
    place = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    found, error = [], 0.0
    for number in range(bins):
        here = place == number
        count = int(here.sum())
        notes = float(confidence[here].mean()) if count else None
        was = float(right[here].mean()) if count else None
        found.append(Bin(number / bins, (number + 1) / bins, count, notes, was))
        if notes is not None and was is not None:
            error += count / len(right) * abs(notes - was)
    return Calibration(
        error, float(confidence.mean()), float(right.mean()), len(right), tuple(found)
    )


def fitted_temperature(logits: Float[Tensor, "N L"], truth: Int64[Tensor, " N"]) -> float:
    """What logits are divided by so that their softmax makes the truth most likely (section 4.2).

    The negative log likelihood is convex in 1 / T, so its one minimum is found by halving. It has
    none where every answer is right; then the sharpest allowed is returned, 0.001.

    Raises:
        ValueError: logits and truths do not fit together.
    """
    if logits.ndim != 2 or truth.shape != logits.shape[:1] or not len(truth):
        raise ValueError(
            f"expected logits (N, L) and N truths, not {tuple(logits.shape)}, {tuple(truth.shape)}"
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
    """Nats per answer of the softmax over labels; ln L for one that knows nothing."""
    return float(F.cross_entropy(logits.double(), truth))


def _slope(logits: Tensor, truth: Tensor, sharpness: float) -> float:
    """The derivative of the likelihood's negative logarithm by 1 / T: expected minus true logit."""
    expected = ((sharpness * logits).softmax(1) * logits).sum(1)
    return float((expected - logits.gather(1, truth[:, None])[:, 0]).mean())
