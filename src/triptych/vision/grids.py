"""Labelled grids of pictures, for training, evaluation and figures.

Dimensions: R rows, K columns, H height, W width, C channels.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from triptych.vision.images import save_picture, to_pictures
from triptych.vision.lettering import FONT, fit_text, height_of, width_of, write

CELL = 56  # pixels: smaller pictures are enlarged to about this
GAP, MARGIN = 6, 16
TITLE = 18  # pixels
THUMBNAIL, ACROSS = 160, 5  # pixels of a contact sheet's cell, cells in its row
ROW_LABELS = 190  # pixels wide at most
NARROWEST = 300  # pixels that a title may have
PAPER, FAINT = (250, 250, 247), (222, 222, 216)


def labelled_grid(
    pictures: UInt8[np.ndarray, "R K H W C"],
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
) -> UInt8[np.ndarray, "_H _W 3"]:
    """Lay out pictures as a table with names beside the rows and above the columns.

    Tiny pictures are enlarged by a whole factor, without smoothing. Long labels are broken into
    lines, then set in a smaller font, never cut. Empty `rows` or `columns` take no space.
    """
    shape = pictures.shape
    if pictures.dtype != np.uint8 or pictures.ndim != 5 or shape[4] not in (1, 3) or 0 in shape:
        raise ValueError(
            f"pictures must be bytes (R, K, H, W, 1 or 3), not {pictures.dtype} {shape}"
        )
    for name, labels, count in (("rows", rows, shape[0]), ("columns", columns, shape[1])):
        if labels and len(labels) != count:
            raise ValueError(f"{len(labels)} names for {count} {name}")
    scale = max(1, math.ceil(CELL / max(shape[2], shape[3])))
    height, width = shape[2] * scale, shape[3] * scale
    beside = [fit_text(label, ROW_LABELS, height) for label in rows]
    above = [fit_text(label, width, 6 * FONT) for label in columns]
    left = MARGIN + (max(width_of(*label) for label in beside) + 2 * GAP if beside else 0)
    grid_width = shape[1] * (width + GAP) - GAP
    full_width = max(left + grid_width + MARGIN, NARROWEST if title else 0)
    heading = fit_text(title, full_width - 2 * MARGIN, 4 * TITLE, TITLE) if title else None
    top = MARGIN + (height_of(*heading) + 2 * GAP if heading else 0)
    top += max(height_of(*label) for label in above) + GAP if above else 0
    # A label may be taller than its picture when even the smallest font needs more lines.
    pitch = max([height, *(height_of(*label) for label in beside)]) + GAP
    sheet = Image.new("RGB", (full_width, top + shape[0] * pitch - GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    if heading:
        write(draw, *heading, x=MARGIN, y=MARGIN, align="left")
    for column, label in enumerate(above):
        x = left + column * (width + GAP) + width // 2
        write(draw, *label, x=x, y=top - GAP - height_of(*label), align="centre")
    for row, label in enumerate(beside):
        y = top + row * pitch + (height - height_of(*label)) // 2
        write(draw, *label, x=left - 2 * GAP, y=max(y, top + row * pitch), align="right")
    for row in range(shape[0]):
        for column in range(shape[1]):
            x, y = left + column * (width + GAP), top + row * pitch
            draw.rectangle((x - 1, y - 1, x + width, y + height), outline=FAINT)
            sheet.paste(_enlarged(pictures[row, column], scale), (x, y))
    return np.asarray(sheet)


def labelled_tensors(
    images: Float[Tensor, "R K C H W"],
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
) -> UInt8[np.ndarray, "_H _W 3"]:
    """`labelled_grid` of images in [-1, 1]."""
    pictures = to_pictures(images.flatten(0, 1))
    cells = pictures.reshape(*images.shape[:2], *pictures.shape[1:])
    return labelled_grid(cells, rows, columns, title)


def contact_sheet(
    pictures: Sequence[UInt8[np.ndarray, "_H _W _C"]], labels: Sequence[str], title: str = ""
) -> UInt8[np.ndarray, "_H _W 3"]:
    """Pictures of any shapes in reading order, each in a square cell above its label.

    Raises:
        ValueError: there are no pictures, or not as many labels.
    """
    if not pictures or len(labels) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures need as many labels, not {len(labels)}")
    columns = min(len(pictures), ACROSS)
    width = max(MARGIN + columns * (THUMBNAIL + 2 * GAP) - 2 * GAP + MARGIN, NARROWEST)
    heading = fit_text(title, width - 2 * MARGIN, 4 * TITLE, TITLE) if title else None
    below = [fit_text(label, THUMBNAIL, 3 * FONT) for label in labels]
    under = max(height_of(*label) for label in below)
    top = MARGIN + (height_of(*heading) + 2 * GAP if heading else 0)
    pitch = THUMBNAIL + GAP + under + 2 * GAP
    sheet = Image.new("RGB", (width, top + math.ceil(len(labels) / columns) * pitch), PAPER)
    draw = ImageDraw.Draw(sheet)
    if heading:
        write(draw, *heading, x=MARGIN, y=MARGIN, align="left")
    for number, (picture, label) in enumerate(zip(pictures, below, strict=True)):
        x = MARGIN + number % columns * (THUMBNAIL + 2 * GAP)
        y = top + number // columns * pitch
        image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
        image = ImageOps.contain(image.convert("RGB"), (THUMBNAIL, THUMBNAIL))
        left, down = (THUMBNAIL - image.width) // 2, (THUMBNAIL - image.height) // 2
        draw.rectangle((x - 1, y - 1, x + THUMBNAIL, y + THUMBNAIL), outline=FAINT)
        sheet.paste(image, (x + left, y + down))
        write(draw, *label, x=x + THUMBNAIL // 2, y=y + THUMBNAIL + GAP, align="centre")
    return np.asarray(sheet)


def save_figures(
    figures: Mapping[str, UInt8[np.ndarray, "_H _W 3"]], folder: Path, seed: int
) -> list[Path]:
    """Write each figure as `NAME.png`, which carries its name and seed."""
    for name, picture in figures.items():
        save_picture(folder / f"{name}.png", picture, {"figure": name, "seed": seed})
    return [folder / f"{name}.png" for name in figures]


def _enlarged(picture: UInt8[np.ndarray, "H W C"], scale: int) -> Image.Image:
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    size = (image.width * scale, image.height * scale)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST)
