"""Sliding windows: scores of the patches of a picture from scores of crops.

The picture is divided into square patches, and windows of k x k patches slide over them. A patch
gets the mean score of the windows that cover it. If patches do not tile the picture, the last ones
are smaller, the last windows are moved back inside, and a window that covers a part of a patch has
that weight. So pictures of any shape are covered completely, without distortion.

Dimensions: H height, W width, L labels, E width of the shared space, n and m patches down and
across, v and u windows down and across, N = v u of one size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych.systems.detection.heatmaps import Edges

SHORTER_SIDE = 16
"""Default number of patches along the shorter side: patches of 4 pixels at 64 x 64, of 30 at
640 x 480.
"""
WINDOWS = (0.25, 0.375)
"""Default sides of windows, as shares of the picture's shorter side."""
MAX_ENLARGED = 4
"""Default windows are not so small that the model's transform enlarges them more than this: they
would be blurred.
"""


@dataclass(frozen=True)
class Grid:
    """Windows of one size, at all combinations of `tops` and `lefts`."""

    side: int
    """In pixels, at most the picture's shorter side."""
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def crops(self, picture: UInt8[np.ndarray, "H W C"]) -> Iterator[UInt8[np.ndarray, "S S C"]]:
        """The crops, row by row, as views of the picture."""
        for top in self.tops:
            for left in self.lefts:
                yield picture[top : top + self.side, left : left + self.side]


@dataclass(frozen=True)
class Plan:
    """The patches of a picture and all of its windows."""

    rows: tuple[int, ...]
    """Where patches begin, and the last one ends, in pixels."""
    columns: tuple[int, ...]
    grids: tuple[Grid, ...]

    def __len__(self) -> int:
        return sum(len(grid) for grid in self.grids)

    def crops(self, picture: UInt8[np.ndarray, "H W C"]) -> Iterator[UInt8[np.ndarray, "S S C"]]:
        """The crops of all windows, in the order in which `average_windows` takes scores."""
        for grid in self.grids:
            yield from grid.crops(picture)


def plan_windows(
    height: int, width: int, model_size: int, *, patch: int = 0, windows: Sequence[int] = (),
    stride: int = 1,
) -> Plan:  # fmt: skip
    """The windows of a picture of this height and width.

    Args:
        model_size: side of the model's input in pixels, which limits how small default windows are.
        patch: side of a patch in pixels; 0 divides the shorter side into 16.
        windows: sides of windows in patches; empty for two default sizes.
        stride: distance between windows in patches.

    Raises:
        ValueError: a number below its minimum, or a patch larger than the picture.
    """
    shorter = min(height, width)
    if shorter < 1:
        raise ValueError(f"a picture of {width} x {height} pixels is empty")
    side = patch or max(1, round(shorter / SHORTER_SIDE))
    if not 1 <= side <= shorter:
        raise ValueError(
            f"patches of {side} pixels do not fit into a picture of {width} x {height} pixels"
        )
    if stride < 1 or any(k < 1 for k in windows):
        raise ValueError(
            f"windows and stride are at least 1 patch, not {tuple(windows)} and {stride}"
        )
    if not windows:
        least = min(shorter, model_size / MAX_ENLARGED)
        windows = [max(1, round(max(share * shorter, least) / side)) for share in WINDOWS]
    sides = dict.fromkeys(min(k * side, shorter) for k in windows)
    grids = tuple(
        Grid(s, _starts(height, s, stride * side), _starts(width, s, stride * side)) for s in sides
    )
    return Plan(_edges(height, side), _edges(width, side), grids)


def _starts(length: int, side: int, step: int) -> tuple[int, ...]:
    """The first pixels of windows, `step` apart; the last window ends at the border."""
    last = length - side
    return tuple(dict.fromkeys((*range(0, last, step), last)))


def _edges(length: int, side: int) -> tuple[int, ...]:
    return (*range(0, length, side), length)


def patch_edges(plan: Plan) -> tuple[Edges, Edges]:
    """Where patches begin and end, down and across, in pixels."""
    return np.array(plan.rows, dtype=np.float64), np.array(plan.columns, dtype=np.float64)


def average_windows(plan: Plan, scores: Float[Tensor, "N L"]) -> Float[Tensor, "L n m"]:
    """The mean score of every patch over the windows that cover it.

    Windows of all sizes have the same weight; one that covers a part of a patch has that share of
    it. A patch without a window (the stride is larger than the window) is 0.

    Raises:
        ValueError: the number of scores is not the number of windows.
    """
    if len(scores) != len(plan):
        raise ValueError(f"{len(scores)} rows of scores for {len(plan)} windows")
    down, across = patch_edges(plan)
    total = scores.new_zeros(scores.shape[1], len(down) - 1, len(across) - 1)
    count = scores.new_zeros(total.shape[1:])
    parts = scores.split([len(grid) for grid in plan.grids])
    for grid, part in zip(plan.grids, parts, strict=True):
        rows = coverage(down, grid.tops, grid.side).to(scores)  # (v, n)
        columns = coverage(across, grid.lefts, grid.side).to(scores)  # (u, m)
        table = part.T.reshape(-1, len(grid.tops), len(grid.lefts))  # (L, v, u)
        total += rows.T @ table @ columns
        count += rows.sum(0)[:, None] * columns.sum(0)
    return total / count.where(count > 0, 1.0)


def coverage(edges: Edges, starts: Sequence[int], side: int) -> Float[Tensor, "v n"]:
    """The share of every patch that each window covers, along one axis."""
    first = np.array(starts, dtype=np.float64)[:, None]
    shared = np.minimum(edges[1:], first + side) - np.maximum(edges[:-1], first)
    return torch.from_numpy(shared.clip(min=0) / np.diff(edges))


def batch_crops(plan: Plan, picture: UInt8[np.ndarray, "H W C"], size: int) -> Iterator[
    list[UInt8[np.ndarray, "S S C"]]
]:  # fmt: skip
    """The crops of all windows in batches of `size`."""
    waiting: list[np.ndarray] = []
    for crop in plan.crops(picture):
        waiting.append(crop)
        if len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting
