"""How good boxes are: average precision as COCO defines it, and how often a label that is nowhere
in a picture is found there nevertheless.

Dimensions: N boxes of a picture.
"""

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych.scores.accuracy import wilson_interval
from triptych.systems.detection.annotations import Annotated, coco

Detector = Callable[
    [UInt8[np.ndarray, "_H _W _C"]], tuple[Float[Tensor, "N 4"], Sequence[str], Sequence[float]]
]
"""Gives a picture's relative boxes, their labels and their scores."""


class Precision(NamedTuple):
    """Average precision in [0, 1], the mean over labels that are in some picture."""

    ap: float
    """The mean over overlaps of 0.50, 0.55, ... 0.95."""
    ap50: float
    """A box is right when it overlaps an object of its label by half (intersection over union)."""
    per_label: dict[str, float]
    """AP50 of each label that is in some picture."""


@dataclass(frozen=True)
class FalsePositives:
    """How often a label is found in a picture that shows nothing of the kind."""

    value: float
    low: float
    high: float
    """The 95 % interval."""
    count: int
    """Pairs of a picture and a label that is not in it."""


@dataclass(frozen=True)
class DetectionReport:
    """A way of detecting on pictures whose boxes are known."""

    pictures: int
    objects: int
    boxes: int
    """How many were found, at any score."""
    precision: Precision
    floor: float
    """AP50 of the same boxes laid on the picture before: what knowing nothing of the picture gets.
    """
    absent: FalsePositives
    seconds: float
    """The median of a picture."""


def average_precision(
    truths: Sequence[Annotated], found: Sequence[Annotated], labels: Sequence[str]
) -> Precision:
    """AP and AP50 of found boxes, by `pycocotools`.

    Every picture's found boxes stand at the same place as its truth. Precision is interpolated at
    101 recalls, and each picture counts its best 100 boxes a label.

    Raises:
        ValueError: lengths differ, scores are missing, no truth at all, or pycocotools is not
            installed.
    """
    if len(truths) != len(found):
        raise ValueError(f"{len(truths)} pictures with truth, {len(found)} with found boxes")
    if not any(len(truth.boxes) for truth in truths):
        raise ValueError("no picture has a box: there is nothing to find")
    if any(len(one.boxes) and not one.scores for one in found):
        raise ValueError("found boxes without scores cannot be ranked")
    if find_spec("pycocotools") is None:
        raise ValueError("average precision needs pycocotools: pip install 'triptych[evaluation]'")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it talks while it works
        judged = COCOeval(_indexed(coco(truths, labels)), _indexed(coco(found, labels)), "bbox")
        judged.evaluate()
        judged.accumulate()
    # overlaps, recalls, labels, areas (the first: all), boxes a picture (the last: 100)
    table = judged.eval["precision"][:, :, :, 0, -1]
    per_label = {
        label: float(table[0, :, k].mean()) for k, label in enumerate(labels) if table[0, 0, k] > -1
    }
    known = table[:, :, [k for k, label in enumerate(labels) if label in per_label]]
    return Precision(float(known.mean()), float(known[0].mean()), per_label)


def _indexed(data: dict[str, Any]) -> Any:
    from pycocotools.coco import COCO

    indexed = COCO()
    indexed.dataset = data
    indexed.createIndex()
    return indexed


def false_positives(
    truths: Sequence[Annotated],
    found: Sequence[Annotated],
    labels: Sequence[str],
    threshold: float = 0.0,
) -> FalsePositives:
    """The share of absent labels with a box of at least `threshold`, wherever it lies.

    Raises:
        ValueError: every label is in every picture.
    """
    count = hits = 0
    for truth, one in zip(truths, found, strict=True):
        scores = one.scores or (1.0,) * len(one.boxes)
        seen = {label for label, s in zip(one.labels, scores, strict=True) if s >= threshold}
        absent = set(labels) - set(truth.labels)
        count += len(absent)
        hits += len(absent & seen)
    if not count:
        raise ValueError("every label is in every picture: none is absent")
    return FalsePositives(hits / count, *wilson_interval(hits, count), count)


def evaluate(
    detect: Detector,
    pictures: Sequence[UInt8[np.ndarray, "_H _W _C"]],
    truths: Sequence[Annotated],
    labels: Sequence[str],
    *,
    threshold: float = 0.0,
) -> DetectionReport:
    """Detect in every picture, and hold what comes against its truth.

    Args:
        detect: average precision reads the whole ranking, so let it keep faint boxes too.
        labels: all that was asked for in every picture.
        threshold: scores from which on a box of an absent label counts as a false positive.

    Raises:
        ValueError: fewer than two pictures, as many truths as pictures are missing, or as
            `average_precision`.
    """
    if len(pictures) < 2 or len(pictures) != len(truths):
        raise ValueError(f"{len(pictures)} pictures, {len(truths)} truths: two or more of each")
    found, seconds = [], []
    for picture, truth in zip(pictures, truths, strict=True):
        start = time.perf_counter()
        boxes, names, scores = detect(picture)
        seconds.append(time.perf_counter() - start)
        size = truth.height, truth.width
        found.append(Annotated(truth.file, *size, boxes, tuple(names), tuple(scores)))
    moved = [
        replace(one, height=truth.height, width=truth.width)
        for one, truth in zip([*found[1:], found[0]], truths, strict=True)
    ]
    return DetectionReport(
        pictures=len(pictures),
        objects=sum(len(truth.boxes) for truth in truths),
        boxes=sum(len(one.boxes) for one in found),
        precision=average_precision(truths, found, labels),
        floor=average_precision(truths, moved, labels).ap50,
        absent=false_positives(truths, found, labels, threshold),
        seconds=float(torch.tensor(seconds).median()),
    )
