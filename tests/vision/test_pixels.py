"""Pictures in any form become the same pixels, and everything ambiguous is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.given import InMemory
from triptych.vision.given_pictures import picture_name, take_picture, take_pictures
from triptych.vision.images import open_picture, save_picture
from triptych.vision.pixels import read_picture

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def read(given, channels=None) -> np.ndarray:
    return read_picture("image", take_picture("image", given), channels=channels)


FORMS = {
    "array": RGB,
    "channels first": RGB.transpose(2, 0, 1),
    "floats": RGB / np.float64(255),
    "half floats": (RGB / np.float32(255)).astype(np.float16),
    "PIL": Image.fromarray(RGB),
    "tensor (H, W, C)": torch.from_numpy(RGB),
    "tensor (C, H, W)": torch.from_numpy(RGB).permute(2, 0, 1),
    "tensor of floats": torch.from_numpy(RGB).permute(2, 0, 1) / 255,
    "tensor in bfloat16": torch.from_numpy(RGB // 128 * 128).permute(2, 0, 1).bfloat16() / 256,
    "tensor with a gradient": (torch.from_numpy(RGB) / 255).requires_grad_(),
    "not contiguous": np.asfortranarray(RGB[::-1])[::-1],
    "other byte order": (RGB / 255).astype(">f8"),
    "batch of one": torch.from_numpy(RGB).permute(2, 0, 1)[None],
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_are_the_same_picture(form: str) -> None:
    expected = RGB if "bfloat16" not in form else (RGB // 128 * 128 / 256 * 255).round()
    assert (read(FORMS[form]) == expected).all()


@pytest.mark.parametrize("form", ["array", "PIL", "tensor", "channel last", "channel first"])
def test_grey_pictures(form: str) -> None:
    given = {
        "array": GREY,
        "PIL": Image.fromarray(GREY),
        "tensor": torch.from_numpy(GREY),
        "channel last": GREY[:, :, None],
        "channel first": torch.from_numpy(GREY)[None],
    }[form]
    assert (read(given) == GREY[:, :, None]).all()
    assert (read(given, 3) == np.repeat(GREY[:, :, None], 3, 2)).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("channels", [1, 3, None])
def test_a_picture_of_pil_is_what_its_file_is(mode: str, channels: int, tmp_path: Path) -> None:
    if mode == "I;16":
        made = Image.fromarray((RGB[:, :, 0].astype(np.uint16) << 8) + 7)
    else:
        made = Image.fromarray(np.dstack([RGB, GREY]), "RGBA").convert(mode)
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    made.save(file)
    opened = Image.open(file)  # not decoded yet
    assert (read(opened, channels) == open_picture(file, channels=channels)).all()


def test_a_picture_of_pil_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(RGB, -1)
    assert (read(Image.open(tmp_path / "a.png")) == upright).all()
    assert (read(tmp_path / "a.png") == upright).all()


def test_transparency_is_laid_on_white() -> None:
    given = np.dstack([RGB, np.zeros_like(GREY)])
    assert (read(given) == 255).all()
    assert (read(torch.from_numpy(given).permute(2, 0, 1)) == 255).all()


def test_a_mask_of_booleans_is_black_and_white() -> None:
    assert (read(GREY > 99)[:, :, 0] == np.where(GREY > 99, 255, 0)).all()


NOT_FINITE = np.full((4, 6, 3), np.nan)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (RGB.astype(np.int64), "values of int64: give uint8, 0 to 255, or floats"),
        (RGB / 127.5 - 1, r"from -\S+ to \S+: floats are 0 to 1; \(x \+ 1\) / 2 brings -1 to 1"),
        (RGB.astype(np.float32), "floats are 0 to 1; or give uint8"),
        (NOT_FINITE, "not finite"),
        (np.full((4, 6), np.inf), "not finite"),
        (torch.zeros(3, 8, 3), r"\(3, 8, 3\), which is \(C, H, W\) or \(H, W, C\)"),
        (torch.zeros(4, 8, 1), "give a numpy array"),
        (np.zeros((8, 8, 5)), r"shape \(8, 8, 5\), not \(H, W\)"),
        (np.zeros((2, 8, 8)), r"shape \(2, 8, 8\), not"),
        (np.zeros((2, 8, 8, 3)), "it has 2 pictures, give one"),
        (np.zeros(7), r"shape \(7,\)"),
        (np.zeros((1, 1, 1, 1, 1)), r"shape \(1, 1, 1, 1, 1\)"),
        (np.zeros((0, 8, 3)), "no pixels"),
        (np.zeros((1, 20_000), np.uint8), "20000 x 1 pixels, more than"),
        (Image.new("L", (20_000, 1)), "20000 x 1 pixels, more than"),
        (np.zeros((8, 8, 3), complex), "values of complex128"),
        (np.array([["a", "b"]]), "values of <U1"),
        (np.array([[None]]), "values of object"),
        (Image.new("I", (4, 4)), "of PIL's mode I, which has no range"),
        (Image.new("F", (4, 4), 7.0), "values from 7 to 7: floats are 0 to 1"),
        (torch.zeros(3, 8, 8, device="meta"), "is a tensor that cannot be read"),
        (torch.zeros(8, 8).to_sparse(), "is a tensor that cannot be read"),
        (torch.zeros(8, 8, dtype=torch.complex64), "values of complex64"),
        (7, "is a path, a PIL picture, a numpy array or a tensor, not int"),
        (np.float32(7), r"shape \(\)"),
        (b"\x89PNG", "not bytes"),
        ([1, 2], "not list"),
        (open_picture, "not function"),
    ],
)
def test_what_is_no_picture_is_refused(given, words: str) -> None:
    with pytest.raises(ValueError, match=rf"^image .*{words}"):  # names the field
        take_picture("image", given)


def test_rounding_beyond_the_ends_is_clipped() -> None:
    assert (read(np.array([[-1e-7, 1 + 1e-7]]))[:, :, 0] == [[0, 255]]).all()


def test_what_pil_cannot_decode_is_refused(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=r"^image cannot be read"):
        take_picture("image", Image.open(tmp_path / "a.png"))


def test_lists_and_arrays_of_several() -> None:
    several = np.stack([RGB, 255 - RGB])
    lists = [list(several), tuple(several), several, torch.from_numpy(several).permute(0, 3, 1, 2)]
    assert len({take_pictures("pictures", given) for given in lists}) == 1
    assert take_pictures("pictures", RGB) == take_pictures("pictures", [RGB])
    assert take_pictures("pictures", Path("a.png")) == ("a.png",)
    assert take_pictures("pictures", ["a.png", Path("b.png")]) == ("a.png", "b.png")
    assert take_pictures("pictures", None) == take_pictures("pictures", []) == ()
    for wrong in (None, "", [RGB], 3):
        with pytest.raises(ValueError, match=r"^pictures\[1\] is"):
            take_pictures("pictures", [RGB, wrong])


def test_the_name_is_the_picture() -> None:
    """Equal pixels are equal, other pixels or another shape are not; a copy is kept."""
    changed = RGB.copy()
    kept = take_picture("image", changed)
    changed[0, 0] = ~changed[0, 0]
    assert kept == take_picture("image", RGB) != take_picture("image", changed)
    assert isinstance(kept, InMemory) and (kept.values == RGB).all()
    assert take_picture("image", kept) is kept
    with pytest.raises(ValueError, match="read-only"):
        kept.values[0, 0] = 0
    flat = take_picture("image", RGB.reshape(7, 5, 3))
    assert flat != kept and flat.rpartition("-")[2] == kept.rpartition("-")[2]
    assert picture_name(kept) == "memory:7x5"


def test_a_file_of_the_picture_has_its_digest(tmp_path: Path) -> None:
    import hashlib

    save_picture(tmp_path / "a.png", RGB)
    kept = take_picture("image", Image.open(tmp_path / "a.png"))
    assert kept == f"memory:7x5:sha256-{hashlib.sha256(RGB.tobytes()).hexdigest()}"
