"""What is done to the small pictures that upsamplers are trained on (arXiv:2204.06125, 2.1).

The decoder's pictures are not quite real ones: an upsampler that has only seen those sharpens what
is wrong with them. The paper blurs the first upsampler's pictures, and degrades the second's as
BSRGAN does (arXiv:2103.14006): blur, noise, other sizes and JPEG, in random order and strength.

Dimensions: B pictures, C channels, H height, W width.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Degradation = Literal["none", "blur", "hard"]
KERNEL, SIGMA = 3, 0.6  # of the paper's blur
BLURRED = 0.5  # share of pictures, as the paper's reimplementations have it
LUMINANCE = (  # the quantisation table of JPEG's specification, annex K
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip


def degrade(small: Float[Tensor, "B C H W"], kind: Degradation) -> Float[Tensor, "B C H W"]:
    """Small pictures in [-1, 1] as the upsampler is trained on them; random for each picture, from
    torch's default generator.
    """
    if kind == "none":
        return small
    if kind == "blur":
        blurred = gaussian_blur(small, small.new_full((len(small),), SIGMA), KERNEL)
        chosen = torch.rand(len(small), device=small.device) < BLURRED
        return blurred.where(chosen.view(-1, 1, 1, 1), small)
    return torch.cat([_degrade_hard(picture[None]) for picture in small])


def gaussian_blur(
    x: Float[Tensor, "B C H W"], sigma: Float[Tensor, " B"], kernel: int
) -> Float[Tensor, "B C H W"]:
    """Blurred with a Gaussian of this deviation in pixels, cut off at an odd kernel; pixels at the
    edges repeat beyond them.
    """
    places = torch.arange(kernel, device=x.device, dtype=x.dtype) - kernel // 2
    weights = torch.exp(-((places / sigma[:, None]) ** 2) / 2)
    weights = weights / weights.sum(1, keepdim=True)  # (B, K)
    reach, channels = kernel // 2, x.shape[1]
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    joined = padded.flatten(0, 1)[None]  # a group of filters for each picture
    rows = weights.repeat_interleave(channels, 0)
    across = F.conv2d(joined, rows[:, None, None, :], groups=len(rows))
    down: Tensor = F.conv2d(across, rows[:, None, :, None], groups=len(rows))
    return down.view(x.shape)


def _degrade_hard(picture: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 C H W"]:
    """One picture: four degradations in random order, each with probability 0.7."""
    size = picture.shape[2:]
    order = torch.randperm(len(HARD)).tolist()
    for number in order:
        if _uniform(0, 1) < 0.7:
            picture = HARD[number](picture)
    if picture.shape[2:] != size:
        picture = _resize(picture, (size[0], size[1]))
    return picture.clamp(-1, 1)


def _blur(picture: Tensor) -> Tensor:
    return gaussian_blur(picture, picture.new_tensor([_uniform(0.3, 1.2)]), 7)


def _shrink_or_enlarge(picture: Tensor) -> Tensor:
    scale = math.exp(_uniform(math.log(0.5), math.log(1.5)))
    height, width = (max(4, round(side * scale)) for side in picture.shape[2:])
    return _resize(picture, (height, width))


def _resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    mode = ("nearest", "bilinear", "bicubic")[int(_uniform(0, 3)) % 3]
    smooth = mode != "nearest"
    return F.interpolate(picture, size, mode=mode, antialias=smooth)


def _add_noise(picture: Tensor) -> Tensor:
    return picture + _uniform(0.01, 0.1) * torch.randn_like(picture)


def _compress(picture: Tensor) -> Tensor:
    return jpeg(picture, _uniform(30, 95))


HARD: tuple[Callable[[Tensor], Tensor], ...] = (_blur, _shrink_or_enlarge, _add_noise, _compress)


def jpeg(x: Float[Tensor, "B C H W"], quality: float) -> Float[Tensor, "B C H W"]:
    """What JPEG's quantisation loses at this quality, 1 to 100: the cosine transform of blocks of
    8 x 8 pixels, rounded by its table for luminance, in every channel.
    """
    height, width = x.shape[2:]
    padded = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
    padded = padded * 127.5 - 0.5  # bytes, less 128
    blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8)  # (B, C, H / 8, W / 8, 8, 8)
    scale = 50 / quality if quality < 50 else 2 - quality / 50
    table = (torch.tensor(LUMINANCE, dtype=x.dtype, device=x.device) * scale).round().clamp(1, 255)
    basis = cosine_basis(x)
    numbers = basis @ blocks @ basis.T
    rounded = (numbers / table).round() * table
    back = (basis.T @ rounded @ basis + 0.5) / 127.5
    rows, columns = padded.shape[2], padded.shape[3]
    joined = back.permute(0, 1, 2, 4, 3, 5).reshape(*x.shape[:2], rows, columns)
    return joined[:, :, :height, :width]


def cosine_basis(like: Tensor) -> Float[Tensor, "8 8"]:
    """The orthonormal cosine transform of eight numbers."""
    places = torch.arange(8, dtype=like.dtype, device=like.device)
    basis = torch.cos((2 * places[None] + 1) * places[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
