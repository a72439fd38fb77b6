"""From scores of windows or patches to a heat map, and from a heat map to boxes.

A heat map is a regular grid of cells over the picture. A box encloses the connected cells around a
peak that reach a share of its height. A label has as many boxes as its map has peaks, so two
objects are two boxes where the map dips between them.

Dimensions: L labels, h and w cells of a map, N boxes, n and m cells of any size.
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
"""Where cells begin, and the last one ends, in pixels: one more than there are cells."""


class ScoredBoxes(NamedTuple):
    """Boxes, best first."""

    corners: Float[Tensor, "N 4"]  # xyxy, relative
    scores: Float[Tensor, " N"]
    labels: Int64[Tensor, " N"]  # indices


def resample(
    values: Float[Tensor, "L n m"],
    edges: tuple[Edges, Edges],
    picture: tuple[int, int],
    size: tuple[int, int],
) -> Float[Tensor, "L h w"]:
    """Values of cells as a map of `size` equal cells over a picture: linear between the centres of
    cells, constant outside the outermost centres.

    `edges` (down and across) and `picture` (height and width) are in the same pixels.
    """
    down = interpolation_matrix(edges[0], picture[0], size[0])
    across = interpolation_matrix(edges[1], picture[1], size[1])
    return down.to(values) @ values @ across.to(values).T


def interpolation_matrix(edges: Edges, length: int, count: int) -> Float[Tensor, "{count} n"]:
    """The matrix that interpolates from cells with these edges to `count` equal cells with a total
    length of `length`.
    """
    centres = (edges[1:] + edges[:-1]) / 2
    targets = (np.arange(count) + 0.5) * length / count
    return torch.from_numpy(_linear_weights(centres, targets)).float()


def _linear_weights(
    centres: Float[np.ndarray, " n"], targets: Float[np.ndarray, " m"]
) -> Float[np.ndarray, "m n"]:
    """Row i weighs the two centres around target i."""
    weights = np.zeros((len(targets), len(centres)))
    right = np.searchsorted(centres, targets).clip(1, max(1, len(centres) - 1))
    rows = np.arange(len(targets))
    if len(centres) == 1:
        weights[:] = 1
        return weights
    share = (targets - centres[right - 1]) / (centres[right] - centres[right - 1])
    weights[rows, right] = share.clip(0, 1)
    weights[rows, right - 1] = 1 - share.clip(0, 1)
    return weights


def stretch(heat: Float[Tensor, "L h w"]) -> Float[Tensor, "L h w"]:
    """Scale each map linearly so that its mean is 0 and its maximum 1; values below become 0."""
    above = (heat - heat.mean((1, 2), keepdim=True)).clamp(min=0)
    most = above.amax((1, 2), keepdim=True)
    # a constant map becomes 0: its differences are rounding errors
    flat = most <= 1e-6 * heat.abs().amax((1, 2), keepdim=True)
    return torch.where(flat, 0.0, above / most.where(~flat, 1.0))


def find_boxes(
    heat: Float[Tensor, "L h w"], threshold: float, extent: float, overlap: float, limit: int
) -> ScoredBoxes:
    """The boxes of every label, after non-maximum suppression.

    Args:
        threshold: least height of a peak.
        extent: least value of a cell inside a box, as a share of its peak, in (0, 1].
        overlap: intersection over union above which the worse of two boxes is dropped.
        limit: most boxes per label.
    """
    boxes: list[Tensor] = []
    scores: list[Tensor] = []
    labels: list[int] = []
    for label in (heat.amax((1, 2)) >= threshold).nonzero()[:, 0].tolist():
        candidates, heights = find_peaks(heat[label], threshold, extent)
        kept = suppress(candidates, heights, threshold=overlap)[:limit]
        boxes.append(candidates[kept])
        scores.append(heights[kept])
        labels += [label] * len(kept)
    if not labels:
        return ScoredBoxes(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64))
    order = torch.cat(scores).argsort(descending=True, stable=True)
    return ScoredBoxes(
        torch.cat(boxes)[order], torch.cat(scores)[order], torch.tensor(labels)[order]
    )


def find_peaks(
    heat: Float[Tensor, "h w"], threshold: float, extent: float
) -> tuple[Float[Tensor, "N 4"], Float[Tensor, " N"]]:
    """The boxes around the peaks of one map, and the peaks' heights, highest first.

    A peak is the highest cell of its box: a local maximum that is connected with a higher one at
    `extent` of its height has no box.

    Raises:
        ValueError: an extent outside (0, 1].
    """
    if not 0 < extent <= 1:
        raise ValueError(f"the extent of a box is a share of its peak in (0, 1], not {extent}")
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
        region = connected_cells(cells >= extent * height, (row, column))
        seen |= region & (cells <= height)
        if cells[region].max() > height:
            continue
        boxes.append(_box(region))
        heights.append(float(height))
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(heights)


def connected_cells(
    mask: Bool[np.ndarray, "h w"], cell: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """The cells of a mask that are connected with `cell` along rows and columns."""
    region = np.zeros_like(mask)
    region[cell] = mask[cell]
    across, down = _runs(mask), _runs(mask.T).T
    count = -1
    while count != (count := int(region.sum())):  # one pass per corner of the region
        for runs in (across, down):
            touched = np.zeros(mask.size + 1, dtype=bool)
            touched[runs[region]] = True
            region = touched[runs] & mask
    return region


def _runs(mask: Bool[np.ndarray, "h w"]) -> np.ndarray:
    """Number the runs, unbroken cells of one row; each cell has the number of its run."""
    starts = mask.copy()
    starts[:, 1:] &= ~mask[:, :-1]
    return starts.cumsum().reshape(mask.shape)


def _box(region: Bool[np.ndarray, "h w"]) -> Sequence[float]:
    """The outer edges of a region, as relative corners."""
    height, width = region.shape
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    return (
        columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
    )  # fmt: skip
