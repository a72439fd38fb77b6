"""Boxes: their formats, their overlap, choosing among them, and drawing them on a picture.

Inside the library a box is `xyxy`: left, top, right, bottom, relative to the picture's width and
height, in [0, 1]. A picture need not be square: overlap is a ratio of areas, so it is the same in
relative and in absolute numbers.

Dimensions: N and M boxes or masks, H height, W width, h and w of a heat map.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Form = Literal["xyxy", "xywh", "cxcywh"]
"""Corners; left, top, width, height (COCO); centre, width, height (YOLO)."""

COLOURS = (  # distinct for colour-blind people too (Okabe and Ito 2008)
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (0, 0, 0),
)  # fmt: skip
HEAT = np.array(  # from cold to hot, each step brighter
    [(0, 0, 40), (70, 10, 110), (170, 35, 95), (240, 110, 30), (255, 240, 140)], np.float64
)


def to_xyxy(boxes: Float[Tensor, "*N 4"], form: Form) -> Float[Tensor, "*N 4"]:
    """Convert boxes of another form to corners, in the same units."""
    first, second = _halves(boxes, form)
    if form == "xywh":
        return torch.cat([first, first + second], -1)
    return torch.cat([first - second / 2, first + second / 2], -1) if form == "cxcywh" else boxes


def from_xyxy(boxes: Float[Tensor, "*N 4"], form: Form) -> Float[Tensor, "*N 4"]:
    """Convert corners to another form: the inverse of `to_xyxy`."""
    first, second = _halves(boxes, form)
    if form == "xywh":
        return torch.cat([first, second - first], -1)
    return torch.cat([(first + second) / 2, second - first], -1) if form == "cxcywh" else boxes


def _halves(boxes: Tensor, form: str) -> tuple[Tensor, Tensor]:
    _check(boxes)
    if form not in get_args(Form):
        raise ValueError(f"form must be xyxy, xywh or cxcywh, not {form!r}")
    return boxes[..., :2], boxes[..., 2:]


def absolute(boxes: Float[Tensor, "*N 4"], height: int, width: int) -> Float[Tensor, "*N 4"]:
    """Convert relative boxes of any form to pixels."""
    _check(boxes)
    return boxes * boxes.new_tensor([width, height, width, height])


def relative(boxes: Float[Tensor, "*N 4"], height: int, width: int) -> Float[Tensor, "*N 4"]:
    """Convert boxes of any form from pixels to the picture's width and height."""
    _check(boxes)
    if height < 1 or width < 1:
        raise ValueError(f"a picture must have pixels, not {width} x {height}")
    return boxes / boxes.new_tensor([width, height, width, height])


def clip(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """Clip relative corners to the picture; a box outside becomes empty."""
    _check(boxes)
    return boxes.clamp(0, 1)


def area(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N"]:
    """Area of corners; 0 if they are swapped."""
    _check(boxes)
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def iou(first: Float[Tensor, "N 4"], second: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """Intersection over union of every pair of corners, in [0, 1]; 0 where a box is empty."""
    areas = area(first)[:, None] + area(second)[None]
    corner = torch.maximum(first[:, None, :2], second[None, :, :2])  # (N, M, 2)
    opposite = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (opposite - corner).clamp(min=0).prod(-1)
    # boxes with swapped corners overlap with nothing
    shared = shared.where((area(first)[:, None] > 0) & (area(second)[None] > 0), 0.0)
    union = areas - shared
    return shared / union.where(union > 0, 1.0)


def suppress(
    boxes: Float[Tensor, "N 4"],
    scores: Float[Tensor, " N"],
    labels: Int64[Tensor, " N"] | None = None,
    threshold: float = 0.5,
) -> Int64[Tensor, " K"]:
    """Non-maximum suppression: which boxes to keep, best first.

    Greedy: the best box is kept, and every box of the same label that overlaps it by more than
    `threshold` (intersection over union) is dropped. Of equal scores the earlier box wins. Without
    labels all boxes compete.

    Raises:
        ValueError: lengths differ, a score is NaN, or the threshold is outside [0, 1].
    """
    _check(boxes)
    labels = torch.zeros_like(scores, dtype=torch.int64) if labels is None else labels
    if not len(boxes) == len(scores) == len(labels):
        raise ValueError(
            f"boxes, scores and labels must be as many, not {len(boxes)}, {len(scores)} and "
            f"{len(labels)}"
        )
    if scores.isnan().any() or boxes.isnan().any():
        raise ValueError("a box or a score is not a number (NaN)")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], not {threshold}")
    left = scores.argsort(descending=True, stable=True)
    kept: list[Tensor] = []
    while len(left):
        best, rest = left[0], left[1:]
        kept.append(best)
        overlap = iou(boxes[best][None], boxes[rest])[0]
        left = rest[(overlap <= threshold) | (labels[rest] != labels[best])]
    return torch.stack(kept) if kept else left


def draw_boxes(
    picture: UInt8[np.ndarray, "H W C"],
    boxes: Float[Tensor, "N 4"],
    labels: Sequence[str],
    scores: Sequence[float] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """A copy of the picture with relative boxes on it, each with its label and score.

    Boxes of one label have one colour. Later boxes are drawn over earlier ones.
    """
    if not len(boxes) == len(labels) == len(labels if scores is None else scores):
        raise ValueError(f"{len(boxes)} boxes need {len(boxes)} labels and scores")
    image = _image(picture)
    draw = ImageDraw.Draw(image)
    size = max(10, round(math.sqrt(image.width * image.height) / 32))  # pixels of a letter
    font, line = ImageFont.load_default(size), max(1, size // 6)
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    corners = absolute(clip(boxes.double()), image.height, image.width).tolist()
    for number, (label, (x0, y0, x1, y1)) in enumerate(zip(labels, corners, strict=True)):
        colour = COLOURS[numbers[label] % len(COLOURS)]
        right, bottom = max(x0, x1 - 1), max(y0, y1 - 1)  # the last pixel inside
        draw.rectangle((x0, y0, right, bottom), outline=colour, width=line)
        text = label if scores is None else f"{label} {scores[number]:.2f}"
        width, height = math.ceil(font.getlength(text)) + size // 2, round(1.3 * size)
        left = min(max(0, x0), max(0, image.width - width))
        top = y0 - height if y0 >= height else min(y0, max(0, image.height - height))
        draw.rectangle((left, top, left + width, top + height), fill=colour)
        dark = sum(c * w for c, w in zip(colour, (0.299, 0.587, 0.114), strict=True)) < 128
        ink = "white" if dark else "black"
        draw.text((left + size // 4, top + height // 2), text, fill=ink, font=font, anchor="lm")
    return np.asarray(image).copy()


def draw_masks(
    picture: UInt8[np.ndarray, "H W C"],
    masks: Bool[Tensor, "N H W"],
    labels: Sequence[str],
    strength: float = 0.5,
) -> UInt8[np.ndarray, "H W 3"]:
    """A copy of the picture with masks in colour; those of one label have one colour, that which
    `draw_boxes` gives their boxes.
    """
    if len(masks) != len(labels) or tuple(masks.shape[1:]) != picture.shape[:2]:
        raise ValueError(f"{len(labels)} labels and masks {tuple(masks.shape)} do not fit a picture"
                         f" {picture.shape}")  # fmt: skip
    pixels = np.asarray(_image(picture)).astype(np.float64)
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    for mask, label in zip(masks.cpu().numpy(), labels, strict=True):
        colour = np.array(COLOURS[numbers[label] % len(COLOURS)])
        pixels[mask] = pixels[mask] * (1 - strength) + colour * strength
    return np.rint(pixels).astype(np.uint8)


def draw_heat(
    picture: UInt8[np.ndarray, "H W C"], heat: Float[Tensor, "h w"], strength: float = 0.6
) -> UInt8[np.ndarray, "H W 3"]:
    """A copy of the picture under a heat map in [0, 1], interpolated to its size.

    Raises:
        ValueError: values outside [0, 1] (divide by the largest), or a strength outside it.
    """
    values = heat.detach().float().cpu().numpy()
    if values.ndim != 2 or not values.size or not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"a heat map must be (h, w) in [0, 1], not {tuple(heat.shape)} "
                         f"from {values.min() if values.size else 0:g} to "
                         f"{values.max() if values.size else 0:g}")  # fmt: skip
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], not {strength}")
    image = _image(picture)
    smooth = np.asarray(Image.fromarray(values).resize(image.size, Image.Resampling.BILINEAR))
    steps = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(smooth, steps, channel) for channel in HEAT.T], -1)  # (H, W, 3)
    mixed = np.asarray(image) * (1 - strength) + colours * strength
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def _image(picture: UInt8[np.ndarray, "H W C"]) -> Image.Image:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (1, 3):
        raise ValueError(f"a picture must be bytes (H, W, 3), not {picture.dtype} {picture.shape}")
    whole = np.repeat(picture, 3 // picture.shape[2], axis=2)
    return Image.fromarray(np.ascontiguousarray(whole))


def _check(boxes: Tensor) -> None:
    if boxes.shape[-1:] != (4,) or not boxes.is_floating_point():
        raise ValueError(f"boxes must be floats (N, 4), not {boxes.dtype} {tuple(boxes.shape)}")
