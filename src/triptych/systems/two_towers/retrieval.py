"""Text to picture and back: is what belongs together among the nearest?

Dimensions: N pictures, M texts, D width of the shared space, C rows of a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

KS = (1, 5, 10)


@dataclass(frozen=True)
class Found:
    """How well one kind finds what belongs to it among the other."""

    at: dict[int, float]
    """The share of queries with something that belongs to them among the k nearest."""
    chance: dict[int, float]
    """The same for a random order."""
    median_rank: float
    """Of the best that belongs to a query; 1 is the nearest of all."""
    queries: int
    among: int


@dataclass(frozen=True)
class Recall:
    """Recall both ways."""

    text_to_image: Found
    image_to_text: Found


def recall(
    image: Float[Tensor, "N D"],
    text: Float[Tensor, "M D"],
    owner: Int64[Tensor, " M"],
    *,
    ks: Sequence[int] = KS,
    chunk: int = 1024,
) -> Recall:
    """Recall at k of pictures with any number of texts each; `owner` is the picture of a text.

    A picture counts as found by the best of its texts, as in Flickr30K and COCO; pictures without a
    text are among those that texts look for, and are no queries. Equal scores stand in a random
    order, of which the exact expectation is taken: a model that gives all pairs one score gets
    exactly chance, neither everything nor nothing. The rank in the median is 1 + how many score
    higher + half of those that score the same.

    Memory is that of `chunk` rows of the similarity matrix, which is never whole.

    Raises:
        ValueError: rows, widths or owners do not fit together, or a number is not finite.
    """
    _check(image, text, owner, ks)
    mine = torch.arange(len(image), device=owner.device)
    towards_image, towards_text = [], []
    for start in range(0, len(text), chunk):
        rows = owner[start : start + chunk]
        towards_image.append(
            _standing(text[start : start + chunk] @ image.T, rows[:, None] == mine)  # (C, N)
        )
    for start in range(0, len(image), chunk):
        rows = mine[start : start + chunk]
        towards_text.append(
            _standing(image[start : start + chunk] @ text.T, rows[:, None] == owner)  # (C, M)
        )
    return Recall(
        _found(torch.cat(towards_image), len(image), ks),
        _found(torch.cat(towards_text), len(text), ks),
    )


def _standing(scores: Float[Tensor, "C W"], own: Bool[Tensor, "C W"]) -> Int64[Tensor, "c 4"]:
    """For each row that owns something: how many of the others score higher than its best and how
    many the same, how many of its own score that much, and how many it owns.
    """
    has = own.any(dim=1)
    scores, own = scores[has], own[has]
    best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
    higher = ((scores > best) & ~own).sum(1)
    same = (scores == best) & ~own
    return torch.stack([higher, same.sum(1), ((scores == best) & own).sum(1), own.sum(1)], 1).cpu()


def _found(standing: Int64[Tensor, "Q 4"], among: int, ks: Sequence[int]) -> Found:
    higher, same, best, owned = standing.unbind(1)
    nothing = torch.zeros_like(higher)
    ranks = 1 + higher.double() + same.double() / 2
    return Found(
        at={k: float(_within(higher, same, best, k).mean()) for k in ks},
        chance={k: float(_within(nothing, among - owned, owned, k).mean()) for k in ks},
        median_rank=float(ranks.quantile(0.5)),
        queries=len(standing),
        among=among,
    )


def _within(
    higher: Int64[Tensor, " Q"], same: Int64[Tensor, " Q"], best: Int64[Tensor, " Q"], k: int
) -> Float[Tensor, " Q"]:
    """The probability that one of `best` is among the k first, when it and `same` others share the
    places after `higher` in a random order: 1 - C(same, s) / C(same + best, s), s places left.
    """
    total = (same + best).double()
    places = (k - higher).clamp(min=0).double()
    missed = torch.ones_like(total)
    for taken in range(int(best.max())):
        factor = ((total - places - taken) / (total - taken)).clamp(min=0)
        missed = torch.where(taken < best, missed * factor, missed)
    return 1 - missed


def _check(image: Tensor, text: Tensor, owner: Tensor, ks: Sequence[int]) -> None:
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
        raise ValueError(
            f"expected pictures (N, D) and texts (M, D) of one width, not {tuple(image.shape)} and "
            f"{tuple(text.shape)}"
        )
    if owner.shape != text.shape[:1] or not len(text):
        raise ValueError(f"each of {len(text)} texts has one owner, not {tuple(owner.shape)}")
    if int(owner.min()) < 0 or int(owner.max()) >= len(image):
        raise ValueError(
            f"owners are pictures 0 to {len(image) - 1}, not {int(owner.min())} to "
            f"{int(owner.max())}"
        )
    if not ks or min(ks) < 1:
        raise ValueError(f"k is at least 1, not {list(ks)}")
    if not bool(image.isfinite().all()) or not bool(text.isfinite().all()):
        raise ValueError("an embedding is not finite: did the training diverge?")
