"""A model of known behaviour: a picture is its mean colour, a text the colour that it names.

Colours lie on a sphere, so that cosines order them as distances do. The picture tower's patches are
exact means of their own pixels, and so is the whole of any crop: what a heat map must be follows
from the pixels alone.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.scenes.drawing import GROUND_PAINT, PAINT
from triptych.systems.clip.model import ClipConfig, TextConfig, VitConfig
from triptych.text.tokenizer import Encoded
from triptych.vision.transforms import HALF, ImageTransform
from triptych.weights.loaded import Card, Loaded

PALETTE: dict[str, tuple[int, int, int]] = {
    **{name: paint for name, (paint, _) in PAINT.items()},
    **GROUND_PAINT,
    **{
        f"{name}-{ground}": tuple((a + b) // 2 for a, b in zip(paint, behind, strict=True))
        for name, (paint, _) in PAINT.items()
        for ground, behind in GROUND_PAINT.items()
    },
}
BACKGROUND = tuple(name for name in PALETTE if name not in PAINT)
"""Grounds, and what an edge between a colour and a ground looks like."""


class Words:
    """A text is the number of the first colour in it."""

    def encode(self, texts: Sequence[str], *, full: bool = True) -> Encoded:
        names = list(PALETTE)
        rows = [next(names.index(w) for w in text.split() if w in PALETTE) for text in texts]
        lengths = torch.ones(len(rows), dtype=torch.int64)
        return Encoded(torch.tensor(rows).reshape(-1, 1), lengths, ())


class Colours(nn.Module):
    """The mean colour, lifted to a sphere of radius 2 around black."""

    reads = "softmax"

    def __init__(self, patch: int, scale: float):
        super().__init__()
        self.patch = patch
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.image = nn.Linear(1, 1)  # a tower only in what it computes in: float32
        self.looks = 0
        """How often the picture tower was asked."""

    def embed_image(self, pixels: Tensor) -> Tensor:
        self.looks += 1
        return lifted(pixels.mean((2, 3)))

    def patches(self, pixels: Tensor, reach: int | None = None) -> Tensor:
        self.looks, self.reach = self.looks + 1, reach
        return lifted(F.avg_pool2d(pixels, self.patch).permute(0, 2, 3, 1))

    def embed_text(self, tokens: Tensor) -> Tensor:
        paints = torch.tensor(list(PALETTE.values())).float() / 127.5 - 1
        return lifted(paints[tokens[:, 0]])

    def logits(self, image: Tensor, text: Tensor) -> Tensor:
        return self.logit_scale.exp() * image @ text.T


def lifted(colour: Tensor) -> Tensor:
    """RGB in [-1, 1] to a unit vector."""
    return torch.cat([colour, (4 - colour.square().sum(-1, keepdim=True)).sqrt()], -1) / 2


def colour_model(size: int = 32, patch: int = 4, scale: float = 100.0) -> Loaded:
    """The model as `load` would give it."""
    config = ClipConfig(
        dim=4,
        vit=VitConfig(size=size, patch=patch, width=4, layers=1, heads=1),
        text=TextConfig(vocabulary=len(PALETTE), length=1, width=4, layers=1, heads=1),
    )
    transform = ImageTransform(size, HALF, HALF)
    card = Card("clip", {}, transform=transform)
    model = Colours(patch, scale)
    return Loaded("colours", card, config, model, Words(), transform)  # type: ignore[arg-type]
