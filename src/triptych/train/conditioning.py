"""From a batch of a source to the condition of a model, and back to words for the labels of a
grid.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from triptych import runtime
from triptych.data.order.batches import take_first
from triptych.data.source import Source
from triptych.train.recipe import Batch
from triptych.vision.grids import labelled_grid
from triptych.vision.images import to_pictures
from triptych.vision.quadrants import partial_view, quadrant_mask
from triptych.weights.loaded import Card

SHOWN, ROWS = 10, 6  # conditions side by side in a grid, and how often each is drawn

Draw = Callable[[Tensor | None, Tensor], Tensor]  # condition, noise (B, ...) -> pictures in [-1, 1]


class Conditioning(NamedTuple):
    """What a model is told about each picture."""

    kind: str  # none, label, attributes, vector, or quadrants
    size: int
    mean: Tensor | None = None  # of a vector's columns over the training pictures
    std: Tensor | None = None
    quadrants: int = 0

    def of(self, batch: Batch) -> Tensor | None:
        """The condition of each picture of a batch."""
        if self.kind == "none":
            return None
        if self.kind == "quadrants":
            image: Tensor = batch["image"]
            mask = quadrant_mask(image.shape[2], image.shape[3], self.quadrants).to(image.device)
            return partial_view(image, mask)
        column: Tensor = batch[self.kind]
        if self.kind != "vector":
            return column
        assert self.mean is not None and self.std is not None
        return (column - self.mean.to(column.device)) / self.std.to(column.device)


def conditioning(kind: str, source: Source, *, quadrants: int = 0) -> Conditioning:
    """What a source can tell a model of the condition that was asked for.

    Raises:
        ValueError: the source has nothing of that kind.
    """
    info = source.info
    has = {"label": info.classes, "attributes": info.attributes, "vector": info.vector}
    if kind in has and not has[kind]:
        there = ", ".join(k for k, names in has.items() if names) or "none"
        raise ValueError(f"{info.name} has no {kind} to condition on; it has: {there}")
    if kind == "quadrants":
        return Conditioning(kind, 0, quadrants=quadrants)
    size = len(has.get(kind, ()))
    if kind != "vector":
        return Conditioning(kind, size)
    columns = take_first(source, 10_000)["vector"]
    return Conditioning(kind, size, columns.mean(0), columns.std(0).clamp_min(1e-6))


def card(model: str, settings: dict[str, object], source: Source, given: Conditioning) -> Card:
    """The model's card: its configuration, and what its conditions are called."""
    info = source.info
    named = Card(model, settings, triptych=version("triptych"))
    if given.kind == "label":
        named = replace(named, classes=info.classes)
    if given.kind == "attributes":
        named = replace(named, attributes=info.attributes)
    if given.kind == "vector":
        named = replace(named, vector=info.vector)
    if given.kind == "quadrants":
        named = replace(named, quadrants=given.quadrants)
    if given.mean is None or given.std is None:
        return named
    mean, std = tuple(given.mean.tolist()), tuple(given.std.tolist())
    return replace(named, vector_mean=mean, vector_std=std)


def condition_grid(
    given: Conditioning, test: Source, shape: tuple[int, ...], seed: int, device: torch.device
) -> Callable[[Draw], np.ndarray]:
    """A function that draws the grid of a run: a condition a column, a row one noise of this shape
    across all of them.
    """
    conditions, names = _shown(given, test)
    columns = len(names)
    noise = runtime.noise(shape, [runtime.key(seed, i) for i in range(ROWS)])
    noise = noise.repeat_interleave(columns, 0).to(device)
    if conditions is not None:
        conditions = conditions.repeat(ROWS, *[1] * (conditions.ndim - 1)).to(device)

    def draw(sample: Draw) -> np.ndarray:
        pictures = to_pictures(sample(conditions, noise))
        cells = pictures.reshape(ROWS, columns, *pictures.shape[1:])
        return labelled_grid(cells, [f"z {i + 1}" for i in range(ROWS)], names)

    return draw


def _shown(given: Conditioning, source: Source) -> tuple[Tensor | None, list[str]]:
    """Conditions for the columns of a grid, and their names: every class, or those of real
    pictures.
    """
    if given.kind == "label":
        labels = range(min(SHOWN, given.size))
        return torch.tensor(list(labels)), [source.info.classes[i] for i in labels]
    batch = take_first(source, SHOWN)
    conditions = given.of(batch)
    if given.kind == "attributes":
        rows = batch["attributes"].bool().tolist()
        names = [
            ", ".join(n for n, holds in zip(source.info.attributes, row, strict=True) if holds)
            for row in rows
        ]
        return conditions, names
    if given.kind == "vector":
        return conditions, [" ".join(f"{v:.3g}" for v in row) for row in batch["vector"].tolist()]
    return conditions, [""] * len(batch["image"])
