"""Timestep embeddings, positions on a grid, and rotary positions.

Dimensions: B batch, D width, H heads, T positions, P places of a grid.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor
from torch.nn import functional as F


def timestep_embedding(time: Num[Tensor, " B"], dim: int) -> Float[Tensor, "B D"]:
    """Sinusoidal embedding: cosines, then sines, of geometric frequencies, in at least float32.

    From 1 to nearly 1 / 10,000 radians a step (arXiv:2006.11239, after arXiv:1706.03762). `time`
    need not be whole; an odd `dim` ends with a zero.
    """
    if not time.is_floating_point() or torch.finfo(time.dtype).bits < 32:
        time = time.float()
    half = dim // 2
    # in float32, and in this order, as published networks were trained: 1e-7 here is 1e-4 at 1,000
    steps = -math.log(10_000.0) * torch.arange(half, dtype=torch.float32, device=time.device)
    angles = time[:, None] * (steps / half).exp()  # (B, D / 2)
    waves = [angles.cos(), angles.sin()]
    if dim % 2:
        waves.append(angles.new_zeros(len(time), 1))
    return torch.cat(waves, dim=1)


def resize_grid(
    position: Float[Tensor, "P D"],
    size: tuple[int, int],
    *,
    mode: str = "bicubic",
    antialias: bool = False,
) -> Float[Tensor, "Q D"]:
    """Learned positions of a square grid, interpolated to another height and width.

    Row-major, as patches are. Unchanged if the size is already the requested one.
    """
    side = math.isqrt(len(position))
    if size == (side, side):
        return position
    grid = position.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=size, mode=mode, antialias=antialias)
    return resized.flatten(2)[0].T.to(position.dtype)


def neighbour_mask(grid: tuple[int, int], reach: int) -> Bool[Tensor, "P P"]:
    """Attention mask of a grid: True up to `reach` rows and columns away, itself included."""
    row, column = (
        axis.flatten() for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    )
    apart = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
    return apart <= reach


def rotary_angles(
    positions: Int64[Tensor, "#B T"], width: int, base: float, factor: float = 1.0
) -> tuple[Float[Tensor, "#B 1 T D"], Float[Tensor, "#B 1 T D"]]:
    """Cosines and sines by which `rotate` turns heads of this width, in float32.

    Frequencies are base^(-2i/width) (arXiv:2104.09864); `factor` stretches positions for longer
    texts (arXiv:2306.15595).
    """
    even = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device)
    frequencies = 1.0 / (base ** (even / width)) / factor
    angles = positions[:, None, :, None].float() * frequencies  # (B, 1, T, D / 2)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "B H T D"], cos: Float[Tensor, "#B 1 T D"], sin: Float[Tensor, "#B 1 T D"]
) -> Float[Tensor, "B H T D"]:
    """Rotary positions: turns the pairs (i, i + width / 2) of every head, as NeoX and Gemma do."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
