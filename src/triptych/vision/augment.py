"""Random crops, flips and colours for contrastive training, on whole batches at once.

A caption must stay true of its picture: crops are large, a flip (which turns left into right, and
letters around) and changes of colour are off unless asked for.

Dimensions: B pictures, H height, W width.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

DRAWS = 8  # uniform numbers per picture, whatever is switched on


@dataclass(frozen=True)
class Augmentation:
    """How much of a picture may change; the defaults are CLIP's crop of 90 to 100 %."""

    crop: tuple[float, ...] = (0.9, 1.0)
    """Least and greatest share of the area that is kept; (1, 1) is the whole picture."""
    ratio: float = 4 / 3
    """A crop is at most this much wider or taller in proportion than the picture."""
    flip: bool = False
    """Left and right exchanged in half of the pictures."""
    brightness: float = 0.0
    """Light is multiplied by up to 1 - this and 1 + this; so are contrast and saturation."""
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        if len(self.crop) != 2 or not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop is a range of areas within (0, 1], not {self.crop}")
        if self.ratio < 1:
            raise ValueError(f"ratio must be at least 1, not {self.ratio}")
        if not all(0 <= x < 1 for x in (self.brightness, self.contrast, self.saturation)):
            raise ValueError(f"changes of colour must be in [0, 1): {self}")


def augment(
    images: Float[Tensor, "B 3 H W"], settings: Augmentation, generator: torch.Generator
) -> Float[Tensor, "B 3 H W"]:
    """Each picture of [-1, 1] changed in its own way; the size stays.

    Picture i takes row i of one draw of (B, 8) from the generator (on the CPU), so what happens to
    it depends on the generator and on its place only, not on what is switched on.
    """
    draw = torch.rand(len(images), DRAWS, generator=generator).to(images.device, images.dtype)
    if settings.crop != (1, 1) or settings.ratio != 1 or settings.flip:
        images = _cropped(images, settings, draw)
    if settings.brightness or settings.contrast or settings.saturation:
        images = _coloured(images, settings, draw[:, 5:])
    return images


def _cropped(
    images: Float[Tensor, "B 3 H W"], settings: Augmentation, draw: Float[Tensor, "B 8"]
) -> Float[Tensor, "B 3 H W"]:
    low, high = settings.crop
    area = low + (high - low) * draw[:, 0]
    stretch = torch.exp((2 * draw[:, 1] - 1) * math.log(settings.ratio) / 2)
    # a side that would be longer than the picture's makes the other longer instead
    stretch = torch.maximum(torch.minimum(stretch, area.rsqrt()), area.sqrt())
    width, height = area.sqrt() * stretch, area.sqrt() / stretch  # relative
    x, y = (2 * draw[:, 2] - 1) * (1 - width), (2 * draw[:, 3] - 1) * (1 - height)  # of the centre
    side = torch.where(draw[:, 4] < 0.5, -width, width) if settings.flip else width
    zero = torch.zeros_like(x)
    rows = [torch.stack([side, zero, x], 1), torch.stack([zero, height, y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _coloured(
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
