"""Random crops, flips and colours for contrastive training, on whole batches at once.

A caption must stay true of its picture: crops are large by default, and flips (which swap left and
right and mirror letters) and colour changes are off.

Dimensions: B pictures, H height, W width.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

DRAWS = 8  # uniform numbers per picture, used or not


@dataclass(frozen=True)
class Augmentation:
    """Ranges of random changes; the default is CLIP's crop of 90 to 100 % of the area."""

    crop: tuple[float, ...] = (0.9, 1.0)
    """Smallest and largest share of the area that is kept; (1, 1) keeps all of it."""
    ratio: float = 4 / 3
    """Largest change of the aspect ratio."""
    flip: bool = False
    """Mirror half of the pictures left to right."""
    brightness: float = 0.0
    """Scaled by a random factor from 1 - this to 1 + this; likewise contrast and saturation."""
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        if len(self.crop) != 2 or not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop must be a range of areas within (0, 1], not {self.crop}")
        if self.ratio < 1:
            raise ValueError(f"ratio must be at least 1, not {self.ratio}")
        if not all(0 <= x < 1 for x in (self.brightness, self.contrast, self.saturation)):
            raise ValueError(f"brightness, contrast and saturation must be in [0, 1): {self}")


def augment(
    images: Float[Tensor, "B 3 H W"], settings: Augmentation, generator: torch.Generator
) -> Float[Tensor, "B 3 H W"]:
    """Change each picture, in [-1, 1], at random; the size stays the same.

    Picture i uses row i of one draw of (B, 8) from the generator (on the CPU), so its crop is the
    same whichever other changes are enabled.
    """
    draw = torch.rand(len(images), DRAWS, generator=generator).to(images.device, images.dtype)
    if settings.crop != (1, 1) or settings.ratio != 1 or settings.flip:
        images = _crop(images, settings, draw)
    if settings.brightness or settings.contrast or settings.saturation:
        images = _change_colours(images, settings, draw[:, 5:])
    return images


def _crop(
    images: Float[Tensor, "B 3 H W"], settings: Augmentation, draw: Float[Tensor, "B 8"]
) -> Float[Tensor, "B 3 H W"]:
    low, high = settings.crop
    area = low + (high - low) * draw[:, 0]
    stretch = torch.exp((2 * draw[:, 1] - 1) * math.log(settings.ratio) / 2)
    # a crop must not be longer than the picture in either direction
    stretch = torch.maximum(torch.minimum(stretch, area.rsqrt()), area.sqrt())
    width, height = area.sqrt() * stretch, area.sqrt() / stretch  # relative
    x, y = (2 * draw[:, 2] - 1) * (1 - width), (2 * draw[:, 3] - 1) * (1 - height)  # of the centre
    side = torch.where(draw[:, 4] < 0.5, -width, width) if settings.flip else width
    zero = torch.zeros_like(x)
    rows = [torch.stack([side, zero, x], 1), torch.stack([zero, height, y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _change_colours(
    images: Float[Tensor, "B 3 H W"], settings: Augmentation, draw: Float[Tensor, "B 3"]
) -> Float[Tensor, "B 3 H W"]:
    limits = (settings.brightness, settings.contrast, settings.saturation)
    light, contrast, saturation = (
        1 + limit * (2 * draw[:, k] - 1).view(-1, 1, 1, 1) for k, limit in enumerate(limits)
    )
    pixels = (images + 1) * (light / 2)  # [0, 1] and a little more
    weights = pixels.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    grey = (pixels * weights).sum(1, keepdim=True)  # (B, 1, H, W)
    middle = grey.mean((2, 3), keepdim=True)
    pixels = torch.lerp(grey, pixels, saturation)
    pixels = torch.lerp(middle, pixels, contrast)
    return (pixels * 2 - 1).clamp(-1, 1)
