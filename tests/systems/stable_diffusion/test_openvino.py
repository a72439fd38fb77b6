"""OpenVINO in the place of a U-Net: the same pictures, one conversion, none that is half."""

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity.pipelines import psnr
from tests.systems.stable_diffusion.test_pipeline import (
    asked,
    drawn,
    half_mask,
    lora_file,
    photo,
    pictures,
)
from tests.systems.stable_diffusion.tiny_stable_diffusion import UNET, config, loaded, saved
from triptych.backends import openvino as conversions
from triptych.loading import load
from triptych.requests import TextToImage
from triptych.running import run
from triptych.systems.stable_diffusion import pipeline as text_to_image
from triptych.systems.stable_diffusion.unet import LatentUNetConfig

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is an extra, not installed here"
)


@pytest.fixture(scope="module")
def tiny():
    return loaded()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A user's cache with nothing in it, and a process that has compiled nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    conversions._cache.clear()
    return tmp_path / "cache" / "triptych" / "openvino"


@pytest.fixture(scope="module")
def common(tmp_path_factory) -> str:
    """A cache for tests of pictures, which convert only what another has not."""
    return str(tmp_path_factory.mktemp("common"))


def folders(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_dir())


def times(cache: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.name != "lock"}


def no_more_conversions(monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("converted again")

    monkeypatch.setattr(conversions, "trace", refuse)


# The same pictures


@needs_openvino
@pytest.mark.parametrize(
    "fields",
    [
        {"n": 3, "sampler": "euler_ancestral"},
        {"size": "71x99"},  # an odd side on a level, and no multiple of the factor
        *(
            pytest.param(fields, marks=pytest.mark.slow)
            for fields in (
                {},
                {"size": "128x72"},
                {"prompt": "a red cat on a mat " * 8},  # several windows
                {"guidance": 1.0},
                {"tiling": True},
            )
        ),
    ],
    ids=str,
)
def test_it_is_torchs_picture(tiny, fields, common, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", common)
    expected = pictures(tiny, **fields)
    found = pictures(tiny, **fields, backend="openvino")
    assert found.shape == expected.shape
    for one, other in zip(found, expected, strict=True):
        assert psnr(one, other) >= 60


@pytest.mark.slow
@needs_openvino
def test_one_conversion_is_for_all_sizes(tiny, cache, monkeypatch) -> None:
    pictures(tiny, backend="openvino")
    no_more_conversions(monkeypatch)
    for size in ("64x64", "72x64", "200x136"):
        expected = pictures(tiny, size=size, n=2)
        for one, other in zip(
            pictures(tiny, size=size, n=2, backend="openvino"), expected, strict=True
        ):
            assert psnr(one, other) >= 60
    assert len(folders(cache)) == 1


@pytest.mark.slow
@needs_openvino
def test_inpainting_with_nine_channels(tmp_path) -> None:
    model = loaded(config(unet=replace(UNET, in_channels=9)))
    fields = {"image": photo(tmp_path, 71, 99), "mask": half_mask(tmp_path, 71, 99)}
    expected = pictures(model, **fields)
    assert psnr(pictures(model, **fields, backend="openvino"), expected) >= 60


@pytest.mark.slow
@needs_openvino
def test_sizes_and_a_pooled_vector_as_of_xl() -> None:
    settings = config()
    tower = replace(settings.text[0], dim=8)
    deep = LatentUNetConfig(
        widths=(16, 32, 32), blocks=1, transformers=(0, 2, 1), heads=(2, 2, 4), context=16,
        groups=4, added=8 + 6 * 4, size_waves=4,
    )  # fmt: skip
    model = loaded(replace(settings, unet=deep, text=(tower,)))
    expected = pictures(model, size="96x80")
    found = pictures(model, size="96x80", backend="openvino")
    assert psnr(found, expected) >= 60


@pytest.mark.slow
@needs_openvino
def test_a_pooled_vector_without_sizes_as_of_the_tiny_preset() -> None:
    settings = config()
    tower = replace(settings.text[0], dim=8)
    unet = replace(UNET, transformers=(0, 1), conditioning="scale_shift", added=8)
    model = loaded(replace(settings, unet=unet, text=(tower,)))
    assert psnr(pictures(model, backend="openvino"), pictures(model)) >= 60


@needs_openvino
def test_precision_is_the_projects_choice(tiny, common, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", common)
    exact = pictures(tiny)
    half = pictures(tiny, precision="bfloat16", backend="openvino")
    assert psnr(half, exact) > 15
    cast = loaded()
    cast.model.to(torch.bfloat16)
    assert 15 < psnr(pictures(cast, precision="bfloat16", backend="openvino"), exact) < 60


@needs_openvino
def test_torch_computes_again_afterwards(tiny, common, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", common)
    unet = tiny.model.unet
    work = run(asked(backend="openvino"), tiny)
    next(report for report in work if report.done > 0)
    assert tiny.model.unet is not unet
    work.close()
    assert tiny.model.unet is unet


# One conversion


@needs_openvino
def test_a_later_start_takes_what_is_there(tmp_path, cache, monkeypatch) -> None:
    folder = str(saved(tmp_path / "run"))
    first, *_, last = run(asked(model=folder, backend="openvino"))
    assert first.done == 0 and len(first.pictures) == 0
    assert any("about a minute" in line and str(cache) in line for line in first.notes)
    written = times(cache)
    conversions._cache.clear()  # as a new process finds it
    no_more_conversions(monkeypatch)
    *_, again = run(asked(model=folder, backend="openvino"))
    assert (again.pictures == last.pictures).all()
    assert again.notes == ()
    assert times(cache) == written


@pytest.mark.slow
@needs_openvino
def test_other_weights_are_another_conversion(cache) -> None:
    models = [loaded() for _ in range(2)]
    with torch.no_grad():
        models[1].model.unet.conv_in.weight[0, 0, 0, 0] += 0.5  # one number
    found = [pictures(model, backend="openvino") for model in models]
    assert len(folders(cache)) == 2
    assert psnr(found[1], pictures(models[1])) >= 60
    assert psnr(*found) < 60


@pytest.mark.slow
@needs_openvino
def test_a_lora_is_another_conversion_and_that_is_said(tiny, cache, tmp_path) -> None:
    lora = f"{lora_file(tiny.model, tmp_path)}:0.7"
    plain = pictures(tiny, backend="openvino")
    last = drawn(tiny, loras=(lora,), backend="openvino")
    assert psnr(last.pictures, pictures(tiny, loras=(lora,))) >= 60
    assert psnr(last.pictures, plain) < 40
    assert any("with these LoRAs" in line for line in last.notes)
    assert any("1 other conversions" in line for line in last.notes)
    assert len(folders(cache)) == 2
    assert (pictures(tiny, backend="openvino") == plain).all()


# None that is half


@pytest.mark.slow
@needs_openvino
def test_what_was_cut_short_is_converted_again(tiny, cache) -> None:
    expected = pictures(tiny, backend="openvino")
    (folder,) = folders(cache)
    for damage in (
        lambda: os.truncate(folder / "network.bin", 1000),
        lambda: (folder / "network.xml").unlink(),
        lambda: (folder / "conversion.json").write_text("{"),
    ):
        damage()
        conversions._cache.clear()
        assert (pictures(tiny, backend="openvino") == expected).all()
        assert folders(cache) == [folder]
        assert sorted(p.name for p in folder.iterdir()) == [
            "conversion.json", "network.bin", "network.xml",
        ]  # fmt: skip


@pytest.mark.slow
@needs_openvino
def test_what_is_stopped_leaves_nothing_and_what_is_killed_is_cleared_away(
    tiny, cache, monkeypatch
) -> None:
    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversions, "write_json", stopped)
        with pytest.raises(KeyboardInterrupt):
            pictures(tiny, backend="openvino")
    assert [path.name for path in cache.iterdir()] == ["lock"]
    with monkeypatch.context() as patch:  # a kill runs no `finally`
        patch.setattr(conversions, "write_json", stopped)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            pictures(tiny, backend="openvino")
    (left,) = folders(cache)
    assert ".tmp-" in left.name and (left / "network.bin").stat().st_size > 1000
    pictures(tiny, backend="openvino")
    (folder,) = folders(cache)
    assert folder.name.startswith("unet-")


@needs_openvino
def test_a_full_disk_is_said_before_anything_is_written(tiny, cache, monkeypatch) -> None:
    free = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match=r"0\.0 GB left, and a conversion for OpenVINO takes"):
        pictures(tiny, backend="openvino")
    assert [path.name for path in cache.iterdir()] == ["lock"]


@pytest.mark.slow
@needs_openvino
def test_nothing_is_reported_to_anyone(tiny, monkeypatch) -> None:
    """`openvino.convert_model` does, without asking."""
    telemetry = importlib.import_module("openvino_telemetry.main")

    def refuse(*_, **__):
        raise AssertionError("statistics were sent")

    for name in ("__init__", "init", "send_event"):
        monkeypatch.setattr(telemetry.Telemetry, name, refuse)
    pictures(tiny, backend="openvino")


LISTENING = """
import openvino_telemetry.main as statistics
def refuse(*_, **__): raise AssertionError("statistics were sent")
for name in ("__init__", "init", "send_event"): setattr(statistics.Telemetry, name, refuse)
from triptych.backends.openvino import require_openvino
require_openvino()
"""


@needs_openvino
def test_the_import_reports_nothing_either() -> None:
    """In a fresh process: OpenVINO's own import sends an event."""
    done = subprocess.run([sys.executable, "-c", LISTENING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Without it


def test_without_the_package_the_extra_is_named(tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    wanted = r'`pip install "triptych\[openvino\]"`, or --backend torch'
    with pytest.raises(ValueError, match=wanted):
        pictures(tiny, backend="openvino")
    with pytest.raises(ValueError, match=wanted):  # before a model is looked for
        text_to_image.load_model(
            TextToImage("x", model=str(tmp_path / "none"), backend="openvino"), load
        )


def test_torch_needs_no_openvino(tiny, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert isinstance(pictures(tiny), np.ndarray)
