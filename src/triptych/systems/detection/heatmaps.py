"""From what was scored here and there to a heat map, and from a heat map to boxes.

A heat map has one value a cell of a regular grid over the whole picture. A box is where a peak
stands: the connected cells around it that reach a share of its height. So one label has as many
boxes as peaks, and two objects are two boxes where the map dips between them.

Dimensions: L labels, h and w cells of a map, N boxes, n places along one side.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from triptych.vision.boxes import suppress

Edges = Float[np.ndarray, " _edges"]
"""Where n cells begin, and the last one ends, in pixels."""


class Found(NamedTuple):
    """Boxes, best first."""

    boxes: Float[Tensor, "N 4"]  # relative corners
    scores: Float[Tensor, " N"]
    labels: Int64[Tensor, " N"]


def regular(
    values: Float[Tensor, "L n m"],
    edges: tuple[Edges, Edges],
    picture: tuple[int, int],
    size: tuple[int, int],
) -> Float[Tensor, "L h w"]:
    """Values of cells as a map of `size` cells over a picture, linear between the middles of cells
    and constant beyond the outermost.

    `edges`, down and across, and `picture`, its height and width, are in the same pixels.
    """
    down = between(edges[0], picture[0], size[0])
    across = between(edges[1], picture[1], size[1])
    return down.to(values) @ values @ across.to(values).T


def between(edges: Edges, length: int, count: int) -> Float[Tensor, "{count} n"]:
    """The matrix that interpolates from cells with these edges to `count` equal ones, which
    together are `length` long.
    """
    middles = (edges[1:] + edges[:-1]) / 2
    wanted = (np.arange(count) + 0.5) * length / count
    return torch.from_numpy(_linear(middles, wanted)).float()


def _linear(known: Float[np.ndarray, " n"], wanted: Float[np.ndarray, " m"]) -> np.ndarray:
    """Row i mixes the two known places around wanted place i."""
    mixing = np.zeros((len(wanted), len(known)))
    right = np.searchsorted(known, wanted).clip(1, max(1, len(known) - 1))
    rows = np.arange(len(wanted))
    if len(known) == 1:
        mixing[:] = 1
        return mixing
    share = (wanted - known[right - 1]) / (known[right] - known[right - 1])
    mixing[rows, right] = share.clip(0, 1)
    mixing[rows, right - 1] = 1 - share.clip(0, 1)
    return mixing


def stretched(heat: Float[Tensor, "L h w"]) -> Float[Tensor, "L h w"]:
    """Each map from its mean, which becomes 0 as all below does, to its largest value, 1."""
    above = (heat - heat.mean((1, 2), keepdim=True)).clamp(min=0)
    most = above.amax((1, 2), keepdim=True)
    # rounding is no heat: a map without any relief stays cold
    flat = most <= 1e-6 * heat.abs().amax((1, 2), keepdim=True)
    return torch.where(flat, 0.0, above / most.where(~flat, 1.0))


def found(
    heat: Float[Tensor, "L h w"], threshold: float, extent: float, overlap: float, limit: int
) -> Found:
    """The boxes of every label, after non-maximum suppression.

    Args:
        threshold: the least height of a peak.
        extent: the share of its peak that a cell of a box has at least, above 0 to 1.
        overlap: intersection over union from which on the worse box of a label goes.
        limit: boxes of a label at most.
    """
    boxes: list[Tensor] = []
    scores: list[Tensor] = []
    labels: list[int] = []
    for label in (heat.amax((1, 2)) >= threshold).nonzero()[:, 0].tolist():
        alone, heights = peaks(heat[label], threshold, extent)
        kept = suppress(alone, heights, threshold=overlap)[:limit]
        boxes.append(alone[kept])
        scores.append(heights[kept])
        labels += [label] * len(kept)
    if not labels:
        return Found(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64))
    order = torch.cat(scores).argsort(descending=True, stable=True)
    return Found(torch.cat(boxes)[order], torch.cat(scores)[order], torch.tensor(labels)[order])


def peaks(
    heat: Float[Tensor, "h w"], threshold: float, extent: float
) -> tuple[Float[Tensor, "N 4"], Float[Tensor, " N"]]:
    """The box around every peak of one map, and how high it is, highest first.

    A peak is the highest cell of its own box: a bump that is connected at `extent` of its height
    with something higher is a part of that.

    Raises:
        ValueError: an extent outside (0, 1].
    """
    if not 0 < extent <= 1:
        raise ValueError(f"extent is a share of a peak, above 0 to 1, not {extent}")
    values = heat.detach().float().cpu()
    around = F.max_pool2d(values[None, None], 3, 1, 1)[0, 0]
    places = ((values == around) & (values >= threshold)).nonzero()
    values_at = values[places[:, 0], places[:, 1]]
    order = values_at.argsort(descending=True, stable=True)
    cells, seen = values.numpy(), np.zeros(values.shape, dtype=bool)
    boxes, heights = [], []
    for row, column in places[order].tolist():
        height = cells[row, column]
        if height <= 0 or seen[row, column]:
            continue
        region = component(cells >= extent * height, (row, column))
        seen |= region & (cells <= height)
        if cells[region].max() > height:
            continue
        boxes.append(_box(region))
        heights.append(float(height))
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(heights)


def component(mask: Bool[np.ndarray, "h w"], cell: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The cells that are connected with one of them along rows and columns."""
    region = np.zeros_like(mask)
    region[cell] = mask[cell]
    across, down = _runs(mask), _runs(mask.T).T
    count = -1
    while count != (count := int(region.sum())):  # as often as the region turns a corner
        for runs in (across, down):
            touched = np.zeros(mask.size + 1, dtype=bool)
            touched[runs[region]] = True
            region = touched[runs] & mask
    return region


def _runs(mask: Bool[np.ndarray, "h w"]) -> np.ndarray:
    """Every cell's number of its run: unbroken cells of one row."""
    starts = mask.copy()
    starts[:, 1:] &= ~mask[:, :-1]
    return starts.cumsum().reshape(mask.shape)


def _box(region: Bool[np.ndarray, "h w"]) -> Sequence[float]:
    """The outer edges of a region's cells, relative."""
    height, width = region.shape
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    return (
        columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
    )  # fmt: skip
