"""Masks of objects in and out of pictures: what is inside a box, as 64 x 64.

A box is x0, y0, x1, y1 in shares of the picture's sides, as in `triptych.vision.boxes`.

Dimensions: N masks, H height and W width of a picture, S side of a mask (64).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from triptych.systems.mask_codes.model import SIDE, MaskCodes
from triptych.text.locations import Box, Located


def crop_mask(mask: Bool[Tensor, "H W"], box: Box) -> Float[Tensor, "1 S S"]:
    """What of a mask is inside a box, from -1 to 1, as PaliGemma was trained (big_vision,
    pp/proj/paligemma/segmentation.py): at whole pixels, resized by antialiased bilinear filters.

    Raises:
        ValueError: the box has no pixels.
    """
    height, width = mask.shape
    left, top, right, bottom = box
    x0, x1 = round(left * width), round(right * width)
    y0, y1 = round(top * height), round(bottom * height)
    inside = mask[max(y0, 0) : y1, max(x0, 0) : x1]
    if not inside.numel():
        raise ValueError(f"the box {box} has no pixels in a picture of {width} x {height}")
    resized = F.interpolate(
        inside[None, None].float(), (SIDE, SIDE), mode="bilinear", antialias=True
    )
    return resized[0] * 2 - 1


def place_masks(
    masks: Float[Tensor, "N 1 S S"], boxes: Sequence[Box], height: int, width: int
) -> Bool[Tensor, "N H W"]:
    """Masks of 64 x 64 in a picture: each pixel whose centre is inside the box gets the value of
    the mask there, between its cells, and is inside the object where that is above 0.
    """
    placed = torch.zeros(len(masks), height, width, dtype=torch.bool)
    y = (torch.arange(height) + 0.5) / height
    x = (torch.arange(width) + 0.5) / width
    for number, (left, top, right, bottom) in enumerate(boxes):
        across = (x - left) / (right - left) * 2 - 1
        down = (y - top) / (bottom - top) * 2 - 1
        grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)[None]  # (1, H, W, 2)
        values = F.grid_sample(
            masks[number][None].float().cpu(), grid, padding_mode="border", align_corners=False
        )[0, 0]
        placed[number] = (values > 0) & (grid[0].abs() <= 1).all(-1)
    return placed


def draw_masks(
    codes: MaskCodes, located: Sequence[Located], height: int, width: int
) -> Bool[Tensor, "N H W"]:
    """The masks of objects that have codes, in a picture of these sides."""
    if not located:
        return torch.zeros(0, height, width, dtype=torch.bool)
    with torch.inference_mode():
        table = torch.tensor([each.codes for each in located], device=codes.codes.device)
        masks = codes.decode(table).float().cpu()
    return place_masks(masks, [each.box for each in located], height, width)


def overlap(first: Bool[Tensor, "*N H W"], second: Bool[Tensor, "*N H W"]) -> Float[Tensor, "*N"]:
    """Intersection over union of masks; 0 where both are empty."""
    union = (first | second).sum((-2, -1))
    return (first & second).sum((-2, -1)) / union.clamp(min=1)
