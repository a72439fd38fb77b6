"""Pictures keep their pixels and their request on the way to a file and back."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from triptych.data.order.batches import to_images
from triptych.data.sources import open_source
from triptych.vision.images import (
    open_picture,
    read_header,
    read_request,
    resize_crop,
    save_picture,
    to_pictures,
)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ending", [".png", ".webp"])
def test_files_without_loss_keep_every_pixel(tmp_path, ending, channels):
    picture = noise(9, 7, channels)
    save_picture(tmp_path / f"a{ending}", picture, {"seed": 1})
    assert np.array_equal(open_picture(tmp_path / f"a{ending}", channels=channels), picture)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".jpeg", ".webp"])
def test_the_request_comes_back(tmp_path, ending):
    request = {
        "prompt": 'a "fox"\nin snöw 雪 🦊',
        "seed": 7,
        "nested": {"list": [1, 2.5, None, True]},
    }
    path = tmp_path / f"a{ending}"
    save_picture(path, noise(8, 8, 3), request)
    assert read_request(path) == request
    assert read_request(tmp_path / "nothing.png") is None
    save_picture(path, noise(8, 8, 3))
    assert read_request(path) is None


@settings(max_examples=25, deadline=None)
@given(
    request=st.dictionaries(
        st.text(max_size=8),
        st.none()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text("abc ä/\\\n\0", max_size=30),
    )
)
def test_any_request_without_paths_comes_back(tmp_path_factory, request):
    clean = {k: v for k, v in request.items() if not isinstance(v, str) or not set("/\\") & set(v)}
    path = tmp_path_factory.getbasetemp() / "any.png"
    save_picture(path, noise(2, 2, 1), clean)
    assert read_request(path) == clean


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
def test_local_paths_stay_at_home(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    private = {
        "model": "/home/canary/runs/one", "out": Path("canary"), "back": r"C:\canary\x",
        "deep": [{"file": "~/canary"}, "/srv/canary/a"],
    }  # fmt: skip
    save_picture(path, noise(4, 4, 3), {"prompt": "black/white, 1/2", **private})
    assert b"canary" not in path.read_bytes()
    assert read_request(path) == {"prompt": "black/white, 1/2", "deep": [{}]}


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_picture(path, noise(4, 4, 3), {"seed": 1})
    before = path.read_bytes()

    def full(self, target, *args, **options):
        target.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_picture(path, noise(4, 4, 3), {"seed": 2})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_what_cannot_be_saved_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"\.png, \.jpg or \.webp"):
        save_picture(tmp_path / "a.tiff", noise(2, 2, 3))
    with pytest.raises(ValueError, match="bytes of JSON"):
        save_picture(tmp_path / "a.jpg", noise(2, 2, 3), {"prompt": "x" * 70_000})


@pytest.mark.parametrize("text", ["[1, 2]", "{", "[" * 20_000, "x" * 100_000, "null"])
def test_a_strange_request_is_none(tmp_path, text):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("triptych", text)
    Image.new("L", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    assert read_request(tmp_path / "a.png") is None


def test_bytes_to_tensor_and_back_is_exact():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(to_pictures(to_images(every)), every)
    odd = torch.tensor([-5.0, 5.0, float("nan"), float("inf"), -float("inf"), 0.0]).reshape(
        1, 1, 1, 6
    )
    assert to_pictures(odd).flatten().tolist() == [0, 255, 0, 255, 0, 128]


def test_resize_crop_is_resizing_the_short_side_then_cropping_the_centre():
    picture = noise(40, 120, 3)
    whole = Image.fromarray(picture).resize((60, 20), Image.Resampling.BICUBIC)
    expected = np.asarray(whole.crop((20, 0, 40, 20)))
    assert np.abs(resize_crop(picture, 20).astype(int) - expected).max() <= 1
    upright = resize_crop(picture.transpose(1, 0, 2).copy(), 20)
    assert np.abs(upright.astype(int) - expected.transpose(1, 0, 2)).max() <= 1
    assert resize_crop(noise(7, 5, 1), 16).shape == (16, 16, 1)
    assert np.array_equal(resize_crop(picture[:, :40], 40), picture[:, :40])


def test_shrinking_does_not_alias():
    """A fine checkerboard becomes its mean grey, as area averaging says."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    assert np.abs(resize_crop(board, 8)[1:-1, 1:-1].astype(int) - 127).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_headers_say_what_decoding_finds(kind):
    for mode, grey in (("RGB", False), ("L", True)):
        file = io.BytesIO()
        Image.fromarray(noise(11, 6, 3)).convert(mode).save(file, kind)
        header = read_header(file.getvalue())
        picture = open_picture(file.getvalue())
        assert (header.format, header.height, header.width) == (kind, 11, 6)
        assert picture.shape[:2] == (11, 6)
        if kind in ("PNG", "JPEG"):
            assert header.grey == grey and picture.shape[2] == (1 if grey else 3)


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"lossless": False}, {"exif": b"Exif\0\0"}]
)
def test_webp_sizes_are_read_in_all_three_forms(options):
    file = io.BytesIO()
    Image.new("RGB", (300, 1234)).save(file, "WEBP", **options)
    assert read_header(file.getvalue())[1:3] == (1234, 300)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_headers_know_of_turned_pictures(tmp_path, kind, orientation):
    """Also of a WebP, whose EXIF comes after its pixels, far behind the first bytes."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind.lower()}"
    image = Image.fromarray(noise(300, 200, 3))
    image.save(path, kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP" else {}))
    shape = (300, 200) if orientation in (1, 3) else (200, 300)
    assert read_header(path.read_bytes())[1:3] == shape == open_picture(path).shape[:2]
    source = open_source(str(tmp_path))
    assert source.info.shape == (*shape, 3) and source.read([0])["skipped"] == []


def test_large_jpegs_may_be_decoded_small():
    grey = np.linspace(0, 255, 1200).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.broadcast_to(grey, (1200, 1200)).copy()).save(file, "JPEG", quality=95)
    whole, small = open_picture(file.getvalue()), open_picture(file.getvalue(), near=64)
    assert whole.shape[0] == 1200 and 128 <= small.shape[0] < 1200
    difference = resize_crop(whole, 64).astype(int) - resize_crop(small, 64).astype(int)
    assert np.abs(difference).max() <= 3


def test_only_one_or_three_channels(tmp_path):
    with pytest.raises(ValueError, match="1, 3 or None"):
        open_picture(b"", channels=2)
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png", channels=1)[0, 0].tolist() == [76]  # 0.299 * 255
    assert json.dumps(open_picture(tmp_path / "a.png")[0, 0].tolist()) == "[255, 0, 0]"
