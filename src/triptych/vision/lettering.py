"""Text in pictures: broken into lines, then set smaller, and nothing of it cut."""

import math
import unicodedata
from collections.abc import Sequence

from PIL import ImageDraw, ImageFont

FONT, SMALLEST = 14, 9  # pixels
LINE = 1.3  # line height over font size
INK = (38, 38, 42)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]


def fitted(text: str, width: int, height: int, size: int = FONT) -> tuple[list[str], int]:
    """Lines and font size that fit into a width, and into the height where that is possible."""
    # The built-in font has no accents: better a plain letter than a box.
    letters = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = " ".join("".join(letters).split()) or " "
    for smaller in range(size, SMALLEST - 1, -1):
        lines = _broken(text, width, _font(smaller), by_letter=smaller == SMALLEST)
        if width_of(lines, smaller) <= width and height_of(lines, smaller) <= height:
            return lines, smaller
    return lines, SMALLEST


def _broken(text: str, width: int, font: Font, by_letter: bool) -> list[str]:
    """Lines of whole words; `by_letter` also breaks words that are wider than a line."""
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
    """Lines below one another from `y` on, `left` of, `centre`d at or up to (`right`) `x`."""
    anchor = {"left": "la", "centre": "ma", "right": "ra"}[align]
    for number, line in enumerate(lines):
        place = (x, y + round(number * size * LINE))
        draw.text(place, line, fill=fill, font=_font(size), anchor=anchor)
