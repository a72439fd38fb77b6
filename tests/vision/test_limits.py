"""Small files that would keep a decoder busy are refused before it starts; real ones are read."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from triptych.vision import images, limits
from triptych.vision.images import open_picture, read_header


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*before, after=(), colour=2, width=4):
    """A PNG of 4 x 4 pixels with further chunks before and after them."""
    header = struct.pack(">IIBBBBB", width, 4, 8, colour, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + width * (3 if colour == 2 else 1)) * 4))
    chunks = [chunk(b"IHDR", header), *before, chunk(b"IDAT", pixels), *after, chunk(b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg(scans, side=8):
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.new("L", (side, side), 99), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def within_jpeg(junk):
    data = encoded(Image.new("L", (8, 8)), "JPEG")
    return data[:2] + junk + data[2:]


def gif(screen, frame, before=b""):
    """A GIF of two colours whose first frame may be larger than its screen."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6) + before
    return head + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00;"


def run_lengths(width, height):
    palette = bytes(level for index in range(256) for level in (index, 0, index, 0))
    rows = b"\x01\x05\x00\x00" * height  # one pixel, then the end of the row
    start = 54 + len(palette)
    head = b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start)
    sizes = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return head + sizes + palette + rows


def webp(width, height):
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\0\0\0\0WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sides


TEXT = chunk(b"tEXt", b"a\0b")
COSTLY = {
    "a JPEG of many scans": (jpeg(101), "scans or more"),
    "a large JPEG of some scans": (jpeg(60, 5000), "scans or more"),
    "a PNG of many texts": (png(*[TEXT] * 300), "more than 256 texts"),
    "a PNG of many texts at its end": (png(after=[TEXT] * 300), "more than 256 texts"),
    "a PNG of many empty chunks of pixels": (png(*[chunk(b"IDAT")] * 110_000), "small parts"),
    "a PNG of much EXIF": (png(chunk(b"eXIf", b"II*\0" + bytes(300_000))), "bytes of EXIF"),
    "a JPEG with bytes between its parts": (within_jpeg(b"\xff" * 260_000), "small parts"),
    "a JPEG of many comments": (within_jpeg(b"\xff\xfe\0\2" * 110_000), "small parts"),
    "a GIF of many extensions": (gif((4, 4), (4, 4), b"!\xf0\1\0\0" * 100_000), "small parts"),
    "a GIF with a frame beyond all bounds": (gif((1, 1), (65_535, 65_535)), "40 megapixels"),
    "a GIF with a frame larger than its screen": (gif((1, 1), (9000, 9000)), "40 megapixels"),
    "a BMP of run lengths": (run_lengths(16_000, 160), "run-length encoded"),
    "a WebP that needs much memory": (webp(8000, 5000), "30 megapixels"),
}


@pytest.mark.parametrize("kind", COSTLY)
def test_what_costs_too_much_is_refused(kind):
    data, reason = COSTLY[kind]
    with pytest.raises(ValueError, match=reason):
        open_picture(data)


def small_screen():
    data = encoded(Image.new("L", (40, 20)), "GIF")
    return data[:6] + struct.pack("<HH", 4, 4) + data[10:]


ODD = {
    "80 scans": jpeg(80),
    "200 texts": png(*[TEXT] * 200, *[chunk(b"IDAT")] * 1000),
    "a JPEG of some comments": within_jpeg(b"\xff\xfe\0\2" * 5000 + b"\xff" * 1000),
    "a GIF with a comment": encoded(Image.new("L", (4, 4)), "GIF", comment=b"x" * 5000),
    "a frame larger than its screen": small_screen(),
    "run lengths": run_lengths(1000, 100),
    "a film after the picture": encoded(Image.effect_noise((99, 50), 90), "JPEG", progressive=True)
    + b"\xff\xda" * 200,  # as telephones append it
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_only_odd_is_read(kind):
    header = read_header(ODD[kind])
    assert open_picture(ODD[kind]).shape[:2] == (header.height, header.width)


def test_thumbnails_are_no_scans():
    """The EXIF data of a camera's JPEG hold a small JPEG."""
    exif = b"Exif\0\0" + b"\xff\xda" * 200
    data = within_jpeg(b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif)
    assert open_picture(data).shape == (8, 8, 1)


@pytest.mark.parametrize("transparency", [(), (chunk(b"tRNS", b"\0"),)])
def test_a_palette_picture_without_its_palette_is_refused(transparency):
    with pytest.raises(ValueError, match="without its palette"):
        open_picture(png(*transparency, colour=3), channels=3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_pictures_are_converted_strip_by_strip(monkeypatch, mode):
    """As if at once, which would take three times the memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (23, 9, 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("RGB" if mode in ("P", "CMYK", "I;16") else mode)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode in ("P", "CMYK"):
        image = image.convert(mode)
    options = {"transparency": 3} if mode == "P" else {}
    data = encoded(image, "JPEG" if mode == "CMYK" else "PNG", **options)
    for channels in (1, 3, None):
        at_once = open_picture(data, channels=channels)
        with monkeypatch.context() as patch:
            patch.setattr(images, "STRIP", 4 * 9)
            assert np.array_equal(open_picture(data, channels=channels), at_once)


def scans(count: int, side: int = 1) -> bytes:
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 8, 8, side, side, 0)
    return b"\xff\xd8" + frame + (b"\xff\xda" + struct.pack(">HBBBB", 6, 0, 0, 63, 0)) * count


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda extra: limits.check_size(limits.MAX_SIDE + extra, 1), "16,384 pixels a side"),
        (lambda extra: limits.check_size(1, limits.MAX_SIDE + extra), "16,384 pixels a side"),
        (lambda extra: limits.check_size(8000, 5000 + extra), "40 megapixels"),
        (lambda extra: limits.check_size(10, 10 + extra, 100), "pixels"),
        (lambda extra: limits.check_run_length(2000, 1000 + extra), "2 megapixels"),
        (lambda extra: limits.check_exif(bytes(limits.MAX_EXIF + extra)), "262,145 bytes"),
        (lambda extra: limits.check_scans(scans(limits.MAX_SCANS + extra)), "101 scans"),
        (lambda extra: limits.check_scans(scans(10, 10_000 + extra)), "10 scans"),
        (lambda extra: limits.check_chunks(png(*[chunk(b"tEXt", b"a\0b")] * (255 + extra))),
         "more than 256 texts"),
    ],
)  # fmt: skip
def test_what_is_at_a_bound_is_read(check, words: str) -> None:
    """The header of a PNG is one of its chunks."""
    check(0)
    with pytest.raises(ValueError, match=words):
        check(1)
