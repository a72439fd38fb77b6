"""The simplest text tower: the mean of the token embeddings.

Dimensions: B batch, T tokens, V vocabulary, W word width, D output width.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from triptych.fields import bounded
from triptych.nn.checks import require_at_least


@dataclass(frozen=True)
@bounded
class CbowConfig:
    """Continuous bag of words: a text as the mean of its words."""

    vocabulary: int = 49408
    length: int = 77
    width: int = 512
    unspoken: tuple[int, ...] = (0, 49406, 49407)
    """Tokens left out of the mean: padding, start, end."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "vocabulary", "length", "width")


class BagOfWords(nn.Module):
    """Continuous bag of words: the mean of the token embeddings, then a linear layer.

    The text encoder that the first CLIP experiments used beside a transformer (arXiv:2103.00020,
    section 2.3). The tokens `unspoken` (padding, start, end) are left out of the mean.
    """

    def __init__(self, vocabulary: int, width: int, dim: int, unspoken: tuple[int, ...]):
        super().__init__()
        self.unspoken = unspoken
        self.token = nn.Embedding(vocabulary, width)
        self.projection = nn.Linear(width, dim, bias=False)
        nn.init.normal_(self.token.weight, std=width**-0.5)

    def forward(self, tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        spoken = torch.ones_like(tokens, dtype=torch.bool)
        for token in self.unspoken:
            spoken &= tokens != token
        weight = spoken.to(self.token.weight.dtype)
        summed = torch.einsum("bt,btw->bw", weight, self.token(tokens))
        mean: Tensor = self.projection(summed / weight.sum(1, keepdim=True).clamp_min(1))
        return mean
