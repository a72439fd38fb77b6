"""Read pictures safely, save them with the request that made them, and convert tensors to them.

Picture files are untrusted: only five formats are decoded, the size is checked in the header before
any pixel is decoded, and only regular files are opened.

Dimensions: B pictures, H height, W width, C channels (1 grey, 3 red green blue).
"""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile, PngInfo
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from triptych.atomic import replace_file
from triptych.vision.limits import (
    MAX_PIXELS,
    MAX_WEBP_PIXELS,
    CountedReads,
    check_chunks,
    check_exif,
    check_run_length,
    check_scans,
    check_size,
)
from triptych.vision.webp import webp_exif, webp_size

MAX_BYTES = 200_000_000  # an uncompressed picture of the largest size fits
STRIP = 1 << 20  # pixels that are converted at a time, which bounds the memory
MAX_REQUEST = 64 * 1024  # bytes of embedded JSON
MAX_EXIF = 65_527  # bytes: a JPEG segment without its header
ORIENTATION, EXIF_IFD, USER_COMMENT, DESCRIPTION = 0x0112, 0x8769, 0x9286, 0x010E
ASCII, UNICODE = b"ASCII\0\0\0", b"UNICODE\0"
OURS = "triptych "  # marks our JSON in the EXIF description
RUN_LENGTH = (1, 2)  # RLE8 and RLE4 among the compressions of a BMP
GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F"}

# The readers are called directly: `Image.open` would try seventy formats and warn about sizes that
# are refused here anyway.
SIGNATURES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    (re.compile(rb"GIF8[79]a"), GifImageFile),
    (re.compile(rb"BM"), BmpImageFile),
)
CONVERT = "convert it to PNG or JPEG"
UNSUPPORTED = (
    (
        re.compile(rb"version https://git-lfs"),
        "a git-lfs pointer: fetch the file with `git lfs pull`",
    ),
    (
        re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", re.I | re.S),
        "an SVG drawing: " + CONVERT,
    ),
    (re.compile(rb"\s*<(!doctype html|html|head|body)", re.I), "an HTML page"),
    (re.compile(rb"%PDF"), "a PDF document: " + CONVERT),
    (re.compile(rb"....ftyp(avif|avis|heic|heix|mif1)", re.S), "HEIC or AVIF: " + CONVERT),
    (re.compile(rb"II\*\0|MM\0\*"), "TIFF: " + CONVERT),
)


class Header(NamedTuple):
    """Format and size of a picture, from its first bytes."""

    format: str  # PNG, JPEG, WEBP, GIF or BMP
    height: int  # as shown, after EXIF rotation
    width: int
    grey: bool


def open_picture(
    file: Path | bytes, *, channels: int | None = None, near: int | None = None
) -> UInt8[np.ndarray, "H W C"]:
    """Decode a picture file (a path or its bytes): the first frame, upright, in 8 bits.

    Transparent parts become white; colour profiles are ignored. `channels` is 1, 3, or None for
    the number in the file. With `near` a JPEG may be decoded at a reduced scale, but not below
    `2 * near` pixels a side: faster when it is resized to `near` anyway.

    Raises:
        ValueError: with the reason, if this is not an undamaged picture within the limits.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1, 3 or None, not {channels}")
    try:
        data = file if isinstance(file, bytes) else read_part(file)
        image = _open_lazily(data)
        if near is not None and isinstance(image, JpegImageFile):
            image.draft(image.mode, (2 * near, 2 * near))
        image.load()
        return upright_pixels(image, channels)
    except Exception as error:  # whatever Pillow raises on a damaged file
        raise ValueError(_reason(error)) from None


def read_header(data: bytes) -> Header:
    """Format and size of a picture from the first bytes of its file, without decoding it.

    Raises ValueError as `open_picture`, and if the header is longer than `data`.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":  # Pillow would decode it
        width, height = webp_size(data)
        check_size(width, height, MAX_WEBP_PIXELS)
        if _is_turned(webp_exif(data)):
            width, height = height, width
        return Header("WEBP", height, width, False)
    try:
        image = _open_lazily(data)
        # Only EXIF before the pixels: `getexif` would decode a PNG to find it after them.
        check_exif(image.info.get("exif", b""))
        turned = "exif" in image.info and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception as error:  # whatever Pillow raises on a damaged file
        raise ValueError(_reason(error)) from None
    width, height = image.size[::-1] if turned else image.size
    return Header(str(image.format), height, width, image.mode in GREY_MODES)


def read_part(path: str | Path, offset: int = 0, size: int | None = None) -> bytes:
    """`size` bytes of a regular file from `offset` on, fewer if it ends before; None is the rest.

    Raises ValueError for more than MAX_BYTES and for a pipe, socket or device (without waiting for
    it), OSError if the file cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        size = status.st_size - offset if size is None else size
        if size > MAX_BYTES:
            raise ValueError(f"{size:,} bytes, more than the limit of {MAX_BYTES:,}")
        os.lseek(handle, offset, os.SEEK_SET)
        parts = []
        while size > 0 and (part := os.read(handle, size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
    finally:
        os.close(handle)


def _open_lazily(data: bytes) -> Image.Image:
    head = data[:1024]
    if not head:
        raise ValueError("an empty file")
    reader = next((reader for signature, reader in SIGNATURES if signature.match(head)), None)
    if reader is None:
        reason = next((text for pattern, text in UNSUPPORTED if pattern.match(head)), None)
        raise ValueError(reason or "not a PNG, JPEG, WebP, GIF or BMP picture")
    if reader is WebPImageFile:  # Pillow decodes a WebP when it opens it
        check_size(*webp_size(head), MAX_WEBP_PIXELS)
    if reader is PngImageFile:
        check_chunks(data)
    elif reader is JpegImageFile:
        check_scans(data)
    image: Image.Image = reader(CountedReads(data))  # type: ignore[arg-type]
    check_size(*image.size)
    if reader is BmpImageFile and image.info["compression"] in RUN_LENGTH:
        check_run_length(*image.size)
    return image


def upright_pixels(image: Image.Image, channels: int | None) -> UInt8[np.ndarray, "H W C"]:
    """A picture of PIL, decoded, as 8-bit pixels, as `open_picture` gives them.

    Raises:
        ValueError: its EXIF data are too large, or it lacks its palette.
    """
    check_exif(image.info.get("exif", b""))
    if image.mode in ("P", "PA") and image.palette is None:
        raise ValueError("a palette picture without its palette")
    return _to_array(_rotate_upright(image), channels)


def _is_turned(data: bytes) -> bool:
    """Whether EXIF data exchange height and width; damaged ones do not."""
    exif = Image.Exif()
    try:
        check_exif(data)
        exif.load(data)
        return exif.get(ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:
        return False


def _rotate_upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(ORIENTATION, 1) == 1:
            return image  # exif_transpose would copy it
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data does not spoil the pixels
        return image


def _to_array(image: Image.Image, channels: int | None) -> UInt8[np.ndarray, "H W C"]:
    grey = image.mode in GREY_MODES if channels is None else channels == 1
    pixels = np.empty((image.height, image.width, 1 if grey else 3), np.uint8)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        part = image
        if image.height > rows:
            part = image.crop((0, top, image.width, min(top + rows, image.height)))
        strip = np.asarray(_flatten(part, "L" if grey else "RGB"))
        pixels[top : top + rows] = strip[:, :, None] if grey else strip
    return pixels


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """A picture in 8 bits and over white."""
    if image.mode.startswith("I"):  # 16 bits: Pillow would clip, not scale
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == mode else image.convert(mode)  # convert copies


def _reason(error: BaseException) -> str:
    """The reason as one phrase to put after a file's name, without Pillow's memory addresses."""
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS // 1_000_000} megapixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    text = re.sub(r"<_io\.\w+ object at 0x[0-9a-f]+>", "it", text)
    if "truncated" in text or "cut short" in text:
        return "cut short"
    if type(error) is ValueError and text:
        return text
    return f"damaged ({text or type(error).__name__})"


def resize_crop(
    picture: UInt8[np.ndarray, "H W C"], size: int
) -> UInt8[np.ndarray, "{size} {size} C"]:
    """The centre square of a picture, resampled with antialiasing to `size` pixels a side."""
    return resize_cover(picture, size, size)


def resize_cover(
    picture: UInt8[np.ndarray, "H W C"], high: int, wide: int
) -> UInt8[np.ndarray, "{high} {wide} C"]:
    """Resize with antialiasing to cover `high` x `wide` pixels, then crop the centre."""
    height, width, channels = picture.shape
    if (height, width) == (high, wide):
        return picture
    tall = height * wide > width * high  # top and bottom are cropped
    kept_h, kept_w = (width * high / wide, width) if tall else (height, height * wide / high)
    left, top = (width - kept_w) / 2, (height - kept_h) / 2
    image = Image.fromarray(picture[:, :, 0] if channels == 1 else picture)
    box = (left, top, left + kept_w, top + kept_h)
    resized = np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC, box=box))
    return resized.reshape(high, wide, channels)


def to_pictures(images: Float[Tensor, "B C H W"]) -> UInt8[np.ndarray, "B H W C"]:
    """Tensors in [-1, 1] as 8-bit pictures; values outside are clipped, NaN becomes black."""
    scaled = images.detach().float().add(1).mul(127.5).nan_to_num(nan=0.0)
    bytes_ = scaled.round_().clamp_(0, 255).to(torch.uint8)
    return np.ascontiguousarray(bytes_.permute(0, 2, 3, 1).cpu().numpy())


def save_picture(
    path: Path,
    picture: UInt8[np.ndarray, "H W C"],
    request: dict[str, Any] | None = None,
    parameters: str = "",
) -> None:
    """Write a PNG, JPEG or WebP (by the ending of `path`) that carries the request that made it.

    The file is replaced atomically. PNG and WebP are lossless. Local paths in the request are left
    out, so that a shared picture reveals nothing about the machine it was made on. `parameters` is
    AUTOMATIC1111's text (`systems/stable_diffusion/parameters_text.py`), stored where other
    programs look for it: a PNG text chunk or the EXIF comment.

    Raises:
        ValueError: another ending, or a request or text that is too long for the file.
    """
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    kind = formats.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path.name!r} must end in .png, .jpg or .webp")
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    options: dict[str, Any] = {}
    if kind != "PNG":
        options = {"quality": 95} if kind == "JPEG" else {"lossless": True}
    text = "" if request is None else json.dumps(_drop_paths(request))
    if len(text) > MAX_REQUEST - 1024:
        raise ValueError(
            f"the request has {len(text):,} bytes of JSON, too many for a picture's limit of "
            f"{MAX_REQUEST:,}"
        )
    if kind == "PNG":
        options["pnginfo"] = PngInfo()
        for name, record in (("parameters", parameters), ("triptych", text)):
            if record:
                options["pnginfo"].add_text(name, record)
    elif text or parameters:
        options["exif"] = _exif(text, parameters)
        if kind == "JPEG" and len(options["exif"]) > MAX_EXIF:
            raise ValueError(
                f"the request and its text have {len(options['exif']):,} bytes and a JPEG holds "
                f"{MAX_EXIF:,}: save a .png or .webp"
            )
    with replace_file(path) as temporary, temporary.open("wb") as file:
        image.save(file, kind, **options)


def _exif(request: str, parameters: str) -> bytes:
    """With `parameters` these are the comment, for other programs, and the request is the
    description; without, the request is the comment.
    """
    exif = Image.Exif()
    if parameters:
        comment = UNICODE + parameters.encode("utf-16-be")
        if request:
            exif[DESCRIPTION] = OURS + request
    else:
        comment = ASCII + request.encode("ascii")
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = comment
    return exif.tobytes()


def read_request(file: Path | bytes) -> dict[str, Any] | None:
    """The request inside a picture (a path or its bytes) that `save_picture` wrote; None if there
    is none.
    """
    try:
        data = file if isinstance(file, bytes) else read_part(file)
        image = _open_lazily(data)
        text = image.info.get("triptych")
        if isinstance(image, JpegImageFile | WebPImageFile):
            exif = image.getexif()
            text = exif.get(DESCRIPTION, "")
            if isinstance(text, str) and text.startswith(OURS):
                text = text.removeprefix(OURS)
            else:
                comment = exif.get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
                text = comment.removeprefix(ASCII).decode("ascii")
        if not isinstance(text, str) or len(text) > MAX_REQUEST:
            return None
        request: Any = json.loads(text)
    except Exception:
        return None
    return request if isinstance(request, dict) else None


def read_parameters(file: Path | bytes) -> str | None:
    """AUTOMATIC1111's text inside a picture of any program, a path or its bytes; None if there is
    none.

    It is the text chunk `parameters` of a PNG, before or after the pixels, the EXIF comment of a
    JPEG or WebP, or the comment of a GIF.

    Raises:
        ValueError: the file is not an undamaged picture; the message has path and reason.
    """
    try:
        data = file if isinstance(file, bytes) else read_part(file)
        image = _open_lazily(data)
        if isinstance(image, PngImageFile):
            if "parameters" not in image.info and b"parameters" in data:
                image.load()  # reads the chunks after the pixels
            text = image.info.get("parameters")
        elif isinstance(image, GifImageFile):
            text = _decode_comment(image.info.get("comment", b""))
        else:
            text = _decode_comment(image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, b""))
    except Exception as error:  # whatever Pillow raises on a damaged file
        place = "" if isinstance(file, bytes) else f"{file}: "
        raise ValueError(f"{place}{_reason(error)}") from None
    return str(text) if text else None


def _decode_comment(data: Any) -> str:
    """Eight bytes name the encoding, the text follows. Programs disagree on the byte order of
    `UNICODE`: it is big-endian if more of the even bytes are zero.
    """
    if not isinstance(data, bytes):
        return str(data)
    if data.startswith(UNICODE):
        data = data.removeprefix(UNICODE)
        big = data[0::2].count(0) >= data[1::2].count(0)
        text = data.decode("utf-16-be" if big else "utf-16-le", "replace").lstrip("\ufeff")
    else:
        text = data.removeprefix(ASCII).removeprefix(b"\0" * 8).decode("utf-8", "replace")
    text = text.strip("\0")
    return "" if text.startswith("{") else text  # our JSON, or ComfyUI's


def _drop_paths(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {name: _drop_paths(item) for name, item in value.items() if not _is_path(item)}
        return kept
    if isinstance(value, list | tuple):
        return [_drop_paths(item) for item in value if not _is_path(item)]
    return value


def _is_path(value: Any) -> bool:
    """A path object, or a string that is one absolute path; prompts may contain slashes."""
    if isinstance(value, os.PathLike):
        return True
    pattern = r"(~|file://)?(/[^/\0]+){2,}/?|~/.*|[A-Za-z]:[\\/].*|\\\\.*"
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None
