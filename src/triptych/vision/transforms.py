"""Resize, crop and normalise pictures, as each family of models does it.

Pixels equal those of Pillow, and so of the published processors, to 1 of 255. Pictures are shrunk
by torch's byte kernel on channels-last pixels, four to ten times as fast as Pillow; for thin ones
only the cropped part is computed. A batch is resized in as many threads as torch has.

Dimensions: B pictures, H height, W width, C channels (1 or 3), S side, N patches, P patch side.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from triptych.fields import bounded
from triptych.vision.images import open_picture

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # Radford 2021, of its training pictures
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)  # SigLIP: [-1, 1]

Interpolation = Literal["bicubic", "bilinear"]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
WASTE = 4  # above this many resized pixels per cropped pixel, only the crop is computed

Item = TypeVar("Item")


@dataclass(frozen=True)
@bounded
class ImageTransform:
    """Preprocessing of a model with pictures of one size; the defaults are CLIP's at 224."""

    size: int = 224
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    resize: Literal["shortest", "squash"] = "shortest"
    """`shortest`: the shorter side becomes `size` (CLIP); `squash`: both sides do (SigLIP)."""
    interpolation: Interpolation = "bicubic"
    crop: bool = True
    """Crop the centre square; required with `shortest`, no effect with `squash`."""
    centre: Literal["down", "even"] = "down"
    """Rounding of a half-pixel offset: down (transformers) or to even (OpenAI, open_clip)."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")
        if self.resize == "shortest" and not self.crop:
            raise ValueError("resize 'shortest' without crop gives pictures of different shapes")
        _check_scales(self.mean, self.std)

    def __call__(
        self, pictures: Sequence[UInt8[np.ndarray, "_H _W _C"]]
    ) -> Float[Tensor, "B 3 S S"]:
        """Resize, crop and normalise; grey pictures become three equal channels.

        Raises:
            ValueError: something is not an 8-bit picture (H, W, 1 or 3).
        """
        return self._batch(pictures, self._pixels)

    def open(self, files: Sequence[Path | bytes]) -> Float[Tensor, "B 3 S S"]:
        """The same for picture files, which are decoded in the same threads.

        Raises:
            ValueError: a file is not an undamaged picture; the message names it.
        """
        return self._batch(files, lambda file: self._pixels(_open(file)))

    def normalise(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Images in [-1, 1] as the model reads them, without resizing."""
        mean, std = _columns(self.mean, images), _columns(self.std, images)
        return (images * 0.5 + (0.5 - mean)) / std

    def inverse(self, normalised: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """The inverse of `normalise`: images in [-1, 1]."""
        mean, std = _columns(self.mean, normalised), _columns(self.std, normalised)
        return (normalised * std + (mean - 0.5)) * 2

    def _batch(
        self, items: Sequence[Item], pixels: Callable[[Item], UInt8[Tensor, "S S C"]]
    ) -> Float[Tensor, "B 3 S S"]:
        images = torch.empty(len(items), 3, self.size, self.size)

        def fill(number: int) -> None:  # one picture at a time stays in the processor's cache
            _normalise(pixels(items[number]), self.mean, self.std, images[number])

        _in_threads(fill, len(items))
        return images

    def _pixels(self, picture: UInt8[np.ndarray, "H W C"]) -> UInt8[Tensor, "S S C"]:
        height, width = _sides(picture)
        side = self.size
        if self.resize == "squash":
            return _resize(picture, (side, side), (0, 0, side, side), self.interpolation)
        short, long = min(height, width), max(height, width)
        longer = int(side * long / short)
        left = self._crop_offset(longer - side)
        if height > width:
            box = (left, 0, side, side)
            return _resize(picture, (longer, side), box, self.interpolation)
        return _resize(picture, (side, longer), (0, left, side, side), self.interpolation)

    def _crop_offset(self, spare: int) -> int:
        return round(spare / 2) if self.centre == "even" else spare // 2


class Patches(NamedTuple):
    """Pictures of different shapes as sequences of patches, padded to one length."""

    patches: Float[Tensor, "B N D"]  # D = P * P * 3: row, column, colour
    mask: Bool[Tensor, "B N"]  # False for padding
    grid: Int64[Tensor, "B 2"]  # patches down and across


@dataclass(frozen=True)
@bounded
class PatchTransform:
    """SigLIP 2's NaFlex: pictures keep their shape and become at most `patches` patches.

    A picture is resized, up or down, to the largest whole number of patches per side that fits
    (Tschannen 2025, arXiv:2502.14786, section 2.4.2).
    """

    patch: int = 16
    patches: int = 256
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.patch < 1 or self.patches < 1:
            raise ValueError(
                f"patches and their side must be at least 1, not {self.patches} and {self.patch}"
            )
        _check_scales(self.mean, self.std)

    def __call__(self, pictures: Sequence[UInt8[np.ndarray, "_H _W _C"]]) -> Patches:
        """Patches, mask and grid; raises ValueError for anything but 8-bit pictures."""
        side, count = self.patch, len(pictures)
        shapes = [patch_grid(*_sides(p), side, self.patches) for p in pictures]
        values = torch.zeros(count, self.patches, side * side * 3)
        mask = torch.zeros(count, self.patches, dtype=torch.bool)

        def fill(number: int) -> None:
            rows, columns = shapes[number]
            size = (rows * side, columns * side)
            pixels = _resize(pictures[number], size, (0, 0, *size), self.interpolation)
            image = torch.empty(3, *size)
            _normalise(pixels, self.mean, self.std, image)
            cut = image.unflatten(2, (columns, side)).unflatten(1, (rows, side))  # (3, R, P, K, P)
            values[number, : rows * columns] = cut.permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)
            mask[number, : rows * columns] = True

        _in_threads(fill, count)
        return Patches(values, mask, torch.tensor(shapes, dtype=torch.int64).reshape(count, 2))


def patch_grid(height: int, width: int, patch: int, patches: int) -> tuple[int, int]:
    """Rows and columns of patches for a picture of this shape, at most `patches` in all.

    The scale is bisected to 1e-5, as in the published processor: the tolerance decides between
    neighbouring grids.
    """
    low, high = 1e-6, 100.0

    def sides(scale: float) -> tuple[int, int]:
        down, across = math.ceil(height * scale / patch), math.ceil(width * scale / patch)
        return max(1, down), max(1, across)

    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(sides(middle)) <= patches else (low, middle)
    return sides(low)


def _resize(
    picture: UInt8[np.ndarray, "H W C"],
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    interpolation: Interpolation,
) -> UInt8[Tensor, "h w C"]:
    """Resize to `size` (height, width) and crop `box` (top, left, height, width).

    Columns first, rounded to bytes, then rows: torch's order, and Pillow's before version 13, which
    does rows first where that is cheaper; where noise is clipped, the two differ.
    """
    pixels = torch.from_numpy(np.require(picture, requirements=["C", "W"]))  # (H, W, C)
    top, left, rows, columns = box
    shrinks = size[0] <= picture.shape[0] and size[1] <= picture.shape[1]
    if shrinks and size[0] * size[1] <= WASTE * rows * columns:
        return _shrink(pixels, size, interpolation)[top : top + rows, left : left + columns]
    pixels = _resize_rows(pixels.transpose(0, 1), size[1], left, columns, interpolation)
    return _resize_rows(pixels.transpose(0, 1), size[0], top, rows, interpolation)


def _resize_rows(
    pixels: UInt8[Tensor, "H W C"], size: int, first: int, count: int, interpolation: Interpolation
) -> UInt8[Tensor, "h W C"]:
    """Resize to `size` rows and keep rows `first` to `first + count`.

    When enlarging, torch's byte kernel is up to 2 of 255 off Pillow, so this uses Pillow; for thin
    pictures (1 x 10,000 at 224 x 2,240,000) only the cropped rows are computed, by Pillow's rules.
    """
    if size == len(pixels):
        return pixels[first : first + count]
    if size <= WASTE * count:
        whole = pixels.expand(-1, -1, 3) if pixels.shape[2] == 1 else pixels
        image = Image.fromarray(np.ascontiguousarray(whole.numpy()))
        image = image.resize((image.width, size), FILTERS[interpolation])
        return torch.from_numpy(np.array(image))[first : first + count]
    start, weights = _weights(len(pixels), size, first, count, interpolation)
    part = pixels[start : start + weights.shape[1]].double()
    summed = (weights @ part.flatten(1)).add_(0.5).floor_().clamp_(0, 255)
    return summed.to(torch.uint8).view(count, *part.shape[1:])


def _shrink(
    pixels: UInt8[Tensor, "H W C"], size: tuple[int, int], interpolation: Interpolation
) -> UInt8[Tensor, "h w C"]:
    planes = pixels.permute(2, 0, 1)[None]  # a channels-last view: the fast case of the kernel
    resized: Tensor = F.interpolate(planes, size, mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0)


def _weights(
    length: int, size: int, first: int, count: int, interpolation: Interpolation
) -> tuple[int, Float[Tensor, "n m"]]:
    """First source pixel, and the weights of source pixels for output pixels `first` to
    `first + count` of `size`.
    """
    scale = length / size
    stretch, radius = max(scale, 1.0), 2 if interpolation == "bicubic" else 1
    centres = (torch.arange(first, first + count, dtype=torch.float64) + 0.5) * scale
    start = max(0, math.floor(centres[0].item() - radius * stretch))
    end = min(length, math.ceil(centres[-1].item() + radius * stretch))
    places = torch.arange(start, end, dtype=torch.float64) + 0.5
    x = ((places - centres[:, None]) / stretch).abs()  # (n, m)
    if interpolation == "bicubic":  # Keys 1981 with a = -1/2, in two pieces
        near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
        weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    else:
        weights = (1 - x).clamp(min=0)
    return start, weights / weights.sum(1, keepdim=True)


def _normalise(
    pixels: UInt8[Tensor, "h w C"],
    mean: Sequence[float],
    std: Sequence[float],
    into: Float[Tensor, "3 h w"],
) -> None:
    """Bytes to (x / 255 - mean) / std, in one multiplication and one addition."""
    into.copy_(pixels.permute(2, 0, 1).contiguous())  # transposing bytes is cheaper than floats
    into.mul_(_columns([1 / (255 * s) for s in std], into))
    into.add_(_columns([-m / s for m, s in zip(mean, std, strict=True)], into))


def _in_threads(work: Callable[[int], None], count: int) -> None:
    threads = min(torch.get_num_threads(), count)
    if threads < 2:
        for number in range(count):
            work(number)
        return
    inference = torch.is_inference_mode_enabled()  # threads do not inherit it

    def run(number: int) -> None:
        with torch.inference_mode(inference):
            work(number)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(count)))  # raises the exceptions of the threads


def _open(file: Path | bytes) -> UInt8[np.ndarray, "H W 3"]:
    try:
        return open_picture(file, channels=3)
    except ValueError as error:
        name = file if isinstance(file, Path) else f"a picture of {len(file):,} bytes"
        raise ValueError(f"{name}: {error}") from None


def _sides(picture: UInt8[np.ndarray, "H W C"]) -> tuple[int, int]:
    shape: tuple[int, ...] = getattr(picture, "shape", ())
    if getattr(picture, "dtype", None) != np.uint8 or len(shape) != 3 or 0 in shape:
        raise ValueError(f"a picture must be bytes (H, W, 3), not {_describe(picture)}")
    if shape[2] not in (1, 3):
        raise ValueError(f"a picture must have 1 or 3 channels (H, W, C), not {_describe(picture)}")
    return shape[0], shape[1]


def _describe(value: object) -> str:
    shape = getattr(value, "shape", None)
    return (
        f"{getattr(value, 'dtype', '')} {tuple(shape)}" if shape is not None else repr(value)[:40]
    )


def _check_scales(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(
            f"mean and std must be 3 numbers, those of std above 0, not {mean} and {std}"
        )


def _columns(values: Sequence[float], like: Tensor) -> Float[Tensor, "3 1 1"]:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(3, 1, 1)
