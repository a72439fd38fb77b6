"""Grids show every pixel of every picture and every letter of every label."""

import numpy as np
import pytest
from PIL import ImageDraw

from triptych.vision import grids
from triptych.vision.grids import PAPER, labelled_grid


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def find(sheet, picture, scale):
    """Where a picture, enlarged by repetition, lies in the sheet."""
    tile = np.repeat(np.repeat(picture, scale, 0), scale, 1)
    tile = np.repeat(tile, 3, 2) if tile.shape[2] == 1 else tile
    height, width = tile.shape[:2]
    first = (sheet[: sheet.shape[0] - height + 1, : sheet.shape[1] - width + 1] == tile[0, 0]).all(
        -1
    )
    return [
        (y, x)
        for y, x in np.argwhere(first)
        if (sheet[y : y + height, x : x + width] == tile).all()
    ]


@pytest.mark.parametrize(("side", "channels", "scale"), [(8, 1, 7), (28, 3, 2), (64, 3, 1)])
def test_every_picture_is_there_once_in_its_place(side, channels, scale):
    pictures = noise(3, 4, side, side, channels)
    sheet = labelled_grid(pictures, ["a", "bb", "ccc"], ["1", "2", "3", "4"], "title")
    places = [[find(sheet, pictures[r, c], scale) for c in range(4)] for r in range(3)]
    assert all(len(place) == 1 for row in places for place in row)
    ys = np.array([[place[0][0] for place in row] for row in places])
    xs = np.array([[place[0][1] for place in row] for row in places])
    assert (ys == ys[:, :1]).all() and (xs == xs[:1]).all()
    assert (np.diff(ys[:, 0]) > side * scale).all() and (np.diff(xs[0]) > side * scale).all()


@pytest.mark.parametrize(
    "label", ["x", "a big red circle to the left of a small blue square", "W" * 90, "été naïve"]
)
def test_labels_are_whole_and_cover_nothing(label, monkeypatch):
    drawn = []
    text = ImageDraw.ImageDraw.text

    def recording(self, xy, line, **options):
        drawn.append((self.textbbox(xy, line, options["font"], options["anchor"]), line))
        text(self, xy, line, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", recording)
    pictures = noise(2, 3, 16, 16, 1)
    sheet = labelled_grid(pictures, [label, "b"], [label, "b", label], label)
    height, width = sheet.shape[:2]
    cells = [find(sheet, p, 4)[0] for p in pictures.reshape(-1, 16, 16, 1)]
    for left, top, right, bottom in (box for box, _ in drawn):
        assert left >= 0 and top >= 0 and right <= width and bottom <= height
        for y, x in cells:
            assert right <= x or left >= x + 64 or bottom <= y or top >= y + 64
    boxes = [box for box, _ in drawn]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], "labels overlap"
    letters = "".join(line for _, line in drawn).replace(" ", "")
    plain = label.replace(" ", "").replace("é", "e").replace("ï", "i")
    assert letters.count(plain) == 4 or len(letters) == 4 * len(plain) + 2


def test_the_sheet_is_light_with_a_margin():
    sheet = labelled_grid(noise(1, 1, 8, 8, 3))
    assert (sheet[:10] == PAPER).all() and (sheet[:, -10:] == PAPER).all()


def test_a_long_grid_is_fine():
    sheet = labelled_grid(noise(200, 2, 8, 8, 1), [str(i) for i in range(200)])
    assert sheet.shape[0] > 200 * grids.CELL


@pytest.mark.parametrize(
    ("pictures", "rows", "said"),
    [
        (noise(2, 2, 4, 4, 1), ["one"], "1 names for 2 rows"),
        (noise(2, 2, 4, 4, 2), [], "must be bytes"),
        (noise(2, 2, 4, 4, 1).astype(float), [], "must be bytes"),
        (np.zeros((0, 2, 4, 4, 1), np.uint8), [], "must be bytes"),
    ],
)
def test_wrong_input_is_refused(pictures, rows, said):
    with pytest.raises(ValueError, match=said):
        labelled_grid(pictures, rows)


def test_a_contact_sheet_shows_every_picture_whole_above_its_label(monkeypatch):
    """Pictures of any shape, each with the colour of its number, are found whole in their cells."""
    shapes = [(160, 160), (80, 160), (320, 100), (20, 20), (7, 300), (160, 120), (100, 100)]
    pictures = [np.full((*s, 3), 20 * n + 30, np.uint8) for n, s in enumerate(shapes)]
    pictures[3] = pictures[3][:, :, :1]
    written = []
    real = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, place, line, **o: (
            written.append((line, place)),
            real(self, place, line, **o),
        ),
    )
    labels = [f"name{n}.jpg" for n in range(7)]
    sheet = grids.contact_sheet(pictures, labels, "a title")
    for n, (height, width) in enumerate(shapes):
        rows, columns = np.nonzero((sheet == 20 * n + 30).all(-1))
        long = max(height, width)
        assert np.ptp(rows) + 1 == pytest.approx(160 * height / long, abs=1)
        assert np.ptp(columns) + 1 == pytest.approx(160 * width / long, abs=1)
        (place,) = (place for line, place in written if line == labels[n])
        assert place[1] > rows.max() and abs(place[0] - columns.mean()) < 2
    with pytest.raises(ValueError, match="7 pictures need as many labels, not 6"):
        grids.contact_sheet(pictures, labels[:6])
