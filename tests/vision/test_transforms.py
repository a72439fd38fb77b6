"""Every family's pixels, to 1 of 255, against transformers' and Pillow's own arithmetic."""

import contextlib
import dataclasses
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from triptych.data.order.batches import to_images
from triptych.fields import from_json, to_json
from triptych.vision.images import open_picture, save_picture
from triptych.vision.transforms import HALF, ImageTransform, PatchTransform, patch_grid

CLIP = ImageTransform()
SIGLIP = ImageTransform(mean=HALF, std=HALF, resize="squash")
SIZES = [(1, 1), (300, 3), (3, 300), (1, 97), (223, 225), (224, 224), (225, 224), (449, 448),
         (333, 517), (640, 480), (480, 641), (37, 51), (2000, 211)]  # fmt: skip


def noise(height, width, channels=3):
    rng = np.random.default_rng(height * 7919 + width)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def processor(name, **settings):
    """Their processor; the default ones need torchvision, whose operators need a GPU build."""
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor a, Tensor b, float c) -> Tensor")
        processor.library = library  # it unregisters when it goes
    transformers = pytest.importorskip("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with contextlib.suppress(RuntimeError, ImportError):
        return getattr(transformers, name)(**settings)
    return pytest.skip(f"{name} does not run here")


def distance(ours, theirs, std):
    """In steps of 255."""
    return ((ours - theirs).abs() * torch.tensor(std).view(3, 1, 1) * 255).max().item()


def photos(folder):
    for path in sorted((folder / "photos").glob("*.[jp][pn]g")):
        yield open_picture(path, channels=3)


def turned(picture, family):
    """How far Pillow is from itself when asked for the width first and then for the height: its
    version 13 goes down first where that is cheaper, and then bicubic noise is clipped earlier.
    """
    height, width = picture.shape[:2]
    size = (224, 224)
    if family == "CLIP":
        short = min(height, width)
        size = (int(224 * width / short), int(224 * height / short))
    image, filter_ = Image.fromarray(picture), Image.Resampling.BICUBIC
    once, twice = image.resize(size, filter_), image.resize((size[0], height), filter_)
    difference = np.asarray(once).astype(int) - np.asarray(twice.resize(size, filter_))
    return np.abs(difference).max()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_any_size_as_pillow_processors(family, size):
    transform = {"CLIP": CLIP, "Siglip": SIGLIP}[family]
    picture = noise(*size)
    peer = processor(f"{family}ImageProcessorPil")
    theirs = peer(picture, return_tensors="pt", input_data_format="channels_last").pixel_values
    ours = transform([picture])
    assert ours.shape == (1, 3, 224, 224) and ours.dtype == torch.float32 and ours.is_contiguous()
    assert distance(ours, theirs, transform.std) < 1.001 + turned(picture, family)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_any_size_as_default_processors(family, size):
    """Where a side grows they are 2 of 255 off Pillow themselves, on noise; we are not."""
    transform = {"CLIP": CLIP, "Siglip": SIGLIP}[family]
    picture = noise(*size)
    peer = processor(f"{family}ImageProcessor")
    theirs = peer(picture, return_tensors="pt", input_data_format="channels_last").pixel_values
    grows = min(size) < 224
    assert distance(transform([picture]), theirs, transform.std) < (2.001 if grows else 1.001)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [*SIZES, (449, 300), (3000, 100), (20, 2000), (64, 8)])
def test_black_and_white_noise_as_pillow_across_and_then_down(interpolation, size):
    """The hardest picture for bytes: everything overshoots and is clipped between the passes."""
    picture = (noise(*size) > 127).astype(np.uint8) * 255
    transform = ImageTransform(64, HALF, HALF, "squash", interpolation)
    filter_ = Image.Resampling[interpolation.upper()]
    image = Image.fromarray(picture).resize((64, size[0]), filter_).resize((64, 64), filter_)
    theirs = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    assert distance(transform([picture]), theirs, HALF) < 1.001


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_photos_as_both_processors(real_data, family):
    transform = {"CLIP": CLIP, "Siglip": SIGLIP}[family]
    peers = [processor(f"{family}ImageProcessor{kind}") for kind in ("Pil", "")]
    count = 0
    for picture in photos(real_data):
        ours = transform([picture])
        for peer in peers:
            theirs = peer(picture, return_tensors="pt").pixel_values
            assert distance(ours, theirs, transform.std) < 1.001
        count += 1
    assert count > 20


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("mean", "std"), [(HALF, HALF), (CLIP.mean, CLIP.std)])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_open_clip_settings(interpolation, mean, std, resize):
    """torchvision's Resize and CenterCrop on Pillow pictures, which round to even, by hand."""
    transform = ImageTransform(64, mean, std, resize, interpolation, centre="even")
    resampling = Image.Resampling[interpolation.upper()]
    for height, width in [(100, 133), (133, 100), (97, 151), (64, 65), (64, 67), (20, 31)]:
        picture = noise(height, width)
        image = Image.fromarray(picture)
        if resize == "squash":
            image = image.resize((64, 64), resampling)
        else:
            scale = (
                (64, int(64 * height / width)) if width < height else (int(64 * width / height), 64)
            )
            image = image.resize(scale, resampling)
            left, top = round((image.width - 64) / 2), round((image.height - 64) / 2)
            image = image.crop((left, top, left + 64, top + 64))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        theirs = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        assert distance(transform([picture]), theirs, std) < 1.001


def test_threads_and_company_change_nothing(monkeypatch):
    pictures = [noise(*size) for size in SIZES]
    alone = torch.cat([CLIP([picture]) for picture in pictures])
    assert torch.equal(CLIP(pictures), alone)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert torch.equal(CLIP(pictures), alone)
    assert CLIP([]).shape == (0, 3, 224, 224)


@pytest.mark.parametrize("transform", [CLIP, PatchTransform(patch=16, patches=64)])
def test_threads_go_on_in_inference_mode(monkeypatch, transform):
    """Where embedding asks for it: a tensor made there may not be written to outside."""
    pictures = [noise(30, 40), noise(50, 20), noise(64, 64)]
    plain = transform(pictures)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    with torch.inference_mode():
        found = transform(pictures)
    for a, b in zip(plain, found, strict=True):  # pictures, or the three parts of patches
        assert torch.equal(a, b)


def test_files_are_the_pictures_they_hold(tmp_path):
    pictures = [noise(300, 400), noise(50, 20)]
    for number, picture in enumerate(pictures):
        save_picture(tmp_path / f"{number}.png", picture)
    files = [tmp_path / "0.png", (tmp_path / "1.png").read_bytes()]
    assert torch.equal(CLIP.open(files), CLIP(pictures))
    (tmp_path / "2.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"2\.png: an HTML page"):
        CLIP.open([files[0], tmp_path / "2.png"])


def test_grey_and_strided_pictures():
    grey = noise(300, 250, 1)
    assert torch.equal(CLIP([grey]), CLIP([np.repeat(grey, 3, axis=2)]))
    whole = noise(300, 250)
    assert torch.equal(CLIP([whole[:, ::-1]]), CLIP([whole[:, ::-1].copy()]))
    small = noise(100, 90, 1)
    assert torch.equal(SIGLIP([small]), SIGLIP([np.repeat(small, 3, axis=2)]))
    frozen = noise(300, 250)
    frozen.flags.writeable = False
    assert torch.equal(CLIP([frozen]), CLIP([whole]))


def test_normalise_is_the_call_without_resizing_and_has_an_inverse():
    picture = noise(224, 224)
    images = to_images(picture[None])
    for transform in (CLIP, SIGLIP):
        torch.testing.assert_close(transform.normalise(images), transform([picture]))
        back = transform.inverse(transform.normalise(images))
        torch.testing.assert_close(back, images, atol=1e-6, rtol=0)


def test_a_transform_is_data():
    transform = ImageTransform(336, HALF, HALF, "squash", "bilinear", False, "even")
    assert from_json(ImageTransform, to_json(transform)) == transform
    patches = PatchTransform(14, 1024)
    assert from_json(PatchTransform, to_json(patches)) == patches


@pytest.mark.parametrize("patches", [4, 64, 256, 1024])
def test_naflex_as_both_processors(patches):
    transform = PatchTransform(16, patches)
    peers = [
        processor(f"Siglip2ImageProcessor{kind}", max_num_patches=patches, patch_size=16)
        for kind in ("Pil", "")
    ]
    for size in [(1, 1), (1000, 3), (480, 640), (333, 517), (64, 64), (37, 1200)]:
        picture = noise(*size)
        ours = transform([picture])
        theirs = [p(picture, return_tensors="pt", input_data_format="channels_last") for p in peers]
        values = [their.pixel_values for their in theirs]
        apart = (values[0] - values[1]).abs().max().item() * 127.5  # 2 of 255 on some noise
        for their in theirs:
            assert torch.equal(ours.grid, torch.as_tensor(their.spatial_shapes))
            assert torch.equal(ours.mask, their.pixel_attention_mask.bool())
            assert ours.patches.shape == their.pixel_values.shape
            off = (ours.patches - their.pixel_values).abs().max().item() * 127.5
            assert off < max(1, apart) + 1e-3


def test_naflex_of_several_pictures():
    pictures = [noise(480, 640), noise(30, 200), noise(64, 64, 1)]
    together = PatchTransform()(pictures)
    for number, picture in enumerate(pictures):
        alone = PatchTransform()([picture])
        assert all(torch.equal(a[number], b[0]) for a, b in zip(together, alone, strict=True))
    assert together.mask.sum(1).tolist() == together.grid.prod(1).tolist()
    assert not together.patches[~together.mask].any()


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 16_384), st.integers(1, 16_384), st.sampled_from([14, 16, 32]),
    st.integers(1, 1024),
)  # fmt: skip
def test_patch_grid_as_published(height, width, patch, patches):
    from transformers.models.siglip2.image_processing_pil_siglip2 import (
        get_image_size_for_max_num_patches,
    )

    rows, columns = patch_grid(height, width, patch, patches)
    expected = get_image_size_for_max_num_patches(height, width, patch, patches)
    assert (rows * patch, columns * patch) == expected
    assert rows * columns <= max(patches, 1)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "bytes"),
        (np.zeros((4, 4), np.uint8), "bytes"),
        (np.zeros((0, 4, 3), np.uint8), "bytes"),
        (np.zeros((4, 4, 4), np.uint8), "1 or 3 channels"),
        ("a.png", "not 'a.png'"),
    ],
)
def test_what_is_no_picture_is_refused(picture, message):
    for transform in (CLIP, PatchTransform()):
        with pytest.raises(ValueError, match=message):
            transform([picture])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size must be"),
        ({"crop": False}, "different shapes"),
        ({"std": (0.0, 1.0, 1.0)}, "those of std above 0"),
        ({"mean": (0.5,)}, "mean"),
    ],
)
def test_settings_that_make_no_batch_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CLIP, **changes)
    with pytest.raises(ValueError, match="at least 1, not 0 and 16"):
        PatchTransform(patches=0)
