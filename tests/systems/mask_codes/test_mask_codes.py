"""Mask codes: the published file, masks in and out of pictures, training."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from triptych.loading import load
from triptych.requests import Training, TrainMaskCodes
from triptych.scenes.drawing import boxes, masks
from triptych.scenes.world import scenes
from triptych.systems.mask_codes import recipe as recipe_of
from triptych.systems.mask_codes.crops import crop_mask, overlap, place_masks
from triptych.systems.mask_codes.model import MaskCodes, MaskCodesConfig, objective
from triptych.systems.mask_codes.recipe import build
from triptych.train.distributed import World
from triptych.train.loop import fit

SMALL = {"down": (4, 6, 8, 10), "width": 16, "code_width": 5}


def write_published(path: Path) -> dict[str, np.ndarray]:
    """A file of big_vision's layout with random weights, as its code reads it."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"_vq_vae._embedding": (128, 5)}
    widths = (1, *SMALL["down"])
    for n in range(4):
        shapes[f"encoder.{2 * n}.weight"] = (widths[n + 1], widths[n], 4, 4)
    for place, width in ((8, 10), (9, 10)):
        for layer, side in ((0, 3), (2, 3), (4, 1)):
            shapes[f"encoder.{place}.net.{layer}.weight"] = (width, width, side, side)
            shapes[f"decoder.{place - 6}.net.{layer}.weight"] = (16, 16, side, side)
    shapes["encoder.10.weight"] = (5, 10, 1, 1)
    shapes["decoder.0.weight"] = (16, 5, 1, 1)
    for place, (inner, outer) in zip(
        (4, 6, 8, 10), ((16, 16), (16, 8), (8, 4), (4, 2)), strict=True
    ):
        shapes[f"decoder.{place}.weight"] = (inner, outer, 4, 4)  # PyTorch's transposed order
    shapes["decoder.12.weight"] = (1, 2, 1, 1)
    arrays = {}
    for name, shape in shapes.items():
        scale = np.sqrt(np.prod(shape[1:]))
        arrays[name] = (rng.normal(size=shape) / scale).astype(np.float32)
        if name.endswith(".weight"):
            transposed = name.split(".")[0] == "decoder" and name.split(".")[1] in [
                "4",
                "6",
                "8",
                "10",
            ]
            outer = shape[1] if transposed else shape[0]
            arrays[name.replace("weight", "bias")] = (rng.normal(size=outer) / 5).astype(np.float32)
    arrays["_vq_vae._ema_cluster_size"] = np.ones(128, np.float32)
    np.savez(path, **arrays)
    return arrays


def same_conv(arrays, name, x, stride=1):
    """TensorFlow's convolution with SAME padding, which is more on the right where it is odd."""
    kernel = torch.from_numpy(arrays[f"{name}.weight"])
    side = x.shape[-1]
    total = max((-(-side // stride) - 1) * stride + kernel.shape[-1] - side, 0)
    x = F.pad(x, (total // 2, total - total // 2) * 2)
    return F.conv2d(x, kernel, torch.from_numpy(arrays[f"{name}.bias"]), stride)


def residual(arrays, name, x):
    h = same_conv(arrays, f"{name}.0", x).relu()
    return x + same_conv(arrays, f"{name}.4", same_conv(arrays, f"{name}.2", h).relu())


def transposed(arrays, name, x):
    """Flax's ConvTranspose with its kernel transposed: zeros between, padding 2, kernel turned."""
    wide = torch.zeros(*x.shape[:2], 2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
    wide[:, :, ::2, ::2] = x
    kernel = torch.from_numpy(arrays[f"{name}.weight"]).transpose(0, 1).flip(2, 3)
    return F.conv2d(wide, kernel, torch.from_numpy(arrays[f"{name}.bias"]), padding=2)


def test_the_published_file_is_computed_as_by_its_publisher(tmp_path: Path):
    """Both ways, by operations as big_vision has them."""
    arrays = write_published(tmp_path / "vae-oid.npz")
    loaded = load(f"{tmp_path / 'vae-oid.npz'}")
    assert loaded.card.model == "mask-codes" and loaded.config == MaskCodesConfig(**SMALL)
    x = shown = torch.rand(6, 1, 64, 64) * 2 - 1
    for n in range(4):
        x = same_conv(arrays, f"encoder.{2 * n}", x, 2).relu()
    for n in (8, 9):
        x = residual(arrays, f"encoder.{n}.net", x)
    x = same_conv(arrays, "encoder.10", x)
    flat = x.permute(0, 2, 3, 1).reshape(6, 16, 5)  # rows first
    table = torch.from_numpy(arrays["_vq_vae._embedding"])
    expected = (flat[:, :, None] - table).square().sum(-1).argmin(-1)
    with torch.inference_mode():
        codes = loaded.model.encode(shown)
        assert torch.equal(codes, expected) and len(codes.unique()) > 5
        found = loaded.model.decode(codes)
    x = table[expected].reshape(6, 4, 4, 5).permute(0, 3, 1, 2)
    x = same_conv(arrays, "decoder.0", x).relu()
    for n in (2, 3):
        x = residual(arrays, f"decoder.{n}.net", x)
    for n in (4, 6, 8, 10):
        x = transposed(arrays, f"decoder.{n}", x).relu()
    x = same_conv(arrays, "decoder.12", x)
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lost", ["encoder.4.weight", "_vq_vae._embedding", "decoder.6.bias"])
def test_an_incomplete_file_is_refused(tmp_path: Path, lost: str):
    arrays = write_published(tmp_path / "whole.npz")
    np.savez(tmp_path / "part.npz", **{k: v for k, v in arrays.items() if k != lost})
    with pytest.raises(ValueError, match=r"no decoder\.6\.bias|no encoder\.4|SigLIP"):
        load(f"{tmp_path / 'part.npz'}")


def test_a_mask_is_cropped_as_by_pillow():
    """Small boxes are enlarged, large ones averaged."""
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 2, (10, 10)), np.ones((20, 20))) > 0  # 200 x 200
    for box in ((0.1, 0.2, 0.3, 0.25), (0.0, 0.0, 1.0, 0.9), (0.5, 0.5, 0.505, 0.51)):
        left, top, right, bottom = (round(side * 200) for side in box)
        inside = Image.fromarray(mask[top:bottom, left:right].astype(np.float32))
        expected = np.asarray(inside.resize((64, 64), Image.Resampling.BILINEAR)) * 2 - 1
        found = crop_mask(torch.from_numpy(mask), box)[0].numpy()
        np.testing.assert_allclose(found, expected, atol=2e-3)
    with pytest.raises(ValueError, match="no pixels"):
        crop_mask(torch.from_numpy(mask), (0.5, 0.5, 0.501, 0.9))


def test_masks_come_back_to_their_places():
    """A mask cropped at a high resolution and placed again in a small picture is the small mask;
    outside its box nothing is set.
    """
    scene = scenes(3, [5])[0]
    fine, coarse = (torch.from_numpy(masks(scene, side)) for side in (256, 64))
    own = [tuple(box) for box in boxes(scene).clip(0, 1).tolist()]
    crops = torch.stack([crop_mask(mask, box) for mask, box in zip(fine, own, strict=True)])
    placed = place_masks(crops, own, 64, 64)
    assert overlap(placed, coarse).min() > 0.93
    half = place_masks(torch.ones(1, 1, 64, 64), [(0.25, 0.5, 0.5, 1.0)], 8, 4)
    assert half.nonzero()[:, 1:].tolist() == [[y, 1] for y in range(4, 8)]


def test_every_code_is_learned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Few steps: the overlap grows beyond that of the box, and the run folder gives it again."""
    monkeypatch.setattr(recipe_of, "HELD_OUT", 24)
    training = Training(
        data="scenes", steps=60, batch_size=16, sample_every=0, device="cpu", ema_halflife=3
    )
    request = TrainMaskCodes(training, **SMALL, learning_rate=5e-3, plain_steps=30)
    recipe = build(request, World(), load)
    for report in fit(recipe, training, tmp_path):
        last = report
    row = last.row
    assert row["test_overlap"] > row["overlap_of_the_box"] + 0.05
    found = recipe.evaluate(load(f"{tmp_path}").model)
    assert found["test_overlap"] == pytest.approx(row["test_overlap"], abs=1e-6)


def test_unused_codes_are_pulled_to_the_masks():
    """The only gradient of a code that is no cell's nearest one is that of `spread`."""
    torch.manual_seed(0)
    model = MaskCodes(MaskCodesConfig(**SMALL))
    shown = torch.rand(4, 1, 64, 64) * 2 - 1
    unused = [k for k in range(128) if k not in model.encode(shown).unique().tolist()]
    for spread, moved in ((0.0, False), (0.1, True)):
        model.zero_grad()
        objective(model, shown, spread=spread).total.backward()
        assert bool(model.codes.grad[unused].abs().sum(1).min() > 0) == moved


@pytest.mark.parametrize(
    ("data", "size", "said"), [("digits", 0, "no masks of objects"), ("scenes", 32, "leave out")]
)
def test_what_has_no_masks_is_refused(data: str, size: int, said: str):
    with pytest.raises(ValueError, match=said):
        build(TrainMaskCodes(Training(data=data, size=size)), World(), load)
    with pytest.raises(ValueError, match="four widths"):
        dataclasses.replace(MaskCodesConfig(), down=(1, 2))
