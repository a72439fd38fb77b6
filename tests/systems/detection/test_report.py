"""Average precision: closed forms, and an implementation of our own as second witness."""

import numpy as np
import pytest
import torch

from triptych.systems.detection import report as detection_report
from triptych.systems.detection.annotations import Annotated
from triptych.systems.detection.report import average_precision, evaluate, false_positives
from triptych.vision.boxes import iou

LABELS = ("a", "b", "c")


def pictures(seed: int, count: int = 12) -> tuple[list[Annotated], list[Annotated]]:
    """Truths, and what a poor detector finds: shifted, doubled and mislabelled."""
    draw = torch.Generator().manual_seed(seed)
    truths, found = [], []
    for number in range(count):
        corners = 0.6 * torch.rand(3, 2, generator=draw)
        boxes = torch.cat([corners, corners + 0.15 + 0.2 * torch.rand(3, 2, generator=draw)], 1)
        names = tuple(LABELS[i] for i in torch.randint(0, 2, (3,), generator=draw))
        truths.append(Annotated(f"{number}.png", 90, 160, boxes, names))
        noise = 0.05 * torch.randn(6, 4, generator=draw)
        guesses = torch.cat([boxes, boxes]) + noise
        guesses = torch.cat([guesses[:, :2], torch.maximum(guesses[:, 2:], guesses[:, :2])], 1)
        scores = torch.rand(6, generator=draw)
        wrong = torch.rand(6, generator=draw) < 0.2
        said = ("b" if w else n for w, n in zip(wrong, names * 2, strict=True))
        found.append(
            Annotated(f"{number}.png", 90, 160, guesses, tuple(said), tuple(scores.tolist()))
        )
    return truths, found


def by_hand(truths, found, label: str, overlap: float) -> float:
    """Greedy matching, best first; precision made monotone, read at 101 recalls."""
    rows = []
    wanted = sum(truth.labels.count(label) for truth in truths)
    for truth, one in zip(truths, found, strict=True):
        true = truth.boxes[[n == label for n in truth.labels]]
        mine = [i for i, n in enumerate(one.labels) if n == label]
        taken: set[int] = set()
        for i in sorted(mine, key=lambda i: -one.scores[i]):
            overlaps = iou(one.boxes[i][None].double(), true.double())[0]
            free = [(float(o), k) for k, o in enumerate(overlaps) if k not in taken]
            best, at = max(free, default=(0.0, -1))
            if best >= overlap:
                taken.add(at)
            rows.append((one.scores[i], best >= overlap))
    rows.sort(key=lambda row: -row[0])
    hits = np.cumsum([hit for _, hit in rows])
    recall, precision = hits / wanted, hits / np.arange(1, len(rows) + 1)
    return float(
        np.mean([max(precision[recall >= r], default=0.0) for r in np.linspace(0, 1, 101)])
    )


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_average_precision_written_from_its_definition(seed: int) -> None:
    truths, found = pictures(seed)
    ours = average_precision(truths, found, LABELS)
    assert set(ours.per_label) == {"a", "b"}  # c is in no picture
    for label, value in ours.per_label.items():
        assert value == pytest.approx(by_hand(truths, found, label, 0.5), abs=1e-6)
    overlaps = np.arange(0.5, 1.0, 0.05)
    mean = np.mean([by_hand(truths, found, n, o) for n in ("a", "b") for o in overlaps])
    assert ours.ap == pytest.approx(mean, abs=1e-6)
    assert ours.ap50 == pytest.approx(np.mean(list(ours.per_label.values())))
    assert 0.2 < ours.ap50 < 0.9  # neither all right nor all wrong: the comparison means something


def moved(truths, shift: float) -> list[Annotated]:
    return [
        Annotated(t.file, t.height, t.width, t.boxes + torch.tensor([shift, 0, shift, 0]), t.labels,
                  (0.5,) * len(t.labels))
        for t in truths
    ]  # fmt: skip


def squares(side: float = 0.3) -> list[Annotated]:
    boxes = torch.tensor([[0.1, 0.1, 0.1 + side, 0.1 + side]])
    return [Annotated(f"{k}.png", 64, 200, boxes, (name,)) for k, name in enumerate(LABELS)]


def test_perfect_boxes_get_one_and_boxes_elsewhere_nothing() -> None:
    perfect = average_precision(squares(), moved(squares(), 0.0), LABELS)
    assert perfect.ap == pytest.approx(1) and perfect.ap50 == pytest.approx(1)
    assert average_precision(squares(), moved(squares(), 0.5), LABELS).ap50 == 0


def test_a_shift_by_a_fifth_overlaps_by_two_thirds() -> None:
    """(1 - s) / (1 + s) for a shift of s sides: 0.667 passes 0.50, 0.55, 0.60, 0.65 of ten."""
    ours = average_precision(squares(), moved(squares(), 0.06), LABELS)
    assert ours.ap50 == pytest.approx(1)
    assert ours.ap == pytest.approx(0.4)


def test_a_false_box_above_the_true_one_halves_it() -> None:
    truths = squares()
    found = [
        Annotated(t.file, 64, 200, torch.cat([t.boxes + 0.5, t.boxes]), t.labels * 2, (0.9, 0.5))
        for t in truths
    ]
    assert average_precision(truths, found, LABELS).ap50 == pytest.approx(0.5)


def test_absent_labels_that_are_found_are_counted() -> None:
    truths = squares()  # one label each: two of three are absent, six pairs in all
    nothing = [Annotated(t.file, 64, 200, torch.zeros(0, 4), ()) for t in truths]
    assert false_positives(truths, nothing, LABELS).value == 0
    found = [
        Annotated("0.png", 64, 200, truths[0].boxes.repeat(4, 1), ("a", "b", "b", "c"),
                  (0.9, 0.8, 0.7, 0.2)),
        *nothing[1:],
    ]  # fmt: skip
    strict = false_positives(truths, found, LABELS, 0.5)
    assert (strict.value, strict.count) == (pytest.approx(1 / 6), 6)  # b, once
    assert strict.low < strict.value < strict.high
    assert false_positives(truths, found, LABELS).value == pytest.approx(2 / 6)
    with pytest.raises(ValueError, match="no absent ones"):
        false_positives(truths[:1], nothing[:1], ("a",))


def test_a_report_holds_the_boxes_of_other_pictures_as_its_floor(monkeypatch) -> None:
    clock = iter((0.0, 1.0, 10.0, 15.0, 20.0, 22.0))  # detections of 1, 5 and 2 seconds
    monkeypatch.setattr(detection_report.time, "perf_counter", lambda: next(clock))
    truths = [
        Annotated(f"{k}.png", 64, 64 * (1 + k % 2), torch.tensor([[x, 0.2, x + 0.2, 0.6]]), ("a",))
        for k, x in enumerate((0.0, 0.3, 0.6))
    ]
    images = [np.full((64, t.width, 3), k, np.uint8) for k, t in enumerate(truths)]

    def detect(picture):
        return truths[int(picture[0, 0, 0])].boxes, ("a",), (1.0,)

    report = evaluate(detect, images, truths, ("a", "b"))
    assert report.precision.ap50 == pytest.approx(1) and report.floor == 0
    assert (report.pictures, report.objects, report.boxes) == (3, 3, 3)
    assert report.absent.value == 0 and report.absent.count == 3
    assert report.seconds == 2  # the median


def test_what_cannot_be_judged_is_refused() -> None:
    truths = squares()
    with pytest.raises(ValueError, match="3 pictures with true boxes, 2"):
        average_precision(truths, moved(truths, 0)[:2], LABELS)
    with pytest.raises(ValueError, match="have no scores"):
        average_precision(truths, truths, LABELS)
    empty = [Annotated("p.png", 4, 4, torch.zeros(0, 4), ())]
    with pytest.raises(ValueError, match="no picture has a true box"):
        average_precision(empty, empty, LABELS)
