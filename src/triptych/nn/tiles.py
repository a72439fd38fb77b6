"""A network over pictures of any size, in overlapping tiles that are blended without seams.

Dimensions: B batch, C channels, O output channels, H height, W width, N tiles along one side, L
pixels along it.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def pad_to_multiple(image: Float[Tensor, "B C H W"], step: int) -> Float[Tensor, "B C H2 W2"]:
    """Pads height and width to multiples of `step`, repeating the last row and column."""
    height, width = image.shape[2:]
    if height % step or width % step:
        return F.pad(image, (0, -width % step, 0, -height % step), mode="replicate")
    return image


def apply_in_tiles(
    network: Callable[[Tensor], Tensor],
    x: Float[Tensor, "B C H W"],
    *,
    side: int,
    overlap: int,
    shrink: int = 1,
    grow: int = 1,
) -> Float[Tensor, "B O H2 W2"]:
    """Applies `network` to tiles of at most `side` pixels, in the memory of one tile.

    Each output pixel is a weighted mean of the tiles that cover it; a tile's weight rises linearly
    from 0 at its border to 1 over `overlap` pixels, except at the borders of the picture. A picture
    that fits into one tile is one call of the network.

    The network shrinks each side by `shrink`, or enlarges it by `grow`; the sides of `x`, `side`
    and `overlap` must be multiples of `shrink`, and `overlap` less than `side`.
    """
    tops, lefts = (tile_starts(length, side, overlap, shrink) for length in x.shape[2:])
    if len(tops) == len(lefts) == 1:
        return network(x)

    def scaled(pixels: int) -> int:
        return pixels * grow // shrink

    size = [scaled(length) for length in x.shape[2:]]
    rows, columns = (
        tile_weights([scaled(start) for start in places], scaled(side), scaled(overlap), length)
        for places, length in zip((tops, lefts), size, strict=True)
    )  # (N, L)
    total = None
    for top, row in zip(tops, rows.to(x.device), strict=True):
        for left, column in zip(lefts, columns.to(x.device), strict=True):
            tile = network(x[:, :, top : top + side, left : left + side])
            if total is None:
                kind = torch.promote_types(tile.dtype, torch.float32)  # sums of many small shares
                total = tile.new_zeros(*tile.shape[:2], *size, dtype=kind)
            down = slice(scaled(top), scaled(top) + tile.shape[2])
            across = slice(scaled(left), scaled(left) + tile.shape[3])
            total[:, :, down, across] += tile * (row[down, None] * column[across])
    assert total is not None
    return total.to(tile.dtype)


def tile_starts(length: int, side: int, overlap: int, step: int = 1) -> list[int]:
    """First pixels of the tiles, multiples of `step`: as few as the overlap allows, even."""
    if length <= side:
        return [0]
    count = -(-(length - overlap) // (side - overlap))
    spare = (length - side) // step
    return [spare * tile // (count - 1) * step for tile in range(count)]


def tile_weights(places: list[int], side: int, overlap: int, length: int) -> Float[Tensor, "N L"]:
    """The weight of each tile at each pixel; the weights of a pixel sum to 1."""
    weights = torch.zeros(len(places), length)
    for weight, start in zip(weights, places, strict=True):
        ramp = torch.arange(0.5, min(side, length)).div(max(overlap, 1))
        inside = torch.ones_like(ramp)
        if start > 0:
            inside = inside.minimum(ramp)
        if start + side < length:
            inside = inside.minimum(ramp.flip(0))
        weight[start : start + len(inside)] = inside
    return weights / weights.sum(0)
