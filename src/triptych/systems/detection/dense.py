"""Dense detection: the image tower once a scale, and its patches compared with the labels.

A picture keeps its shape: it is resized so that its longer side is a multiple of the model's, and
repeated at its border up to whole patches; the patches' places in the picture are known to a
fraction of a pixel. The tower resizes its positions to the grid that comes of it.

Dimensions: B batch, H height, W width, h w a grid of patches, E width of the shared space, L
labels, G cells of a heat map.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from triptych.systems.detection.heatmaps import Edges
from triptych.vision.transforms import ImageTransform, PatchTransform

ALONG = 24
"""Patches along the longer side, where the request does not say: enough to tell where something of
a quarter of the side ends.
"""
LARGEST = 4.0
"""How far the picture is enlarged for that at most, in sides of the model's own."""
BICUBIC = Image.Resampling.BICUBIC
MOST = 4096
"""Patches of one pass at most: attention grows with their square."""


@dataclass(frozen=True)
class Pass:
    """One size at which the whole picture goes through the tower."""

    height: int
    """Pixels of the resized picture, without what is repeated at its border."""
    width: int
    grid: tuple[int, int]
    """Patches down and across."""
    patch: int

    def edges(self, height: int, width: int) -> tuple[Edges, Edges]:
        """Where the patches begin and end in a picture of this size, in its pixels; the last ones
        may end beyond it.
        """
        down, across = (np.arange(count + 1) * float(self.patch) for count in self.grid)
        return down * height / self.height, across * width / self.width


def passes(
    height: int, width: int, model_size: int, patch: int, scales: Sequence[float] = ()
) -> list[Pass]:
    """The passes over a picture of this many pixels.

    Raises:
        ValueError: a scale at which the picture has too many patches.
    """
    if min(height, width) < 1:
        raise ValueError(f"a picture of {width} x {height} pixels has no patches")
    chosen = []
    for scale in scales or (min(LARGEST, max(1.0, ALONG * patch / model_size)),):
        ratio = scale * model_size / max(height, width)
        rows, columns = (max(1, round(ratio * length)) for length in (height, width))
        grid = -(-rows // patch), -(-columns // patch)
        if grid[0] * grid[1] > MOST:
            raise ValueError(
                f"scale {scale:g} cuts {width} x {height} pixels into {grid[0] * grid[1]:,} "
                f"patches; at most {MOST:,} go through the tower: give a smaller one"
            )
        chosen.append(Pass(rows, columns, grid, patch))
    return chosen


def pooled(vectors: Float[Tensor, "h w E"], side: int) -> Float[Tensor, "h w E"]:
    """Every patch averaged with its neighbours in a square of odd `side`, to unit length again.

    One patch sees little of an object and errs by itself; beyond the border nothing is averaged.
    """
    if side == 1:
        return vectors
    planes = vectors.permute(2, 0, 1)[None]
    mean = F.avg_pool2d(planes, side, 1, side // 2, count_include_pad=False)
    return F.normalize(mean[0].permute(1, 2, 0), dim=-1)


def pixels(
    picture: UInt8[np.ndarray, "H W C"], size: Pass, transform: ImageTransform | PatchTransform
) -> Float[Tensor, "1 3 _H _W"]:
    """The picture at the size of a pass, repeated at the border, as the model reads it."""
    whole = np.repeat(picture, 3 // picture.shape[2], axis=2)
    if picture.shape[:2] != (size.height, size.width):
        resized = Image.fromarray(whole).resize((size.width, size.height), BICUBIC)
        whole = np.asarray(resized)
    image = torch.from_numpy(whole.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    below, beside = (
        count * size.patch - side
        for count, side in zip(size.grid, (size.height, size.width), strict=True)
    )
    image = F.pad(image, (0, beside, 0, below), mode="replicate")
    return ImageTransform(mean=transform.mean, std=transform.std).normalise(image)
