"""Accuracy on classes never seen in a picture, and what it costs on those that were.

Every method, whatever it does inside, is judged by three things a picture: its answer among the
seen classes, its answer among the unseen ones, and how novel it takes the picture to be. A
threshold on novelty chooses between the two answers; moving it walks along the trade-off.

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
    """What a method says of pictures. Classes are indices among all K."""

    among_seen: Int[Tensor, " N"]
    among_unseen: Int[Tensor, " N"]
    novelty: Float[Tensor, " N"]
    """The larger, the likelier of an unseen class; any scale."""


class TradeOff(NamedTuple):
    """Accuracies at every threshold that changes an answer, from all-unseen to all-seen."""

    threshold: Float[Tensor, " T"]
    """A picture is taken for unseen where its novelty is above; ascending from -inf."""
    seen: Float[Tensor, " T"]
    """Share of the pictures of seen classes whose answer among all classes is right."""
    unseen: Float[Tensor, " T"]


@dataclass(frozen=True)
class UnseenReport:
    """Accuracies on seen and unseen classes, apart and together."""

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
    """Harmonic mean of `all_seen` and `all_unseen` (arXiv:1707.00600); 0 where either is."""
    detection: float
    """Area under the ROC curve of novelty: how often an unseen picture is taken for more novel
    than a seen one; chance is one half.
    """
    area: float
    """Area under the trade-off (Chao 2016, arXiv:1605.04253)."""
    area_chance: float
    """The same for novelty that knows nothing: half the product of the accuracies apart."""
    threshold: float


def answers(scores: Float[Tensor, "N K"], seen: Sequence[int]) -> Answers:
    """Answers of a method that only scores classes, such as DeViSE or CLIP.

    Novelty is the best unseen score minus the best seen one. So a threshold of t subtracts a bias
    of -t from the scores of seen classes: calibrated stacking (Chao 2016); zero is plain argmax.
    """
    is_seen = _mask(seen, scores.shape[1], scores.device)
    of_seen, among_seen = scores.masked_fill(~is_seen, -torch.inf).max(1)
    of_unseen, among_unseen = scores.masked_fill(is_seen, -torch.inf).max(1)
    return Answers(among_seen, among_unseen, of_unseen - of_seen)


def trade_off(
    given: Answers, truth: Int[Tensor, " N"], seen: Sequence[int], classes: int
) -> TradeOff:
    """Seen against unseen accuracy over all thresholds, exactly: no grid is chosen."""
    is_seen = _checked(given, truth, seen, classes)[truth]
    threshold, place = given.novelty.double().unique(return_inverse=True)  # ascending
    # Above novelty i a picture is unseen: with threshold i, pictures up to place i count as seen.
    right_seen = (given.among_seen == truth) & is_seen
    right_unseen = (given.among_unseen == truth) & ~is_seen
    gained = torch.zeros(len(threshold), dtype=torch.float64).index_add_(
        0, place.cpu(), right_seen.double().cpu()
    )
    lost = torch.zeros(len(threshold), dtype=torch.float64).index_add_(
        0, place.cpu(), right_unseen.double().cpu()
    )
    zero = torch.zeros(1, dtype=torch.float64)
    upto_seen = torch.cat([zero, gained.cumsum(0)])
    after_unseen = lost.sum() - torch.cat([zero, lost.cumsum(0)])
    return TradeOff(
        torch.cat([zero - torch.inf, threshold.cpu()]),
        upto_seen / is_seen.sum().cpu(),
        after_unseen / (~is_seen).sum().cpu(),
    )


def area(curve: TradeOff) -> float:
    """Area under unseen accuracy over seen accuracy, by trapezia."""
    return float(torch.trapezoid(curve.unseen, curve.seen))


def detection(novelty: Float[Tensor, " N"], is_seen: Bool[Tensor, " N"]) -> float:
    """How often an unseen picture is more novel than a seen one, ties counting half."""
    values, place = novelty.double().unique(return_inverse=True)
    seen = place[is_seen].bincount(minlength=len(values)).double()
    unseen = place[~is_seen].bincount(minlength=len(values)).double()
    below = seen.cumsum(0) - seen / 2
    return float((unseen * below).sum() / (seen.sum() * unseen.sum()))


def threshold_keeping(novelty: Float[Tensor, " M"], share: float) -> float:
    """The threshold at which so large a share of these pictures stays seen.

    Take pictures of seen classes that were held out of training: nothing of an unseen class is
    needed to choose it.
    """
    if not 0 < share <= 1 or not len(novelty):
        raise ValueError(
            f"a share in (0, 1] of at least one picture, not {share} of {len(novelty)}"
        )
    ordered = novelty.sort().values
    return float(ordered[math.ceil(share * len(ordered) - 1e-9) - 1])  # 0.7 * 10 is above 7


def report(
    given: Answers,
    truth: Int[Tensor, " N"],
    seen: Sequence[int],
    classes: int,
    threshold: float,
) -> UnseenReport:
    """All numbers of one method at one threshold, with the trade-off's area.

    Raises:
        ValueError: there are no pictures of seen classes or none of unseen ones, or an answer is
            of the wrong kind.
    """
    is_seen = _checked(given, truth, seen, classes)[truth]
    kinds = len(set(seen))
    final = torch.where(given.novelty > threshold, given.among_unseen, given.among_seen)
    curve = trade_off(given, truth, seen, classes)
    apart_seen = _share(given.among_seen == truth, is_seen, kinds)
    apart_unseen = _share(given.among_unseen == truth, ~is_seen, classes - kinds)
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
        detection=detection(given.novelty, is_seen),
        area=area(curve),
        area_chance=apart_seen.value * apart_unseen.value / 2,
        threshold=threshold,
    )


def _share(right: Bool[Tensor, " N"], of: Bool[Tensor, " N"], choices: int) -> Accuracy:
    hits, count = int((right & of).sum()), int(of.sum())
    return Accuracy(hits / count, *wilson_interval(hits, count), count, 1 / choices)


def _mask(seen: Sequence[int], classes: int, device: torch.device) -> Bool[Tensor, " K"]:
    kinds = set(seen)
    if not kinds or not kinds < set(range(classes)):
        raise ValueError(f"seen must be some, not all, of the classes 0 to {classes - 1}: {seen}")
    mask = torch.zeros(classes, dtype=torch.bool, device=device)
    mask[list(kinds)] = True
    return mask


def _checked(
    given: Answers, truth: Int[Tensor, " N"], seen: Sequence[int], classes: int
) -> Bool[Tensor, " K"]:
    mask = _mask(seen, classes, truth.device)
    if any(len(column) != len(truth) for column in given):
        raise ValueError(f"one answer of each kind for each of {len(truth)} pictures")
    if not mask[given.among_seen].all() or mask[given.among_unseen].any():
        raise ValueError("an answer among seen classes is unseen, or the other way round")
    if not given.novelty.isfinite().all():
        raise ValueError("novelty must be finite")
    of_seen = mask[truth]
    if of_seen.all() or not of_seen.any():
        raise ValueError("both need pictures of seen and of unseen classes")
    return mask
