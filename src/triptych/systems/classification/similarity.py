"""From cosine to probability as one picture: every picture against every label, three times.

Left the cosines, then what a softmax over the labels makes of them (CLIP), then what a sigmoid for
each pair does (SigLIP).

Dimensions: N pictures, L labels, H height, W width, C channels.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from triptych.vision.grids import FAINT, GAP, MARGIN, PAPER, TITLE
from triptych.vision.lettering import FONT, INK, Colour, fit_text, height_of, width_of, write

CELL = 68  # pixels a side
BETWEEN = 34  # pixels between matrices
NAMES = 150  # pixels that names of pictures may be wide
LABEL_LINES = 5  # of labels, before they are set smaller
FULL = np.array((43, 96, 152))  # the colour of the largest value
WHITE = (255, 255, 255)


class Reading(NamedTuple):
    """One number for every picture and label, and how to show it."""

    title: str
    values: Float[np.ndarray, "N L"]
    low: float  # shown as paper
    high: float  # shown in full colour
    text: Callable[[float], str]


def cosine_reading(cosines: Float[np.ndarray, "N L"]) -> Reading:
    """Coloured from the lowest to the highest that occurs."""
    title = "cosine"
    return Reading(title, cosines, float(cosines.min()), float(cosines.max()), "{:.3f}".format)


def probability_reading(title: str, values: Float[np.ndarray, "N L"]) -> Reading:
    """Coloured from 0 to 1, in per cent."""
    return Reading(title, values, 0.0, 1.0, _percent)


def _percent(value: float) -> str:
    return "<0.1 %" if 0 < value < 0.0005 else f"{100 * value:.1f} %"


def similarity_picture(
    pictures: Sequence[UInt8[np.ndarray, "_H _W _C"]],
    names: Sequence[str],
    labels: Sequence[str],
    readings: Sequence[Reading],
    title: str = "",
) -> UInt8[np.ndarray, "_H _W 3"]:
    """A row for each picture with its thumbnail and name; a matrix for each reading, side by side.

    The largest value of a row is framed.

    Raises:
        ValueError: there is nothing to draw, or pictures, names, labels and values do not fit.
    """
    shape = (len(names), len(labels))
    if not pictures or not labels or not readings or len(pictures) != len(names):
        raise ValueError(
            f"expected pictures with names, labels and readings, not {len(pictures)}, "
            f"{len(names)}, {len(labels)} and {len(readings)}"
        )
    for reading in readings:
        if reading.values.shape != shape or not np.isfinite(reading.values).all():
            raise ValueError(
                f"{reading.title}: expected finite {shape}, not {reading.values.shape}"
            )
    beside = [fit_text(name, NAMES, CELL) for name in names]
    above = [fit_text(label, CELL - 2, LABEL_LINES * FONT) for label in labels]
    matrix = len(labels) * CELL
    left = MARGIN + max(width_of(*name) for name in beside) + 2 * GAP + CELL + BETWEEN // 2
    width = left + len(readings) * (matrix + BETWEEN) - BETWEEN + MARGIN
    heading = fit_text(title, width - 2 * MARGIN, 4 * TITLE, TITLE) if title else None
    titles = [fit_text(reading.title, matrix, 4 * FONT) for reading in readings]
    y = MARGIN + (height_of(*heading) + 2 * GAP if heading else 0)
    under_titles = y + max(height_of(*lines) for lines in titles) + GAP
    top = under_titles + max(height_of(*label) for label in above) + GAP
    pitch = max([CELL, *(height_of(*name) for name in beside)])
    sheet = Image.new("RGB", (width, top + len(names) * pitch + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    if heading:
        write(draw, *heading, x=MARGIN, y=MARGIN, align="left")
    for row, (picture, name) in enumerate(zip(pictures, beside, strict=True)):
        at = top + row * pitch
        x = left - BETWEEN // 2 - CELL
        middle = at + (pitch - height_of(*name)) // 2
        write(draw, *name, x=x - 2 * GAP, y=middle, align="right")
        _thumbnail(sheet, picture, x, at + (pitch - CELL) // 2)
    for number, reading in enumerate(readings):
        x = left + number * (matrix + BETWEEN)
        write(draw, *titles[number], x=x, y=y, align="left")
        for column, label in enumerate(above):
            middle, at = x + column * CELL + CELL // 2, top - GAP - height_of(*label)
            write(draw, *label, x=middle, y=at, align="centre")
        _matrix(draw, reading, x, top, pitch)
    return np.asarray(sheet)


def neutral_bias(logits: Float[np.ndarray, "N L"]) -> float:
    """The bias at which sigmoids say yes once a picture on average, for a model that has none.

    Found by halving: the sum of the sigmoids rises with the bias.
    """
    low, high = -float(logits.max()) - 50, -float(logits.min()) + 50
    for _ in range(60):
        middle = (low + high) / 2
        yes = (1 / (1 + np.exp(-np.clip(logits + middle, -500, 500)))).sum()
        low, high = (low, middle) if yes > len(logits) else (middle, high)
    return (low + high) / 2


def _matrix(draw: ImageDraw.ImageDraw, reading: Reading, left: int, top: int, pitch: int) -> None:
    spread = reading.high - reading.low
    for (row, column), value in np.ndenumerate(reading.values):
        share = float(np.clip((value - reading.low) / spread, 0, 1)) if spread > 0 else 0.0
        x, y = left + column * CELL, top + row * pitch
        colour = _mix(share)
        best = column == int(reading.values[row].argmax())
        box = (x + 1, y + 1, x + CELL - 2, y + pitch - 2)
        draw.rectangle(box, fill=colour, outline=INK if best else FAINT, width=2 if best else 1)
        lines, size = fit_text(reading.text(float(value)), CELL - 4, CELL)
        dark = sum(colour) < 460
        at = y + (pitch - math.ceil(size * 1.1)) // 2
        fill = WHITE if dark else INK
        write(draw, lines, size, x=x + CELL // 2, y=at, align="centre", fill=fill)


def _mix(share: float) -> Colour:
    red, green, blue = (np.array(PAPER) * (1 - share) + FULL * share).round().astype(int).tolist()
    return red, green, blue


def _thumbnail(sheet: Image.Image, picture: UInt8[np.ndarray, "H W C"], x: int, y: int) -> None:
    """The whole picture, in the middle of a square cell; tiny ones are not smoothed."""
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).convert("RGB")
    scale = (CELL - 4) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    tiny = max(image.size) * 2 <= CELL
    small = image.resize(size, Image.Resampling.NEAREST if tiny else Image.Resampling.LANCZOS)
    sheet.paste(small, (x + (CELL - size[0]) // 2, y + (CELL - size[1]) // 2))
