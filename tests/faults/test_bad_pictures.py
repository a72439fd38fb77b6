"""More than thirty kinds of odd and broken picture: each is read right, or skipped with a reason.

Every kind is tried alone and as a twentieth of a folder of good pictures.
"""

import io
import json
import os
import socket
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import BmpImagePlugin, Image, ImageCms

from tests.systems.clip.tiny_clip import saved, tiny_clip
from triptych.cli.main import run
from triptych.data.order.batches import take
from triptych.data.sources import open_index, open_source
from triptych.vision.images import open_picture

SIDE = 16
RED, GREY = (200, 30, 40), 90


def gradient():
    """A picture whose corners differ, so a wrong rotation shows: red to the right, green down."""
    y, x = np.mgrid[:SIDE, :SIDE] * 16
    return np.stack([x, y, np.full_like(x, 50)], -1).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(pixels=None, **options):
    return encoded(Image.fromarray(gradient() if pixels is None else pixels), **options)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    """A PNG that announces a size and holds next to nothing: a decompression bomb's first bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


def turned(orientation):
    """The gradient as a camera held another way stores it, with the note how to turn it back."""
    back = {
        1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud,
        5: lambda p: p.swapaxes(0, 1), 6: np.rot90,
        7: lambda p: np.rot90(p, 2).swapaxes(0, 1), 8: lambda p: np.rot90(p, -1),
    }  # fmt: skip
    stored = np.ascontiguousarray(back[orientation](gradient()))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return png(stored, exif=exif.tobytes())


def palette_with_alpha():
    image = Image.new("P", (SIDE, SIDE), 1)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((0, 0), 0)
    return encoded(image, transparency=0)


def animated(kind):
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in (RED, (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=99, **options)


def flipped_bits():
    data = bytearray(png())
    data[60:70] = bytes(255 - byte for byte in data[60:70])
    return bytes(data)


def plain(colour):
    return np.broadcast_to(np.array(colour, np.uint8), (SIDE, SIDE, 3))


def over_white(alpha):
    return np.rint(np.array(RED) * alpha / 255 + 255 * (1 - alpha / 255)).astype(np.uint8)


SIXTEEN = (np.arange(SIDE * SIDE, dtype=np.uint16) * 257).reshape(SIDE, SIDE)
BITS = np.indices((SIDE, SIDE)).sum(0) % 2 == 0
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

READ = {  # what it is: (its bytes, the pixels it must have, how far they may be off)
    "sound": (png(), gradient(), 0),
    "png called jpg": (png(), gradient(), 0),
    "cmyk jpeg": (
        encoded(Image.new("RGB", (SIDE, SIDE), RED).convert("CMYK"), "JPEG", quality=100),
        plain(RED), 4,
    ),
    "grey jpeg": (encoded(Image.new("L", (SIDE, SIDE), GREY), "JPEG"), plain((GREY,) * 3), 1),
    "16 bits": (encoded(Image.fromarray(SIXTEEN)), np.repeat((SIXTEEN >> 8)[..., None], 3, 2), 0),
    "1 bit": (encoded(Image.fromarray(BITS)), np.repeat(BITS[..., None] * 255, 3, 2), 0),
    "palette with alpha": (palette_with_alpha(), None, 0),
    "half transparent": (
        encoded(Image.new("RGBA", (SIDE, SIDE), (*RED, 128))), plain(over_white(128)), 1,
    ),
    "grey with alpha": (encoded(Image.new("LA", (SIDE, SIDE), (GREY, 0))), plain((255,) * 3), 0),
    "animated gif": (animated("GIF"), plain(RED), 4),
    "animated webp": (animated("WEBP"), plain(RED), 1),
    "animated png": (animated("PNG"), plain(RED), 0),
    "colour profile": (png(icc_profile=ICC), gradient(), 0),
    "1 x 1": (encoded(Image.new("RGB", (1, 1), RED)), plain(RED), 0),
    "bytes after the end": (png() + b"PK\3\4 more", gradient(), 0),
    "bmp": (encoded(Image.fromarray(gradient()), "BMP"), gradient(), 0),
    "interlaced header, 400 x 1": (encoded(Image.new("RGB", (400, 1), RED)), plain(RED), 0),
    "damaged exif": (png(exif=b"Exif\0\0II*\0\xff\xff\xff\xff junk"), gradient(), 0),
    **{f"exif {n}": (turned(n), gradient(), 0) for n in range(1, 9)},
}  # fmt: skip

SKIPPED = {  # what it is: (its bytes, part of the reason)
    "empty": (b"", "empty file"),
    "html": (b"<!DOCTYPE html>\n<html><body>404", "HTML"),
    "svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
    "text": (b"hello, I am a picture", "not a PNG"),
    "zeros": (bytes(1000), "not a PNG"),
    "tiff": (encoded(Image.fromarray(gradient()), "TIFF"), "TIFF"),
    "pdf": (b"%PDF-1.7\n", "PDF"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
    "header alone": (png()[:40], "damaged|cut short"),
    "signature alone": (b"\x89PNG\r\n\x1a\n", "damaged|cut short"),
    "jpeg start alone": (b"\xff\xd8\xff\xe0", "damaged|cut short"),
    "webp start alone": (b"RIFF\0\0\0\0WEBPVP8 ", "cut short"),
    "bomb 60000 x 60000": (png_header(60_000, 60_000), "60000 x 60000 pixels, more"),
    "20000 x 1": (encoded(Image.new("L", (20_000, 1))), "20000 x 1 pixels, more"),
    "41 megapixels": (png_header(8_200, 5_000), "40 megapixels"),
    "no pixels": (png_header(0, 5), "damaged|no pixels|cut short"),
}

REPLACED = {  # sound by their header, found broken when they are decoded
    "cut png": png(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8))[:-200],
    "cut jpeg": encoded(Image.effect_noise((64, 64), 90), "JPEG")[:-900],
    "flipped bits": flipped_bits(),
    "another size than announced": png_header(SIDE, SIDE),
}


def good(folder: Path, count: int) -> None:
    folder.mkdir()
    for i in range(count):
        (folder / f"good{i:03d}.png").write_bytes(
            encoded(Image.new("RGB", (SIDE, SIDE), (i, 0, 99)))
        )


def name_of(kind: str) -> str:
    return "odd.jpg" if "jpg" in kind else "odd.png"


@pytest.mark.parametrize("kind", READ)
def test_odd_pictures_are_read_right(tmp_path, kind):
    data, expected, tolerance = READ[kind]
    (tmp_path / name_of(kind)).write_bytes(data)
    source = open_source(str(tmp_path), size=SIDE, channels=3)
    pixels = source.read([0])["image"][0].astype(int)
    if expected is None:  # red with one transparent corner, which becomes white
        expected = plain(RED).copy()
        expected[0, 0] = 255
    assert np.abs(pixels - expected).max() <= tolerance


@pytest.mark.parametrize("kind", SKIPPED)
def test_a_broken_picture_alone_is_an_error_with_the_reason(tmp_path, kind):
    data, reason = SKIPPED[kind]
    (tmp_path / "odd.png").write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        open_source(str(tmp_path), size=SIDE)


@pytest.mark.parametrize("kind", REPLACED)
def test_a_picture_that_breaks_late_alone_is_an_error(tmp_path, kind):
    (tmp_path / "odd.png").write_bytes(REPLACED[kind])
    source = open_source(str(tmp_path), size=SIDE)
    with pytest.raises(ValueError, match=r"no picture of .* can be read"):
        take(source, [0])


@pytest.mark.parametrize("kind", [*READ, *SKIPPED, *REPLACED])
def test_one_in_twenty(tmp_path, kind):
    root = tmp_path / "set"
    good(root, 19)
    data = {
        **{k: v[0] for k, v in READ.items()},
        **{k: v[0] for k, v in SKIPPED.items()},
        **REPLACED,
    }
    (root / name_of(kind)).write_bytes(data[kind])
    index = open_index(str(root))
    assert len(index) + len(index.skipped) == 20
    assert (list(index.skipped) == ["odd.png"]) == (kind in SKIPPED)
    source = open_source(str(root), size=SIDE)
    everything = source.read(range(source.info.length))
    assert len(everything["image"]) == source.info.length
    odd_is_here = name_of(kind) in [source.index.names[row] for row in source.rows]
    assert [name for name, _ in everything["skipped"]] == (
        ["odd.png"] if kind in REPLACED and odd_is_here else []
    )


def fifo(path):
    os.mkfifo(path)


def bound_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def loop(path):
    path.symlink_to(path.name)


def dangling(path):
    path.symlink_to("nowhere.png")


def leaving(path):
    outside = path.parent.parent / "outside.png"
    outside.write_bytes(png())
    path.symlink_to(outside)


def device(path):
    path.symlink_to("/dev/zero")


def folder_loop(path):
    path.symlink_to(".")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (fifo, "pipe, socket or device"),
        (bound_socket, "pipe, socket or device"),
        (loop, "a broken link"),
        (dangling, "a broken link"),
        (leaving, "outside the folder"),
        (device, "outside the folder"),
        (folder_loop, "link to a folder"),
    ],
)
def test_what_is_no_file_is_never_opened(tmp_path, monkeypatch, make, reason):
    root = tmp_path / "set"
    good(root, 19)
    monkeypatch.chdir(tmp_path)
    make(root / "odd.png")
    opened = []
    real_open = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *a, **k: opened.append(path) or real_open(path, *a, **k)
    )
    index = open_index(str(root))
    assert list(index.skipped) == ["odd.png"]
    assert reason in index.skipped["odd.png"]
    assert not [path for path in opened if "odd" in str(path) or "outside" in str(path)]


def test_a_pipe_that_takes_a_pictures_place_later_does_not_block(tmp_path):
    good(tmp_path / "set", 3)
    source = open_source(str(tmp_path / "set"))
    name = source.index.names[source.rows[0]]
    (tmp_path / "set" / name).unlink()
    os.mkfifo(tmp_path / "set" / name)
    assert source.read([0])["skipped"] == [(name, "not a regular file")]


def test_an_unreadable_file_is_skipped(tmp_path, monkeypatch):
    """Root may read everything, so the refusal is made here."""
    good(tmp_path / "set", 19)
    (tmp_path / "set" / "odd.png").write_bytes(png())
    real_open = os.open

    def refusing(path, *args, **options):
        if str(path).endswith("odd.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *args, **options)

    monkeypatch.setattr(os, "open", refusing)
    assert open_index(str(tmp_path / "set")).skipped == {"odd.png": "Permission denied"}


def test_a_link_inside_the_folder_is_fine(tmp_path):
    good(tmp_path / "set", 2)
    (tmp_path / "set" / "again.png").symlink_to("good000.png")
    assert len(open_index(str(tmp_path / "set"))) == 3


def test_no_reason_tells_where_the_data_are(tmp_path):
    """Reasons end up in reports that people share."""
    root = tmp_path / "canary"
    root.mkdir()
    for number, (data, _) in enumerate(SKIPPED.values()):
        (root / f"{number}.png").write_bytes(data)
    for reason in open_index(str(root)).skipped.values():
        assert "canary" not in reason and "0x" not in reason and len(reason) < 120


GIF_BOMB = (
    b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    + b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\2\2\x4c\1\0;"
)  # fmt: skip
NO_PALETTE = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(bytes(20)))
    + chunk(b"IEND", b"")
)


class Unheard(Exception):
    """What no list of a decoder's errors has."""


@pytest.fixture
def odd_set(tmp_path, monkeypatch):
    """Forty good pictures, and three whose decoder raises something unusual."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "set"
    good(root, 40)
    (root / "bomb.gif").write_bytes(GIF_BOMB)
    (root / "palette.png").write_bytes(NO_PALETTE)
    (root / "odd.bmp").write_bytes(encoded(Image.new("RGB", (SIDE, SIDE), RED), "BMP"))

    def load(self):
        raise Unheard("no such thing")

    monkeypatch.setattr(BmpImagePlugin.BmpImageFile, "load", load)
    return root


ODD = {
    "bomb.gif": "more than 40 megapixels",
    "odd.bmp": "damaged (no such thing)",
    "palette.png": "a palette picture without its palette",
}


def test_data_check_names_what_any_exception_of_a_decoder_spoils(odd_set, capsys, tmp_path):
    report = tmp_path / "report.jsonl"
    assert run(["data", "check", str(odd_set), "--report", str(report)]) == 0
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert {row["skipped"]: row["reason"] for row in rows} == ODD


def test_training_replaces_what_any_exception_of_a_decoder_spoils(odd_set):
    source = open_source(str(odd_set), size=SIDE)
    read = source.read(range(source.info.length))
    assert len(read["image"]) == source.info.length
    assert (dict(source.info.skipped) | dict(read["skipped"])).items() <= ODD.items()
    assert "bomb.gif" in source.info.skipped


@pytest.mark.parametrize("command", ["search", "classify"])
def test_the_others_are_answered_for_whatever_a_decoder_raises(odd_set, command, capsys, tmp_path):
    model = str(saved(tiny_clip(), tmp_path / "clip"))
    words = ["--labels", "two cats", "a dog"] if command == "classify" else ["two cats"]
    assert run([command, str(odd_set), *words, "--model", model, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    if command == "search":
        assert found["pictures"] == 40 and found["skipped"] == ODD
    else:
        assert len(found["pictures"]) == 40
        assert {Path(row["name"]).name: row["reason"] for row in found["skipped"]} == ODD


def test_no_warning_of_pillow_reaches_people(tmp_path):
    """It would show where this program is installed."""
    good(tmp_path / "set", 3)
    data = png(exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0" + b"\x12\x01\x03\0\xff")
    (tmp_path / "set" / "exif.png").write_bytes(data)
    with pytest.warns(UserWarning, match="EXIF"):
        open_picture(data)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert run(["data", "check", str(tmp_path / "set")]) == 0
    assert seen == []
