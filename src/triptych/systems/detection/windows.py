"""The sliding window: how well each part of a picture fits each label, from crops of it.

The picture is cut into square patches; a window of k x k patches slides over them; what a window
scores goes into every patch that it covers, and each patch is averaged by how often it was covered.
Where patches do not tile the picture, the last ones are cut off at its border, the last windows are
moved back inside, and a patch counts as covered by the share of it that is: so nothing is squashed
and nothing is left out at any shape.

Dimensions: H height, W width, L labels, E width of the shared space, n and m patches down and
across, v and u windows down and across, N = v u of one size.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych.systems.detection.heatmaps import Edges

CUT = 16
"""Patches along the shorter side, where the request does not say: with 64 pixels a side four pixels
each, on a photo of 640 x 480 thirty.
"""
SHARES = (0.25, 0.375)
"""Sides of windows, in shorter sides of the picture, where the request does not say."""
ENLARGED = 4
"""A window that the model's transform would enlarge more than so often shows it only blur."""


@dataclass(frozen=True)
class Grid:
    """Windows of one size: every row of `tops` with every column of `lefts`."""

    side: int
    """Pixels; never more than the picture's shorter side."""
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def crops(self, picture: UInt8[np.ndarray, "H W C"]) -> Iterator[UInt8[np.ndarray, "S S C"]]:
        """What the windows show, row by row; views of the picture, not copies."""
        for top in self.tops:
            for left in self.lefts:
                yield picture[top : top + self.side, left : left + self.side]


@dataclass(frozen=True)
class Plan:
    """All windows of a picture, and its patches."""

    rows: tuple[int, ...]
    """Where patches begin, and the last one ends, in pixels."""
    columns: tuple[int, ...]
    grids: tuple[Grid, ...]

    def __len__(self) -> int:
        return sum(len(grid) for grid in self.grids)

    def crops(self, picture: UInt8[np.ndarray, "H W C"]) -> Iterator[UInt8[np.ndarray, "S S C"]]:
        """What every window shows, in the order that `averaged` takes scores in."""
        for grid in self.grids:
            yield from grid.crops(picture)


def plan(
    height: int, width: int, model_size: int, *, patch: int = 0, windows: Sequence[int] = (),
    stride: int = 1,
) -> Plan:  # fmt: skip
    """Windows for a picture of this many pixels.

    Args:
        model_size: pixels of a side of what the model looks at; small windows follow from it.
        patch: side of a patch in pixels; 0 cuts the shorter side into 16.
        windows: sides of windows in patches; empty derives two.
        stride: by how many patches a window moves on.

    Raises:
        ValueError: a number below its least, or a patch that is larger than the picture.
    """
    shorter = min(height, width)
    if shorter < 1:
        raise ValueError(f"a picture of {width} x {height} pixels has no windows")
    side = patch or max(1, round(shorter / CUT))
    if not 1 <= side <= shorter:
        raise ValueError(f"patches of {side} pixels do not fit into {width} x {height}")
    if stride < 1 or any(k < 1 for k in windows):
        raise ValueError(f"windows {tuple(windows)} and stride {stride} are patches, at least 1")
    if not windows:
        least = min(shorter, model_size / ENLARGED)
        windows = [max(1, round(max(share * shorter, least) / side)) for share in SHARES]
    sides = dict.fromkeys(min(k * side, shorter) for k in windows)
    grids = tuple(
        Grid(s, _starts(height, s, stride * side), _starts(width, s, stride * side)) for s in sides
    )
    return Plan(_edges(height, side), _edges(width, side), grids)


def _starts(length: int, side: int, step: int) -> tuple[int, ...]:
    """First pixels: `step` apart, the last one such that the window ends at the border."""
    last = length - side
    return tuple(dict.fromkeys((*range(0, last, step), last)))


def _edges(length: int, side: int) -> tuple[int, ...]:
    return (*range(0, length, side), length)


def edges(plan: Plan) -> tuple[Edges, Edges]:
    """Where the patches of `averaged` begin and end, down and across, in pixels."""
    return np.array(plan.rows, dtype=np.float64), np.array(plan.columns, dtype=np.float64)


def averaged(plan: Plan, scores: Float[Tensor, "N L"]) -> Float[Tensor, "L n m"]:
    """Every patch's average over the windows that cover it.

    Windows of all sizes count alike. A patch that is covered in part counts in part, and one that
    no window reaches (a stride above the window) is 0.

    Raises:
        ValueError: not one row of scores a window.
    """
    if len(scores) != len(plan):
        raise ValueError(f"{len(scores)} rows of scores for {len(plan)} windows")
    down, across = edges(plan)
    total = scores.new_zeros(scores.shape[1], len(down) - 1, len(across) - 1)
    count = scores.new_zeros(total.shape[1:])
    parts = scores.split([len(grid) for grid in plan.grids])
    for grid, part in zip(plan.grids, parts, strict=True):
        rows = covered(down, grid.tops, grid.side).to(scores)  # (v, n)
        columns = covered(across, grid.lefts, grid.side).to(scores)  # (u, m)
        table = part.T.reshape(-1, len(grid.tops), len(grid.lefts))  # (L, v, u)
        total += rows.T @ table @ columns
        count += rows.sum(0)[:, None] * columns.sum(0)
    return total / count.where(count > 0, 1.0)


def covered(edges: Edges, starts: Sequence[int], side: int) -> Float[Tensor, "v n"]:
    """Which share of every patch, along one axis, each window covers."""
    first = np.array(starts, dtype=np.float64)[:, None]
    shared = np.minimum(edges[1:], first + side) - np.maximum(edges[:-1], first)
    return torch.from_numpy(shared.clip(min=0) / np.diff(edges))


def batches(plan: Plan, picture: UInt8[np.ndarray, "H W C"], size: int) -> Iterator[
    list[UInt8[np.ndarray, "S S C"]]
]:  # fmt: skip
    """The windows' crops, `size` at a time."""
    waiting: list[np.ndarray] = []
    for crop in plan.crops(picture):
        waiting.append(crop)
        if len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def count_batches(plan: Plan, size: int) -> int:
    """How many times `batches` yields."""
    return math.ceil(len(plan) / size)
