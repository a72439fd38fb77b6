"""The similarity picture shows every number, in its cell, and what is best."""

import numpy as np
import pytest
from PIL import ImageDraw

from triptych.systems.classification.similarity import (
    CELL,
    FULL,
    cosine_reading,
    neutral_bias,
    probability_reading,
    similarity_picture,
)
from triptych.vision.lettering import INK


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


COSINES = np.array([[0.3, 0.1, 0.2], [0.15, 0.25, 0.05]], np.float32)
PICTURES = [noise(40, 90, 3), noise(8, 8, 1)]


def draw(**changes):
    settings = {
        "pictures": PICTURES,
        "names": ["a.png", "b.png"],
        "labels": ["dog", "cat", "a red bus on a bridge"],
        "readings": [cosine_reading(COSINES), probability_reading("softmax", COSINES)],
        "title": "title",
    } | changes
    return similarity_picture(**settings)


@pytest.fixture
def written(monkeypatch):
    """All text with its place."""
    texts = []
    text = ImageDraw.ImageDraw.text

    def recording(self, place, line, **words):
        texts.append((line, place))
        text(self, place, line, **words)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", recording)
    return texts


def test_every_number_and_name_is_written_inside_the_sheet(written):
    sheet = draw()
    said = [line for line, _ in written]
    for number in ("0.300", "0.100", "0.200", "0.150", "0.250", "0.050", "30.0 %", "5.0 %"):
        assert number in said
    for word in ("title", "a.png", "b.png", "cosine", "softmax"):
        assert said.count(word) == 1
    assert said.count("dog") == said.count("cat") == 2
    assert " ".join(
        line for line in said if line in "a red bus on a bridge" and line not in ("dog", "cat")
    ).split()[:6] == ["a", "red", "bus", "on", "a", "bridge"]
    for _, (x, y) in written:
        assert 0 <= x < sheet.shape[1] and 0 <= y < sheet.shape[0]


def test_the_largest_is_in_full_colour_and_the_best_of_a_row_is_framed(written):
    sheet = draw()
    places = dict(written)
    x, y = places["0.300"]
    assert (sheet[y - 20, x] == FULL).all()
    for best, other in (("0.300", "0.100"), ("0.250", "0.150")):
        edges = []
        for number in (best, other):
            x, y = places[number]
            column = sheet[:, x - CELL // 2 + 1]
            edges.append((column[y] == INK).all())
        assert edges == [True, False]


def test_tiny_probabilities_are_not_called_none(written):
    draw(readings=[probability_reading("p", np.array([[1e-5, 0.0, 1.0], [0.5, 0.4, 0.1]]))])
    said = [line for line, _ in written]
    assert "<0.1 %" in said and "0.0 %" in said and "100.0 %" in said


def test_equal_cosines_are_drawn_too():
    assert draw(readings=[cosine_reading(np.full((2, 3), 0.2, np.float32))]).shape[2] == 3


def test_the_neutral_bias_expects_one_yes_a_picture():
    logits = 100 * np.random.default_rng(0).normal(0.2, 0.05, (50, 9))
    bias = neutral_bias(logits)
    assert (1 / (1 + np.exp(-(logits + bias)))).sum() == pytest.approx(50, rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [{"names": ["a"]}, {"labels": []}, {"readings": []}, {"labels": ["dog", "cat"]}],
)
def test_what_does_not_fit_is_refused(changes):
    with pytest.raises(ValueError, match="expected"):
        draw(**changes)
