"""Conditions of class-conditional models: read from batches, stored in the model's card, and shown
in the sample grid.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from triptych import runtime
from triptych.data.order.batches import take_first
from triptych.data.source import Source
from triptych.fields import to_json
from triptych.train.recipe import Batch
from triptych.vision.grids import labelled_grid
from triptych.vision.images import to_pictures
from triptych.vision.quadrants import partial_view, quadrant_mask
from triptych.weights.loaded import Card

SHOWN, ROWS = 10, 6  # columns of a grid, one for each condition, and rows

Draw = Callable[[Tensor | None, Tensor], Tensor]  # condition, noise (B, ...) -> pictures in [-1, 1]


class Condition(NamedTuple):
    """What a model is conditioned on."""

    kind: str  # none, label, attributes, vector, or quadrants
    size: int  # classes, attributes, or numbers of a vector
    mean: Tensor | None = None  # of each number of the vector over the training pictures
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


def choose_condition(
    kind: str, source: Source, *, quadrants: int = 0, required: bool = False
) -> Condition:
    """A condition of this kind with the sizes and statistics of a source.

    Raises:
        ValueError: the source has no condition of that kind; says what else can be trained on it,
            `--condition none` only where the condition is not `required`.
    """
    info = source.info
    names = {"label": info.classes, "attributes": info.attributes, "vector": info.vector}
    if kind in names and not names[kind]:
        available = [k for k, values in names.items() if values]
        ways = ["sort the pictures into a folder for each class"] if kind == "label" else []
        if not required:
            ways += [f"use `--condition {other}`" for other in (*available, "none")]
        if info.has_captions:
            ways.append("train on its captions with `triptych train text-to-image`")
        raise ValueError(
            f"{info.name} has no {kind} to condition on; it has: {', '.join(available) or 'none'}"
            + ("." if not ways else f". You can {', or '.join(ways)}")
        )
    if kind == "quadrants":
        return Condition(kind, 0, quadrants=quadrants)
    size = len(names.get(kind, ()))
    if kind != "vector":
        return Condition(kind, size)
    columns = take_first(source, 10_000)["vector"]
    return Condition(kind, size, columns.mean(0), columns.std(0).clamp_min(1e-6))


def build_card(model: str, config: Any, source: Source, condition: Condition) -> dict[str, Any]:
    """The model's card as JSON: its configuration, and the names of its conditions."""
    info, kind = source.info, condition.kind
    card = Card(
        model,
        to_json(config),
        classes=info.classes if kind == "label" else (),
        attributes=info.attributes if kind == "attributes" else (),
        vector=info.vector if kind == "vector" else (),
        vector_mean=() if condition.mean is None else tuple(condition.mean.tolist()),
        vector_std=() if condition.std is None else tuple(condition.std.tolist()),
        quadrants=condition.quadrants,
        triptych=version("triptych"),
    )
    return to_json(card)


def prepare_grid(
    condition: Condition, test: Source, shape: tuple[int, ...], seed: int, device: torch.device
) -> Callable[[Draw], np.ndarray]:
    """A function that draws the sample grid of a run: each column one condition, each row one noise
    of this shape.
    """
    conditions, names = _columns(condition, test)
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


def _columns(condition: Condition, source: Source) -> tuple[Tensor | None, list[str]]:
    """The conditions of a grid's columns, and their names: classes, or the conditions of the first
    pictures of the source.
    """
    if condition.kind == "label":
        labels = range(min(SHOWN, condition.size))
        return torch.tensor(list(labels)), [source.info.classes[i] for i in labels]
    batch = take_first(source, SHOWN)
    conditions = condition.of(batch)
    if condition.kind == "attributes":
        rows = batch["attributes"].bool().tolist()
        names = [
            ", ".join(n for n, holds in zip(source.info.attributes, row, strict=True) if holds)
            for row in rows
        ]
        return conditions, names
    if condition.kind == "vector":
        return conditions, [" ".join(f"{v:.3g}" for v in row) for row in batch["vector"].tolist()]
    return conditions, [""] * len(batch["image"])
