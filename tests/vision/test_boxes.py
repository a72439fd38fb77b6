"""Boxes against counted pixels, exact fractions and the plainest suppression one can write."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.vision.boxes import (
    COLOURS,
    HEAT,
    absolute,
    area,
    clip,
    draw_boxes,
    draw_heat,
    from_xyxy,
    iou,
    relative,
    suppress,
    to_xyxy,
)

whole = st.integers(0, 12)
box = st.tuples(whole, whole, whole, whole)
boxes = st.lists(box, min_size=1, max_size=12)


def tensor(rows, dtype=torch.float64):
    return torch.tensor(rows, dtype=dtype).reshape(-1, 4)


def ordered(row):
    x0, y0, x1, y1 = row
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def counted(a, b):
    """Intersection over union of boxes on whole pixels, by counting the pixels."""
    first, second = np.zeros((2, 12, 12), bool)
    first[a[1] : a[3], a[0] : a[2]] = True
    second[b[1] : b[3], b[0] : b[2]] = True
    union = (first | second).sum()
    return Fraction(int((first & second).sum()), int(union)) if union else Fraction(0)


@settings(deadline=None, max_examples=60)
@given(boxes, boxes)
def test_iou_counts_pixels(first, second):
    overlap = iou(tensor(first), tensor(second))
    assert overlap.shape == (len(first), len(second))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            assert overlap[i, j].item() == pytest.approx(float(counted(a, b)), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(boxes, st.integers(1, 5000), st.integers(1, 5000))
def test_iou_is_the_same_in_relative_and_absolute_numbers(rows, height, width):
    some = tensor([ordered(row) for row in rows]) / 12
    pixels = absolute(some, height, width)
    torch.testing.assert_close(iou(pixels, pixels), iou(some, some), atol=1e-12, rtol=0)
    torch.testing.assert_close(relative(pixels, height, width), some, atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=60)
@given(boxes, st.sampled_from(["xyxy", "xywh", "cxcywh"]))
def test_forms_come_back(rows, form):
    corners = tensor([ordered(row) for row in rows])
    there = from_xyxy(corners, form)
    torch.testing.assert_close(to_xyxy(there, form), corners, atol=1e-12, rtol=0)


def test_forms_of_one_box():
    corners = tensor([[2, 4, 6, 5]])
    assert from_xyxy(corners, "xywh").tolist() == [[2, 4, 4, 1]]
    assert from_xyxy(corners, "cxcywh").tolist() == [[4, 4.5, 4, 1]]
    assert absolute(tensor([[0.5, 0.5, 1, 1]]), 100, 300).tolist() == [[150, 50, 300, 100]]
    assert area(tensor([[2, 4, 6, 5], [6, 5, 2, 4], [1, 1, 1, 9]])).tolist() == [4, 0, 0]
    assert clip(tensor([[-1, 0.5, 2, 3], [2, 2, 3, 3]])).tolist() == [[0, 0.5, 1, 1], [1] * 4]


def plainest(rows, scores, labels, threshold):
    """Every box against every better one that stays."""
    order = sorted(range(len(rows)), key=lambda i: (-scores[i], i))
    kept = []
    for i in order:
        rivals = [k for k in kept if labels[k] == labels[i]]
        if all(counted(rows[k], rows[i]) <= threshold for k in rivals):
            kept.append(i)
    return kept


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_suppression_as_the_plainest(data):
    rows = [ordered(row) for row in data.draw(st.lists(box, max_size=14))]
    count = len(rows)
    grades = st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0])
    scores = data.draw(st.lists(grades, min_size=count, max_size=count))
    labels = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    threshold = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
    kept = suppress(
        tensor(rows), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64), threshold
    )
    assert kept.dtype == torch.int64
    assert kept.tolist() == plainest(rows, scores, labels, threshold)
    alone = suppress(tensor(rows), torch.tensor(scores), threshold=threshold)
    assert alone.tolist() == plainest(rows, scores, [0] * count, threshold)


def test_boxes_are_drawn_where_they_are():
    picture = np.full((200, 400, 3), 128, np.uint8)
    drawn = draw_boxes(picture, tensor([[0.25, 0.5, 0.75, 1.0]]), ["fox"])
    changed = (drawn != picture).any(-1)
    rows, columns = changed[100:].any(1), changed[150:].any(0)  # below the label
    assert rows.all() and columns[100] and columns[299]
    assert not columns[:100].any() and not columns[300:].any()
    assert (drawn[199, 100:300] == COLOURS[0]).all()
    assert (picture == 128).all()
    assert not changed[:60].any()


def test_every_label_fits_and_has_its_colour():
    grey = np.zeros((60, 90, 1), np.uint8)
    rows = tensor([[0, 0, 1, 1], [0.9, 0.9, 1, 1], [0.2, 0.3, 0.2, 0.3], [-1, -1, 3, 3]])
    names = ["a cat", "a very long label that is wider than the picture", "a cat", "x"]
    drawn = draw_boxes(grey, rows, names, [0.5, 0.25, 1, 0])
    assert drawn.shape == (60, 90, 3)
    colours = {tuple(c) for c in drawn.reshape(-1, 3).tolist()}
    assert {COLOURS[1], COLOURS[2]} <= colours
    assert np.array_equal(draw_boxes(grey, rows[:0], []), np.repeat(grey, 3, axis=2))


def test_heat_lies_where_it_is_hot():
    picture = np.full((40, 80, 3), 100, np.uint8)
    heat = torch.zeros(4, 8)
    heat[1, 6] = 1
    drawn = draw_heat(picture, heat, strength=0.5)
    brightness = drawn.sum(-1)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert 10 <= row < 20 and 60 <= column < 70
    assert drawn[0, 0].tolist() == np.rint(50 + HEAT[0] / 2).tolist()
    assert np.array_equal(draw_heat(picture, heat, strength=0), picture)
    assert (np.diff(HEAT @ [0.299, 0.587, 0.114]) > 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iou(torch.zeros(2, 3), torch.zeros(2, 4)), "boxes"),
        (lambda: to_xyxy(torch.zeros(2, 4), "xyx"), "xyxy, xywh or cxcywh"),
        (lambda: from_xyxy(torch.zeros(2, 4), "yolo"), "xyxy, xywh or cxcywh"),
        (lambda: relative(torch.zeros(2, 4), 0, 4), "must have pixels"),
        (lambda: suppress(torch.zeros(2, 4), torch.zeros(3)), "not 2, 3"),
        (lambda: suppress(torch.zeros(1, 4), torch.tensor([torch.nan])), "NaN"),
        (lambda: suppress(torch.zeros(1, 4), torch.zeros(1), threshold=2), "threshold"),
        (lambda: draw_boxes(np.zeros((4, 4, 3), np.uint8), torch.zeros(1, 4), []), "1 boxes"),
        (lambda: draw_boxes(np.zeros((4, 4)), torch.zeros(0, 4), []), "bytes"),
        (lambda: draw_heat(np.zeros((4, 4, 3), np.uint8), torch.full((2, 2), 2.0)), "from 2 to 2"),
        (lambda: draw_heat(np.zeros((4, 4, 3), np.uint8), torch.zeros(2, 2), 3), "strength"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
