"""CLIP score: how well pictures match their texts (arXiv:2104.08718).

Dimensions: N pairs, D numbers of a vector, B pairs of a block.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych.scores.accuracy import NORMAL_95
from triptych.weights.loaded import Loaded

WEIGHT = 2.5  # scales CLIP's usual cosines to about 0 to 1 (section 3)
BLOCK = 2048


@dataclass(frozen=True)
class Alignment:
    """CLIP score over pictures."""

    score: float
    """The mean; 0 to 2.5, real photographs with their captions about 0.6 to 0.8."""
    low: float
    high: float
    """The 95 % interval of the mean."""
    shuffled: float | None
    """The mean over pairs of a picture and another's text, the chance level; None if all texts are
    equal.
    """
    preferred: float | None
    """The share of these pairs in which the picture's own text scores higher; chance is 0.5."""
    count: int


def clip_score(image: Float[Tensor, "N D"], text: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """2.5 max(cos, 0) of each pair of unit vectors (equation 1).

    Published scores put "A photo depicts" before each text and use ViT-B/32. Scores of different
    models cannot be compared.
    """
    if image.shape != text.shape or image.ndim != 2:
        raise ValueError(
            f"pairs must be (N, D) each, not {tuple(image.shape)} and {tuple(text.shape)}"
        )
    return WEIGHT * (image * text).sum(1).clamp(min=0)


def alignment(image: Float[Tensor, "N D"], text: Float[Tensor, "N D"]) -> Alignment:
    """The mean CLIP score, its interval, and the same for others' texts.

    Texts with equal vectors count as one text.

    Raises:
        ValueError: there are no pairs, or the shapes differ.
    """
    scores = clip_score(image, text).double()
    if not len(scores):
        raise ValueError("a CLIP score needs at least one pair")
    kinds = text.unique(dim=0, return_inverse=True)[1]
    total, better, others = 0.0, 0.0, 0
    own = (image * text).sum(1)
    for part, mine, kind in zip(
        image.split(BLOCK), own.split(BLOCK), kinds.split(BLOCK), strict=True
    ):
        cosines = part @ text.T  # (B, N)
        other = kind[:, None] != kinds
        total += float((WEIGHT * cosines.clamp(min=0))[other].double().sum())
        wins, ties = cosines < mine[:, None], cosines == mine[:, None]
        better += float(wins[other].sum()) + 0.5 * float(ties[other].sum())
        others += int(other.sum())
    mean = float(scores.mean())
    spread = float(scores.std()) / math.sqrt(len(scores)) if len(scores) > 1 else math.inf
    return Alignment(
        score=mean,
        low=max(0.0, mean - NORMAL_95 * spread),
        high=min(WEIGHT, mean + NORMAL_95 * spread),
        shuffled=total / others if others else None,
        preferred=better / others if others else None,
        count=len(scores),
    )


def evaluate(
    pictures: Sequence[UInt8[np.ndarray, "_H _W _C"]], prompts: Sequence[str], loaded: Loaded
) -> Alignment:
    """The CLIP score of pictures with their prompts.

    Raises:
        ValueError: the model is not a CLIP or SigLIP, or there are not as many prompts as pictures.
    """
    if len(pictures) != len(prompts):
        raise ValueError(f"{len(pictures)} pictures, but {len(prompts)} prompts")
    return alignment(loaded.embed_image(pictures), loaded.embed_text(prompts))
