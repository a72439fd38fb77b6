"""Zero-shot detection in the built-in world: three ways, their average precision and their time;
and beside them a PaliGemma or PaLI-3, which learned boxes.

    python benchmarks/detection.py --model runs/clip-scenes --vlm runs/vlm

Every label that occurs in training is asked for in every picture, so nearly all are absent.
Windows, scales, reach and the share of a peak are chosen on pictures of the training split
(`--tune 0` takes the request's own), figures are of the test split. Times are medians of
interleaved turns.

JSON lines on stdout: what was chosen, each way, the ratio of times; then a Markdown table.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from measure import emit, interval, machine

from triptych.data.scene_source import SceneSource
from triptych.loading import load
from triptych.requests import Detect
from triptych.scenes.scene import COLOURS, GROUND_COLOURS, SEEN, SHAPES
from triptych.systems.detection import heatmaps
from triptych.systems.detection.annotations import Annotated
from triptych.systems.detection.pipeline import Detections, Queries, detect, embed_queries
from triptych.systems.detection.report import (
    DetectionReport,
    average_precision,
    evaluate,
    false_positives,
)
from triptych.systems.paligemma.ask_all import ask_all, find_objects, permit_objects
from triptych.systems.paligemma.pipeline import require_eye
from triptych.text.locations import STEPS
from triptych.weights.loaded import Loaded

LABELS = {
    "pair": tuple(f"{colour} {shape}" for shape, colour in SEEN),
    "colour": tuple(f"{colour} object" for colour in COLOURS),
    "shape": SHAPES,
}
# what lies behind, and words for any thing: without these a label that is asked for alone wins
# wherever there is a thing at all
BACKGROUND = (*(f"{colour} background" for colour in GROUND_COLOURS), "object", "shape", "thing")
PARTS = tuple(f"part of a {colour} thing" for colour in COLOURS)
"""What a CLIP that was trained on parts of scenes (`scene_parts.py`) calls a cut object."""
FAINT = 0.02  # average precision reads the ranking down to here
EXTENTS = (0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
WINDOWS: tuple[tuple[int, ...], ...] = ((4,), (5,), (6,), (8,), (4, 6), (5, 8), (6, 8))
DENSE: tuple[tuple[tuple[float, ...], int, int], ...] = (
    ((4.0,), 3, -1), ((2.0, 3.0), 3, -1), ((2.0,), 1, 0), ((3.0,), 1, 0), ((4.0,), 1, 0),
    ((4.0,), 3, 0), ((2.0,), 1, 1), ((3.0,), 1, 1), ((4.0,), 1, 1), ((2.0,), 1, 2),
)  # fmt: skip
"""Scales, pool, reach."""

MOST = 4
"""Objects of a picture."""
World = tuple[list[np.ndarray], list[Annotated]]


def world(name: str, split: str, side: int, count: int, kind: str) -> World:
    """Pictures, and their boxes under the names that are asked for."""
    columns = SceneSource(name, split=split, size=side).read(range(count))
    truths = []
    for number, (boxes, labels) in enumerate(
        zip(columns["boxes"], columns["box_labels"], strict=True)
    ):
        names = tuple(_called(label, kind) for label in labels)
        corners = torch.as_tensor(np.array(boxes)).float().reshape(-1, 4)
        truths.append(Annotated(f"{number}.png", side, side, corners, names))
    return list(columns["image"]), truths


def _called(label: str, kind: str) -> str:
    colour, shape = label.split()
    return {"pair": label, "colour": f"{colour} object", "shape": shape}[kind]


def last(request: Detect, loaded: Loaded, picture: np.ndarray, queries: Queries) -> Detections:
    *_, result = detect(request, loaded, picture, queries)
    return result


def tuned(
    request: Detect, loaded: Loaded, given: World, options: Sequence[dict[str, Any]]
) -> Detect:
    """The request with the option and extent of the highest AP50 on these pictures."""
    pictures, truths = given
    queries = embed_queries(request, loaded)
    best, chosen = -1.0, request
    for option in options:
        asked = replace(request, **option)
        maps = [last(asked, loaded, picture, queries).heat for picture in pictures]
        for extent in EXTENTS:
            found = []
            for heat, truth in zip(maps, truths, strict=True):
                boxes = heatmaps.find_boxes(heat, FAINT, extent, asked.nms, asked.limit)
                names = tuple(asked.labels[k] for k in boxes.labels.tolist())
                scores = tuple(boxes.scores.tolist())
                size = truth.height, truth.width
                found.append(Annotated(truth.file, *size, boxes.corners, names, scores))
            ap50 = average_precision(truths, found, request.labels).ap50
            if ap50 > best:
                best, chosen = ap50, replace(asked, extent=extent)
    emit(
        chosen=chosen.method, windows=chosen.windows, scales=chosen.scales, pool=chosen.pool,
        reach=chosen.reach, extent=chosen.extent, ap50_of_tuning=best, pictures=len(pictures),
    )  # fmt: skip
    return chosen


def judged(request: Detect, loaded: Loaded, given: World, threshold: float) -> DetectionReport:
    queries = embed_queries(request, loaded)

    def find(picture: np.ndarray) -> tuple[torch.Tensor, tuple[str, ...], list[float]]:
        result = last(replace(request, threshold=FAINT), loaded, picture, queries)
        return result.boxes.corners, result.names, result.boxes.scores.tolist()

    return evaluate(find, *given, request.labels, threshold=threshold)


def asked_alone(request: Detect, loaded: Loaded, given: World) -> dict[str, float]:
    """False positives where one absent label is all that is asked for, against background only."""
    pictures, truths = given
    found, labels = [], []
    for number, (picture, truth) in enumerate(zip(pictures, truths, strict=True)):
        absent = [label for label in request.labels if label not in truth.labels]
        label = absent[7 * number % len(absent)]
        asked = replace(request, labels=(label,))
        result = last(asked, loaded, picture, embed_queries(asked, loaded))
        scores = tuple(result.boxes.scores.tolist())
        size = truth.height, truth.width
        found.append(Annotated(truth.file, *size, result.boxes.corners, result.names, scores))
        labels.append(label)
    hits = [
        false_positives([truth], [one], [label])
        for truth, one, label in zip(truths, found, labels, strict=True)
    ]
    return {"alone": sum(hit.value for hit in hits) / len(hits), "alone_count": len(hits)}


def by_words(name: str, given: World, labels: Sequence[str]) -> DetectionReport:
    """A model that writes boxes as words, asked for each label alone, all of them in one batch."""
    loaded = load(name, "cpu", "float32")
    model, tokenizer = require_eye(loaded)
    limit = MOST * (8 + max(len(tokenizer.encode(label)) for label in labels))
    grammar = permit_objects(tokenizer, [[label] for label in labels], limit, masks=False)
    prefixes = [f"detect {label}" for label in labels]

    def find(picture: np.ndarray) -> tuple[torch.Tensor, tuple[str, ...], list[float]]:
        assert loaded.transform is not None
        images = loaded.transform([picture])
        assert isinstance(images, torch.Tensor)
        images = images.expand(len(labels), -1, -1, -1)
        located, scores = [], []
        for one in ask_all(model, tokenizer, images, prefixes, limit, grammar):
            found = find_objects(tokenizer, one.text, one.tokens, one.log_probs, STEPS)
            located += found.located
            scores += found.scores
        boxes = torch.tensor([each.box for each in located]).reshape(-1, 4)
        return boxes, tuple(each.label for each in located), scores

    return evaluate(find, *given, labels)


def times(
    requests: Sequence[Detect], loaded: Loaded, pictures: Sequence[np.ndarray]
) -> list[list[float]]:
    """Seconds of each way on each picture, in turns."""
    queries = [embed_queries(request, loaded) for request in requests]
    for request, query in zip(requests, queries, strict=True):
        last(request, loaded, pictures[0], query)  # the first call is slower
    seconds: list[list[float]] = [[] for _ in requests]
    for picture in pictures:
        for request, query, into in zip(requests, queries, seconds, strict=True):
            start = time.perf_counter()
            last(request, loaded, picture, query)
            into.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a CLIP or SigLIP trained on scenes")
    parser.add_argument(
        "--data", default="scenes-two", choices=("scenes", "scenes-one", "scenes-two")
    )
    parser.add_argument("--labels", default="pair", choices=tuple(LABELS))
    parser.add_argument("--size", type=int, default=64, help="side of the pictures")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--tune", type=int, default=40, help="training pictures to choose on")
    parser.add_argument("--threshold", type=float, default=Detect("", ("x",)).threshold)
    parser.add_argument("--template", default="a {}", help="what stands around a label")
    parser.add_argument("--vlm", default="", help="a run of train vlm or train pali, too")
    parser.add_argument("--parts", action="store_true", help="cut objects have words of their own")
    given = parser.parse_args()
    loaded = load(given.model, "cpu", "float32")
    emit(**machine(), model=loaded.name, labels=given.labels, size=given.size)
    behind = (*BACKGROUND, *PARTS) if given.parts else BACKGROUND
    base = Detect("", LABELS[given.labels], given.model, templates=(given.template,),
                  background=behind, threshold=given.threshold)  # fmt: skip
    sliding = replace(base, method="window-batched")
    if given.tune:
        training = world(given.data, "train", given.size, given.tune, given.labels)
        faint = replace(base, threshold=FAINT)
        windows = [{"windows": w} for w in WINDOWS]
        passes = [{"scales": s, "pool": p, "reach": r} for s, p, r in DENSE]
        sliding = tuned(replace(faint, method="window-batched"), loaded, training, windows)
        base = tuned(faint, loaded, training, passes)
    ways = [
        replace(way, threshold=given.threshold)
        for way in (replace(sliding, method="window"), sliding, base)
    ]
    test = world(given.data, "test", given.size, given.pictures, given.labels)
    seconds = times(ways, loaded, test[0][: max(2, min(20, given.pictures))])
    lines = [
        "| way | AP50 | AP | floor | false positives | asked alone | seconds a picture | x |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, took in zip(ways, seconds, strict=True):
        report, alone = judged(way, loaded, test, given.threshold), asked_alone(way, loaded, test)
        gains = [a / b for a, b in zip(seconds[0], took, strict=True)]
        absent, middle, gain = report.absent, statistics.median(took), statistics.median(gains)
        emit(
            way=way.method, ap50=report.precision.ap50, ap=report.precision.ap, floor=report.floor,
            false_positives=absent.value, low=absent.low, high=absent.high, absent=absent.count,
            **alone, seconds=middle, seconds_interval=interval(took), faster=gain,
            faster_interval=interval(gains), pictures=report.pictures, objects=report.objects,
            boxes=report.boxes, threshold=given.threshold,
        )  # fmt: skip
        lines.append(
            f"| {way.method} | {report.precision.ap50:.3f} | {report.precision.ap:.3f} | "
            f"{report.floor:.3f} | {absent.value:.2%} ({absent.low:.2%} to {absent.high:.2%}) | "
            f"{alone['alone']:.1%} | {middle:.3f} | {gain:.1f} |"
        )
    if given.vlm:
        report = by_words(given.vlm, test, base.labels)
        absent, precision = report.absent, report.precision
        emit(
            way="words", ap50=precision.ap50, ap=precision.ap, floor=report.floor,
            false_positives=absent.value, low=absent.low, high=absent.high, absent=absent.count,
            seconds=report.seconds, pictures=report.pictures, objects=report.objects,
            boxes=report.boxes,
        )  # fmt: skip
        lines.append(
            f"| words (learned) | {precision.ap50:.3f} | {precision.ap:.3f} | {report.floor:.3f} | "
            f"{absent.value:.2%} ({absent.low:.2%} to {absent.high:.2%}) | {absent.value:.1%} | "
            f"{report.seconds:.3f} | |"
        )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
