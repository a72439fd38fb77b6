"""Scores of a detector: average precision as COCO defines it, and false positives of absent labels.

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
from triptych.systems.detection.annotations import Annotated, to_coco

Detector = Callable[
    [UInt8[np.ndarray, "_H _W _C"]], tuple[Float[Tensor, "N 4"], Sequence[str], Sequence[float]]
]
"""A function from a picture to relative boxes, their labels and their scores."""


class Precision(NamedTuple):
    """Average precision in [0, 1], the mean over labels that at least one picture has."""

    ap: float
    """Mean over the thresholds of intersection over union 0.50, 0.55, ... 0.95."""
    ap50: float
    """At the threshold 0.50."""
    per_label: dict[str, float]
    """AP50 of each label that at least one picture has."""


@dataclass(frozen=True)
class FalsePositives:
    """The share of absent labels, over all pictures, for which a box was found."""

    value: float
    low: float
    high: float
    """The 95 % interval."""
    count: int
    """Pairs of a picture and a label that it does not have."""


@dataclass(frozen=True)
class DetectionReport:
    """The scores of a detector on pictures with known boxes."""

    pictures: int
    objects: int
    boxes: int
    """Detected boxes of any score."""
    precision: Precision
    floor: float
    """AP50 when every picture gets the boxes of the next one: chance level."""
    absent: FalsePositives
    seconds: float
    """Median time per picture."""


def average_precision(
    truths: Sequence[Annotated], detected: Sequence[Annotated], labels: Sequence[str]
) -> Precision:
    """AP and AP50 of detected boxes, by `pycocotools`; one element per picture in both sequences.

    Precision is interpolated at 101 recalls, over the best 100 boxes per picture and label.

    Raises:
        ValueError: lengths differ, scores are missing, no picture has a true box, or pycocotools is
            not installed.
    """
    if len(truths) != len(detected):
        raise ValueError(
            f"{len(truths)} pictures with true boxes, {len(detected)} with detected ones"
        )
    if not any(len(truth.boxes) for truth in truths):
        raise ValueError("no picture has a true box: average precision is undefined")
    if any(len(each.boxes) and not each.scores for each in detected):
        raise ValueError("detected boxes have no scores: average precision needs them")
    if find_spec("pycocotools") is None:
        raise ValueError("average precision needs pycocotools: pip install 'triptych[evaluation]'")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        judged = COCOeval(
            _coco_index(to_coco(truths, labels)), _coco_index(to_coco(detected, labels)), "bbox"
        )
        judged.evaluate()
        judged.accumulate()
    # overlaps, recalls, labels, areas (the first: all), boxes a picture (the last: 100)
    table = judged.eval["precision"][:, :, :, 0, -1]
    per_label = {
        label: float(table[0, :, k].mean()) for k, label in enumerate(labels) if table[0, 0, k] > -1
    }
    present = table[:, :, [k for k, label in enumerate(labels) if label in per_label]]
    return Precision(float(present.mean()), float(present[0].mean()), per_label)


def _coco_index(data: dict[str, Any]) -> Any:
    from pycocotools.coco import COCO

    indexed = COCO()
    indexed.dataset = data
    indexed.createIndex()
    return indexed


def false_positives(
    truths: Sequence[Annotated],
    detected: Sequence[Annotated],
    labels: Sequence[str],
    threshold: float = 0.0,
) -> FalsePositives:
    """The share of absent labels for which a box has a score of at least `threshold`.

    Raises:
        ValueError: every label is in every picture.
    """
    count = hits = 0
    for truth, each in zip(truths, detected, strict=True):
        scores = each.scores or (1.0,) * len(each.boxes)
        found = {label for label, s in zip(each.labels, scores, strict=True) if s >= threshold}
        absent = set(labels) - set(truth.labels)
        count += len(absent)
        hits += len(absent & found)
    if not count:
        raise ValueError("every picture has every label: there are no absent ones")
    return FalsePositives(hits / count, *wilson_interval(hits, count), count)


def evaluate(
    detect: Detector,
    pictures: Sequence[UInt8[np.ndarray, "_H _W _C"]],
    truths: Sequence[Annotated],
    labels: Sequence[str],
    *,
    threshold: float = 0.0,
) -> DetectionReport:
    """Detect in every picture, and compare the boxes with the true ones.

    Args:
        detect: should keep boxes of low scores, which average precision ranks as well.
        labels: all labels that `detect` looks for.
        threshold: least score of a box that counts as a false positive of an absent label.

    Raises:
        ValueError: fewer than two pictures, not one truth per picture, or as
            `average_precision`.
    """
    if len(pictures) < 2 or len(pictures) != len(truths):
        raise ValueError(
            f"{len(pictures)} pictures and {len(truths)} truths: give two or more of each"
        )
    detected, seconds = [], []
    for picture, truth in zip(pictures, truths, strict=True):
        start = time.perf_counter()
        boxes, names, scores = detect(picture)
        seconds.append(time.perf_counter() - start)
        size = truth.height, truth.width
        detected.append(Annotated(truth.file, *size, boxes, tuple(names), tuple(scores)))
    moved = [
        replace(each, height=truth.height, width=truth.width)
        for each, truth in zip([*detected[1:], detected[0]], truths, strict=True)
    ]
    return DetectionReport(
        pictures=len(pictures),
        objects=sum(len(truth.boxes) for truth in truths),
        boxes=sum(len(each.boxes) for each in detected),
        precision=average_precision(truths, detected, labels),
        floor=average_precision(truths, moved, labels).ap50,
        absent=false_positives(truths, detected, labels, threshold),
        seconds=float(torch.tensor(seconds).median()),
    )
