"""Mutated pictures are decoded, or refused with a reason, in a second and 512 MB."""

import io
import os

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.fuzz.mutate import fuzz
from triptych.vision.images import (
    open_picture,
    read_header,
    read_parameters,
    read_request,
    save_picture,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:::PIL")]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pictures() -> list[bytes]:
    """Small pictures of every format, mode and form that is read."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8))
    smooth = noise.resize((40, 24), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    frames = {"save_all": True, "append_images": [noise, smooth], "duration": 20}
    sixteen = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    made = [encoded(image.convert(mode), "PNG") for image in (noise, smooth)
            for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]  # fmt: skip
    made += [
        encoded(sixteen, "PNG"),
        encoded(noise, "PNG", exif=exif.tobytes(), icc_profile=profile),
        encoded(smooth.convert("P"), "PNG", transparency=0),
        encoded(noise, "PNG", **frames),
    ]
    for mode in ("L", "RGB", "CMYK"):
        plain = smooth.convert("RGB").convert(mode)
        made.append(encoded(plain, "JPEG", exif=exif.tobytes(), quality=60))
        made.append(encoded(plain, "JPEG", progressive=True, icc_profile=profile, comment=b"text"))
    made += [
        encoded(smooth.convert("RGB"), "JPEG", restart_marker_blocks=1),
        encoded(smooth, "WEBP", exif=exif.tobytes()),
        encoded(smooth.convert("RGB"), "WEBP", lossless=True),
        encoded(noise, "WEBP", save_all=True, append_images=[noise.rotate(180)]),
        encoded(smooth.convert("RGB"), "GIF", comment=b"text"),
        encoded(smooth.convert("P"), "GIF", transparency=0, interlace=1),
        encoded(noise.convert("RGB"), "GIF", **frames),
    ]
    made += [encoded(smooth.convert("RGB").convert(mode), "BMP") for mode in ("1", "L", "P", "RGB")]
    return [*made, run_lengths()]


def run_lengths() -> bytes:
    """A run-length encoded BMP, which Pillow does not write."""
    plain = bytearray(encoded(Image.new("P", (8, 4)), "BMP"))
    plain[30] = 1  # RLE8
    start = int.from_bytes(plain[10:14], "little")
    row = b"\x05\x07\x00\x03\x01\x02\x03\x00\x00\x00"  # five of one, three others, end of row
    return bytes(plain[:start]) + row * 4 + b"\x00\x01"


def test_pictures(capsys) -> None:
    def read(data: bytes) -> None:
        error = ""
        try:
            header = read_header(data)
        except ValueError as refused:
            error = str(refused)
        for near in (None, 4):
            picture = open_picture(data, channels=3, near=near)
            assert picture.dtype == np.uint8 and picture.shape[2] == 3
        assert not error, error  # what is decoded has a header
        assert picture.shape[0] <= header.height and picture.shape[1] <= header.width

    counts = fuzz(pictures(), read, ValueError)
    with capsys.disabled():
        print(f"\npictures: {dict(counts)}")
    assert min(counts["read"], counts["refused"]) > 0


def test_what_pictures_carry(tmp_path, capsys) -> None:
    """The requests and parameters inside them."""
    picture = np.zeros((4, 5, 3), np.uint8)
    samples = []
    for ending in ("png", "jpg", "webp"):
        save_picture(tmp_path / f"a.{ending}", picture, {"prompt": "a", "seed": 1}, "a\nSteps: 20")
        samples.append((tmp_path / f"a.{ending}").read_bytes())
    path = tmp_path / "mutated"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        request = read_request(path)
        assert request is None or isinstance(request, dict)
        text = read_parameters(path)
        assert text is None or isinstance(text, str)

    counts = fuzz(samples, read, ValueError)
    with capsys.disabled():
        print(f"\nwhat pictures carry: {dict(counts)}")
    assert min(counts["read"], counts["refused"]) > 0
    assert os.listdir(tmp_path)
