"""Dense detection: one pass of the image tower per scale, whose patches are compared with labels.

A picture keeps its aspect ratio: its longer side is resized to `scale` times the model's input
size, and the border is replicated to fill the last patches. The tower resizes its position
embeddings to the resulting grid.

Dimensions: H height, W width, C channels, h w grid of patches, E width of the shared space.
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

LONGER_SIDE = 24
"""Default number of patches along the longer side: enough to locate the edges of an object that is
a quarter as long.
"""
MAX_SCALE = 4.0
"""Largest scale that is chosen to reach this number of patches."""
MAX_PATCHES = 4096
"""Of one pass: the cost of attention grows with their square."""


@dataclass(frozen=True)
class Pass:
    """The size of a picture in one pass of the tower."""

    height: int
    """Pixels of the resized picture, without the replicated border."""
    width: int
    grid: tuple[int, int]
    """Patches down and across."""
    patch: int

    def edges(self, height: int, width: int) -> tuple[Edges, Edges]:
        """Where the patches begin and end in a picture of this size, in its pixels; the last ones
        may end outside it.
        """
        down, across = (np.arange(count + 1) * float(self.patch) for count in self.grid)
        return down * height / self.height, across * width / self.width


def plan_passes(
    height: int, width: int, model_size: int, patch: int, scales: Sequence[float] = ()
) -> list[Pass]:
    """One pass per scale, in sides of the model's input, or one of a default scale.

    Raises:
        ValueError: a scale at which the picture has too many patches.
    """
    if min(height, width) < 1:
        raise ValueError(f"a picture of {width} x {height} pixels is empty")
    chosen = []
    for scale in scales or (min(MAX_SCALE, max(1.0, LONGER_SIDE * patch / model_size)),):
        ratio = scale * model_size / max(height, width)
        rows, columns = (max(1, round(ratio * length)) for length in (height, width))
        grid = -(-rows // patch), -(-columns // patch)
        if grid[0] * grid[1] > MAX_PATCHES:
            raise ValueError(
                f"scale {scale:g} cuts {width} x {height} pixels into {grid[0] * grid[1]:,} "
                f"patches, and the limit is {MAX_PATCHES:,}: choose a smaller scale"
            )
        chosen.append(Pass(rows, columns, grid, patch))
    return chosen


def pool_neighbours(vectors: Float[Tensor, "h w E"], side: int) -> Float[Tensor, "h w E"]:
    """Average every patch with its neighbours in a square of odd `side`, then normalise.

    This reduces the noise of single patches. Nothing outside the grid is averaged.
    """
    if side == 1:
        return vectors
    planes = vectors.permute(2, 0, 1)[None]
    mean = F.avg_pool2d(planes, side, 1, side // 2, count_include_pad=False)
    return F.normalize(mean[0].permute(1, 2, 0), dim=-1)


def prepare_pixels(
    picture: UInt8[np.ndarray, "H W C"], size: Pass, transform: ImageTransform | PatchTransform
) -> Float[Tensor, "1 3 _H _W"]:
    """Resize a picture to a pass, replicate its border, and normalise it for the model."""
    resized = np.repeat(picture, 3 // picture.shape[2], axis=2)
    if picture.shape[:2] != (size.height, size.width):
        width_height = (size.width, size.height)
        resized = np.asarray(
            Image.fromarray(resized).resize(width_height, Image.Resampling.BICUBIC)
        )
    image = torch.from_numpy(resized.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    bottom, right = (
        count * size.patch - side
        for count, side in zip(size.grid, (size.height, size.width), strict=True)
    )
    image = F.pad(image, (0, right, 0, bottom), mode="replicate")
    return ImageTransform(mean=transform.mean, std=transform.std).normalise(image)
