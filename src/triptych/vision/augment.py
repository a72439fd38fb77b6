"""Random changes of training pictures that leave what they show as it is.

Dimensions: B pictures, C channels, H height, W width.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

ASPECT = (3 / 4, 4 / 3)  # of a crop, drawn evenly in its logarithm (arXiv:1409.4842)


@dataclass(frozen=True)
class Augment:
    """Crops, mirrors and tints, drawn for each picture from one generator."""

    crop: float = 1.0
    """Least share of the area that is kept; 1 keeps all and draws nothing."""
    flip: bool = False
    colour: float = 0.0
    """Brightness, contrast and saturation vary by up to this share each."""

    def __call__(
        self, images: Float[Tensor, "B C H W"], generator: torch.Generator
    ) -> Float[Tensor, "B C H W"]:
        """Changed copies of pictures in [-1, 1]."""
        if self.crop < 1 or self.flip:
            images = self._moved(images, generator)
        return self._tinted(images, generator) if self.colour else images

    def _moved(self, images: Tensor, generator: torch.Generator) -> Tensor:
        u = torch.rand(5, len(images), generator=generator).to(images)
        area = self.crop + (1 - self.crop) * u[0]
        low, high = (math.log(side) for side in ASPECT)
        ratio = (low + (high - low) * u[1]).exp() if self.crop < 1 else torch.ones_like(area)
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        x, y = (2 * u[2] - 1) * (1 - width), (2 * u[3] - 1) * (1 - height)
        mirror = torch.where(u[4] < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(x)
        zero = torch.zeros_like(x)
        # where each pixel of the result lies in the picture, both from -1 to 1
        places = torch.stack([width * mirror, zero, x, zero, height, y], 1).view(-1, 2, 3)
        grid = F.affine_grid(places, list(images.shape), align_corners=False)
        moved: Tensor = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        return moved

    def _tinted(self, images: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.rand(3, len(images), 1, 1, 1, generator=generator).to(images)
        bright, contrast, saturation = 1 + self.colour * (2 * draws - 1)
        light = (images + 1) * bright
        mean = light.mean((1, 2, 3), keepdim=True)
        light = mean + (light - mean) * contrast
        grey = light.mean(1, keepdim=True)
        light = grey + (light - grey) * saturation
        tinted: Tensor = light.clamp(0, 2) - 1
        return tinted
