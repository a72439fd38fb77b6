"""Accuracy on unseen classes, and its cost on seen ones.

Each method gives three answers per picture: a seen class, an unseen class, and a novelty. A
threshold on the novelty chooses between the classes; moving it traces the trade-off.

Dimensions: N pictures, K classes, T thresholds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triptych.scores.accuracy import Accuracy, wilson_interval


class Answers(NamedTuple):
    """The answers of a method; classes are indices of all K."""

    among_seen: Int[Tensor, " N"]
    among_unseen: Int[Tensor, " N"]
    novelty: Float[Tensor, " N"]
    """Larger values for unseen classes, on any scale."""


class TradeOff(NamedTuple):
    """Accuracies at every threshold that changes an answer, from all unseen to all seen."""

    threshold: Float[Tensor, " T"]
    """Pictures of a novelty above it are answered as unseen; ascending from -inf."""
    seen: Float[Tensor, " T"]
    """Accuracy on pictures of seen classes, answered among all classes."""
    unseen: Float[Tensor, " T"]


@dataclass(frozen=True)
class UnseenReport:
    """Accuracies on seen and unseen classes, each alone and among all classes."""

    seen: Accuracy
    """Pictures of seen classes, answered among seen classes."""
    unseen: Accuracy
    """Pictures of unseen classes, answered among unseen classes: chance is 1 / unseen classes."""
    all_seen: Accuracy
    """Pictures of seen classes, answered among all, at `threshold`."""
    all_unseen: Accuracy
    overall: Accuracy
    """All pictures, answered among all classes, at `threshold`."""
    harmonic: float
    """Harmonic mean of `all_seen` and `all_unseen` (arXiv:1707.00600)."""
    detection: float
    """Area under the ROC curve of novelty, for unseen against seen; chance is one half."""
    area: float
    """Area under the trade-off (Chao 2016, arXiv:1605.04253)."""
    area_chance: float
    """The same for random novelty: half the product of `seen` and `unseen`."""
    threshold: float


def answer_by_scores(scores: Float[Tensor, "N K"], seen: Sequence[int]) -> Answers:
    """Answers of a method that has only scores, such as DeViSE or CLIP.

    Novelty is the best unseen score minus the best seen one, so a threshold t adds t to the scores
    of seen classes: calibrated stacking (Chao 2016); 0 is the argmax over all classes.
    """
    is_seen = _mask(seen, scores.shape[1], scores.device)
    of_seen, among_seen = scores.masked_fill(~is_seen, -torch.inf).max(1)
    of_unseen, among_unseen = scores.masked_fill(is_seen, -torch.inf).max(1)
    return Answers(among_seen, among_unseen, of_unseen - of_seen)


def compute_trade_off(
    answers: Answers, truth: Int[Tensor, " N"], seen: Sequence[int], classes: int
) -> TradeOff:
    """Seen and unseen accuracy at every threshold that changes an answer."""
    is_seen = _check(answers, truth, seen, classes)[truth]
    threshold, place = answers.novelty.double().unique(return_inverse=True)  # ascending
    # At threshold i, pictures up to novelty i are answered as seen, the others as unseen.
    right_seen = (answers.among_seen == truth) & is_seen
    right_unseen = (answers.among_unseen == truth) & ~is_seen
    gained = torch.zeros(len(threshold), dtype=torch.float64).index_add_(
        0, place.cpu(), right_seen.double().cpu()
    )
    lost = torch.zeros(len(threshold), dtype=torch.float64).index_add_(
        0, place.cpu(), right_unseen.double().cpu()
    )
    zero = torch.zeros(1, dtype=torch.float64)
    correct_seen = torch.cat([zero, gained.cumsum(0)])
    correct_unseen = lost.sum() - torch.cat([zero, lost.cumsum(0)])
    return TradeOff(
        torch.cat([zero - torch.inf, threshold.cpu()]),
        correct_seen / is_seen.sum().cpu(),
        correct_unseen / (~is_seen).sum().cpu(),
    )


def area_under(curve: TradeOff) -> float:
    """Area under unseen over seen accuracy, by the trapezoidal rule."""
    return float(torch.trapezoid(curve.unseen, curve.seen))


def novelty_auc(novelty: Float[Tensor, " N"], is_seen: Bool[Tensor, " N"]) -> float:
    """Area under the ROC curve of novelty, ties counting half."""
    values, place = novelty.double().unique(return_inverse=True)
    seen = place[is_seen].bincount(minlength=len(values)).double()
    unseen = place[~is_seen].bincount(minlength=len(values)).double()
    below = seen.cumsum(0) - seen / 2
    return float((unseen * below).sum() / (seen.sum() * unseen.sum()))


def choose_threshold(novelty: Float[Tensor, " M"], share: float) -> float:
    """The threshold at which this share of pictures is answered as seen.

    Use held-out pictures of seen classes; choosing it needs none of unseen ones.
    """
    if not 0 < share <= 1 or not len(novelty):
        raise ValueError(
            f"needs a share in (0, 1] of at least one picture, not {share} of {len(novelty)}"
        )
    ordered = novelty.sort().values
    return float(ordered[math.ceil(share * len(ordered) - 1e-9) - 1])  # 0.7 * 10 is more than 7


def evaluate_answers(
    answers: Answers,
    truth: Int[Tensor, " N"],
    seen: Sequence[int],
    classes: int,
    threshold: float,
) -> UnseenReport:
    """The report of one method at one threshold.

    Raises:
        ValueError: there are no pictures of seen or none of unseen classes, or an answer is of the
            wrong kind.
    """
    is_seen = _check(answers, truth, seen, classes)[truth]
    seen_classes = len(set(seen))
    final = torch.where(answers.novelty > threshold, answers.among_unseen, answers.among_seen)
    curve = compute_trade_off(answers, truth, seen, classes)
    apart_seen = _share(answers.among_seen == truth, is_seen, seen_classes)
    apart_unseen = _share(answers.among_unseen == truth, ~is_seen, classes - seen_classes)
    all_seen = _share(final == truth, is_seen, classes)
    all_unseen = _share(final == truth, ~is_seen, classes)
    both = all_seen.value + all_unseen.value
    return UnseenReport(
        seen=apart_seen,
        unseen=apart_unseen,
        all_seen=all_seen,
        all_unseen=all_unseen,
        overall=_share(final == truth, torch.ones_like(is_seen), classes),
        harmonic=2 * all_seen.value * all_unseen.value / both if both else 0.0,
        detection=novelty_auc(answers.novelty, is_seen),
        area=area_under(curve),
        area_chance=apart_seen.value * apart_unseen.value / 2,
        threshold=threshold,
    )


def _share(right: Bool[Tensor, " N"], of: Bool[Tensor, " N"], choices: int) -> Accuracy:
    hits, count = int((right & of).sum()), int(of.sum())
    return Accuracy(hits / count, *wilson_interval(hits, count), count, 1 / choices)


def _mask(seen: Sequence[int], classes: int, device: torch.device) -> Bool[Tensor, " K"]:
    seen_classes = set(seen)
    if not seen_classes or not seen_classes < set(range(classes)):
        raise ValueError(
            f"seen must be some, not all, of the classes 0 to {classes - 1}, not {seen}"
        )
    mask = torch.zeros(classes, dtype=torch.bool, device=device)
    mask[list(seen_classes)] = True
    return mask


def _check(
    answers: Answers, truth: Int[Tensor, " N"], seen: Sequence[int], classes: int
) -> Bool[Tensor, " K"]:
    mask = _mask(seen, classes, truth.device)
    if any(len(column) != len(truth) for column in answers):
        raise ValueError(f"needs one answer of each kind for each of {len(truth)} pictures")
    if not mask[answers.among_seen].all() or mask[answers.among_unseen].any():
        raise ValueError("an answer among seen classes is unseen, or the other way round")
    if not answers.novelty.isfinite().all():
        raise ValueError("novelty must be finite")
    of_seen = mask[truth]
    if of_seen.all() or not of_seen.any():
        raise ValueError("there must be pictures of seen and of unseen classes")
    return mask
