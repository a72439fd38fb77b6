"""Weights to start from that know what is near: places in a picture, and numbers of locations.

A small model otherwise spends much of its training on learning that two places, or two of 1,024
locations, are neighbours. Published models start from trained eyes and have no need of it.
"""

import math

import torch
from torch import nn

from triptych.systems.siglip.model import SiglipImage
from triptych.text.language import LanguageTokenizer
from triptych.text.locations import LOCATION_NAMES, STEPS

AMPLITUDE = 0.5
"""Of the sines of places, beside features of a patch that start with about this deviation."""
WAVES = 64
"""Cosines of which the vector of a location is made: the shortest turns within 1/64 of a side."""


@torch.no_grad()
def order_places(image: SiglipImage) -> None:
    """Positions of patches become sines and cosines of their row and column (arXiv:2205.01580)."""
    side = math.isqrt(len(image.position))
    width = image.position.shape[1]
    rates = 10_000 ** -(torch.arange(width // 4) / max(1, width // 4))
    waves = torch.arange(side)[:, None] * rates  # (side, D / 4)
    along = torch.cat([waves.sin(), waves.cos()], 1)
    rows = along.repeat_interleave(side, 0)
    columns = along.repeat(side, 1)
    ordered = AMPLITUDE * torch.cat([rows, columns], 1)
    image.position[:, : ordered.shape[1]] = ordered


@torch.no_grad()
def order_locations(table: nn.Module, tokenizer: LanguageTokenizer) -> None:
    """The vectors of neighbouring locations become similar, where a vocabulary has locations; they
    keep their length.

    They lie on a smooth random curve, a mixture of slow and fast cosines.
    """
    assert isinstance(table, nn.Embedding)
    if not tokenizer.locates:
        return
    places = torch.arange(len(LOCATION_NAMES)) / STEPS
    waves = torch.arange(WAVES)
    heights = 1 / (1 + waves / 8)
    curves = heights * torch.cos(math.pi * waves * places[:, None])  # (places, waves)
    mixed = curves @ torch.randn(WAVES, table.embedding_dim)
    mixed = mixed / mixed.norm(dim=1, keepdim=True)
    tokens = [tokenizer.require(name) for name in LOCATION_NAMES]
    lengths = table.weight[tokens].norm(dim=1, keepdim=True)
    table.weight[tokens] = mixed * lengths
