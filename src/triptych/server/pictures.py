"""Pictures from clients: decoded within limits, stripped of everything but their pixels, and stored
as PNG under an opaque id.
"""

import base64
import binascii
import io
import re
import secrets
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from triptych.server.jobs.files import File, Files
from triptych.server.settings import Limits, Places
from triptych.vision.images import open_picture, read_header, save_picture

DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,20};base64,", re.I)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def decode_base64(text: str, limits: Limits) -> bytes:
    """The bytes of a data URL, or of plain base64.

    Raises:
        ValueError: it is neither, or too long.
    """
    if text.startswith(("http:", "https:", "file:", "ftp:")):
        raise ValueError(
            "pictures are not fetched from other places: upload the file, or send it as a data URL"
        )
    encoded = DATA_URL.sub("", text, count=1)
    if len(encoded) > limits.picture_bytes * 4 / 3 + 4:
        raise ValueError(f"the picture has more than {limits.picture_bytes:,} bytes")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(
            "a picture is the id of an upload, or a data URL such as data:image/png;base64,iVBO..."
        ) from None


def open_upload(data: bytes, limits: Limits) -> np.ndarray:
    """The pixels of a file: upright, first frame, 8 bits, on white.

    Raises:
        ValueError: it is too large or no undamaged picture.
    """
    if len(data) > limits.picture_bytes:
        raise ValueError(f"the picture has more than {limits.picture_bytes:,} bytes")
    return open_picture(data)


def store_upload(data: bytes, files: Files, places: Places, limits: Limits) -> File:
    """Store a picture; nothing of its file but the pixels is kept.

    Raises:
        ValueError: as `open_upload`.
    """
    return store_pixels(open_upload(data, limits), files, places)


def store_pixels(pixels: np.ndarray, files: Files, places: Places) -> File:
    """Store pixels as an upload."""
    name = f"{secrets.token_hex(12)}.png"
    save_picture(places.uploads / name, pixels)
    height, width = pixels.shape[:2]
    return files.add_file(f"uploads/{name}", (width, height))


def open_mask(data: bytes, limits: Limits) -> np.ndarray:
    """The mask in OpenAI's form, where transparent pixels are redrawn: white for those.

    Raises:
        ValueError: as `open_upload`, or the picture has no transparency.
    """
    open_upload(data, limits)  # everything that may be wrong with it
    read_header(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if not image.has_transparency_data:
            raise ValueError("the mask has no transparent pixels, which are the ones to redraw")
        alpha = np.asarray(image.convert("RGBA"))[:, :, 3:]
    return np.where(alpha < 128, np.uint8(255), np.uint8(0))


def encode(path: Path, kind: str, quality: int = 95) -> bytes:
    """A stored picture in another format (png, jpeg or webp), without its record unless it stays
    the file that it is.
    """
    if kind == "png":
        return path.read_bytes()
    pixels = open_picture(path)
    out = io.BytesIO()
    _to_image(pixels).save(out, kind.upper(), quality=quality)
    return out.getvalue()


def to_data_url(pixels: np.ndarray, side: int) -> str:
    """A small JPEG as a data URL."""
    image = _to_image(pixels)
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _to_image(pixels: np.ndarray) -> Any:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
