"""Text in pictures: broken into lines, then set in a smaller font, never cut."""

import math
import unicodedata
from collections.abc import Sequence

from PIL import ImageDraw, ImageFont

FONT, SMALLEST = 14, 9  # pixels
LINE = 1.3  # line height over font size
INK = (38, 38, 42)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]


def fit_text(text: str, width: int, height: int, size: int = FONT) -> tuple[list[str], int]:
    """Break a text into lines that fit the width and, if possible, the height; and font size."""
    # The built-in font has no accents: draw plain letters, not boxes.
    letters = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = " ".join("".join(letters).split()) or " "
    for smaller in range(size, SMALLEST - 1, -1):
        lines = _break_lines(text, width, _font(smaller), by_letter=smaller == SMALLEST)
        if width_of(lines, smaller) <= width and height_of(lines, smaller) <= height:
            return lines, smaller
    return lines, SMALLEST


def _break_lines(text: str, width: int, font: Font, by_letter: bool) -> list[str]:
    """Break between words; `by_letter` also breaks words that are wider than a line."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if by_letter and lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def width_of(lines: Sequence[str], size: int) -> int:
    """Pixels that lines need at a font size."""
    return math.ceil(max(_font(size).getlength(line) for line in lines))


def height_of(lines: Sequence[str], size: int) -> int:
    """Pixels from the top of the first line to the bottom of the last."""
    return math.ceil(len(lines) * size * LINE)


def write(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    size: int,
    *,
    x: int,
    y: int,
    align: str,
    fill: Colour = INK,
) -> None:
    """Draw lines from `y` down; `align` says whether `x` is their left, centre or right."""
    anchor = {"left": "la", "centre": "ma", "right": "ra"}[align]
    for number, line in enumerate(lines):
        place = (x, y + round(number * size * LINE))
        draw.text(place, line, fill=fill, font=_font(size), anchor=anchor)
