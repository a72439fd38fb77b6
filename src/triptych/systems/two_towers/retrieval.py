"""Recall of pictures by texts and of texts by pictures.

Dimensions: N pictures, M texts, D width of the shared space; Q queries, W candidates, C rows of a
chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

KS = (1, 5, 10)


@dataclass(frozen=True)
class Direction:
    """Recall of queries of one kind among candidates of the other."""

    at: dict[int, float]
    """The share of queries with at least one match among the k nearest, for each k."""
    chance: dict[int, float]
    """The same for a random order."""
    median_rank: float
    """Rank of the best match; 1 is the nearest of all."""
    queries: int
    among: int
    """Number of candidates."""


@dataclass(frozen=True)
class Recall:
    """Recall both ways."""

    text_to_image: Direction
    image_to_text: Direction


def recall_at(
    scores: Float[Tensor, "Q W"], matches: Bool[Tensor, "Q W"], ks: Sequence[int] = KS
) -> dict[int, float]:
    """The share of queries with at least one match among the k highest scores, for each k.

    Of equal scores the match counts as higher. This is cheap enough for every evaluation of a
    training; `recall` gives ties their expectation.
    """
    higher = rank_matches(scores, matches)[:, 0]
    return {k: (higher < k).float().mean().item() for k in ks}


def recall(
    image: Float[Tensor, "N D"],
    text: Float[Tensor, "M D"],
    owner: Int64[Tensor, " M"],
    *,
    ks: Sequence[int] = KS,
    chunk: int = 1024,
) -> Recall:
    """Recall at k of pictures with any number of texts each; `owner` is the picture of a text.

    A picture counts as found by the best of its texts, as in Flickr30K and COCO. Pictures without
    a text are candidates, not queries. Ties count by their expectation under a random order: a
    model that gives all pairs one score gets exactly chance. The rank in the median is 1 + how many
    candidates score higher + half of those that score the same.

    Needs memory for `chunk` rows of the similarity matrix at a time.

    Raises:
        ValueError: rows, widths or owners do not fit together, or a number is not finite.
    """
    _check(image, text, owner, ks)
    pictures = torch.arange(len(image), device=owner.device)
    of_texts, of_pictures = [], []
    for start in range(0, len(text), chunk):
        rows = owner[start : start + chunk]
        of_texts.append(
            rank_matches(text[start : start + chunk] @ image.T, rows[:, None] == pictures)  # (C, N)
        )
    for start in range(0, len(image), chunk):
        rows = pictures[start : start + chunk]
        of_pictures.append(
            rank_matches(image[start : start + chunk] @ text.T, rows[:, None] == owner)  # (C, M)
        )
    return Recall(
        _direction(torch.cat(of_texts), len(image), ks),
        _direction(torch.cat(of_pictures), len(text), ks),
    )


def rank_matches(
    scores: Float[Tensor, "Q W"], matches: Bool[Tensor, "Q W"]
) -> Int64[Tensor, "q 4"]:
    """Where the best match of each query ranks; queries without a match are left out.

    Columns: other candidates that score higher than the best match, others that score the same,
    matches that score the same as the best, all matches.
    """
    has = matches.any(dim=1)
    scores, matches = scores[has], matches[has]
    best = scores.masked_fill(~matches, -torch.inf).amax(dim=1, keepdim=True)
    higher = (scores > best) & ~matches
    same = scores == best
    counts = [higher, same & ~matches, same & matches, matches]
    return torch.stack([count.sum(1) for count in counts], 1).cpu()


def _direction(ranks: Int64[Tensor, "Q 4"], among: int, ks: Sequence[int]) -> Direction:
    higher, same, best, matches = ranks.unbind(1)
    nothing = torch.zeros_like(higher)
    middle = 1 + higher.double() + same.double() / 2
    return Direction(
        at={k: float(_within(higher, same, best, k).mean()) for k in ks},
        chance={k: float(_within(nothing, among - matches, matches, k).mean()) for k in ks},
        median_rank=float(middle.quantile(0.5)),
        queries=len(ranks),
        among=among,
    )


def _within(
    higher: Int64[Tensor, " Q"], same: Int64[Tensor, " Q"], best: Int64[Tensor, " Q"], k: int
) -> Float[Tensor, " Q"]:
    """The probability that at least one of `best` tied matches is among the first k, in a random
    order of the ties: 1 - C(same, s) / C(same + best, s) with s = k - higher places for them.
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
            f"recall takes pictures (N, D) and texts (M, D) of one width, not {tuple(image.shape)} "
            f"and {tuple(text.shape)}"
        )
    if owner.shape != text.shape[:1] or not len(text):
        raise ValueError(f"each of {len(text)} texts has one owner, not {tuple(owner.shape)}")
    if int(owner.min()) < 0 or int(owner.max()) >= len(image):
        raise ValueError(
            f"the owner of a text is a picture, 0 to {len(image) - 1}, not {int(owner.min())} to "
            f"{int(owner.max())}"
        )
    if not ks or min(ks) < 1:
        raise ValueError(f"each k must be at least 1, not {list(ks)}")
    if not bool(image.isfinite().all()) or not bool(text.isfinite().all()):
        raise ValueError("an embedding is not finite: did the training diverge?")
