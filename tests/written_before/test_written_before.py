"""Run folders, pictures, conversions, an index and a cache of an earlier version still work.

The README beside this file says how they were made.
"""

import contextlib
import hashlib
import io
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import triptych
from tests.written_before.make_data import CHANGED
from triptych import runtime
from triptych.cli.main import run
from triptych.fields import from_json
from triptych.requests import ClassToImage
from triptych.vision.images import read_request

FILES = Path(__file__).parent / "files"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FILES / "expected.json").read_text())
LOOSE = ("varied", "pixel-diffusion-flow", "latents")  # stochastic samplers, and a JPEG file
STOPPED = 3  # the step of the checkpoints
ROUNDING = {"autoencoder": 3e-3}
"""How far rows may be off, where not by 1e-4. The loss of this one has an adversarial term whose
weight is 10,000 at step 4: the same old code differs by 1.5e-3 between a Xeon with AMX, on which
the files were written, and an EPYC without AVX-512.
"""


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files with the times that the index and the cache have of their pictures, which git does
    not keep; the LoRA and the picture to start from are where their names are looked for.
    """
    folder = tmp_path_factory.mktemp("written") / "files"
    shutil.copytree(FILES, folder)
    for picture in (folder / "captioned").rglob("*.png"):
        os.utime(picture, (CHANGED, CHANGED))
    shutil.copy(folder / "text-to-image-lora" / "lora.safetensors", folder)
    shutil.copy(folder / "captioned" / "train" / "red-square-1.png", folder)
    return folder


@pytest.fixture(autouse=True)
def inside(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder of the files, and in float32, whatever this processor multiplies quickly."""
    monkeypatch.chdir(copied)
    monkeypatch.setattr(runtime, "fast_bfloat16", lambda: False)


def command(line: str) -> list[dict[str, Any]]:
    """The JSON that a command prints, a line each."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run(["--debug", *shlex.split(line)])
    assert code == 0, line
    return [json.loads(row) for row in out.getvalue().splitlines()]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), np.float64)


def same(made: np.ndarray, kept: np.ndarray, name: str) -> None:
    """To 60 dB, as processors round differently; a stochastic sampler or JPEG to 45 dB."""
    assert made.shape == kept.shape
    error = np.mean((made - kept) ** 2)
    assert error <= 255**2 / 10 ** (4.5 if name in LOOSE else 6.0), f"{name}: {error}"


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


@pytest.mark.parametrize("name", EXPECTED["resumed"])
def test_a_run_loads_and_goes_on_to_the_same_numbers(name: str, copied: Path) -> None:
    assert list(triptych.load(name).model.parameters())
    cache = contents(copied / "cache")
    shutil.copytree(name, f"again/{name}")
    command(f"train --resume --run again/{name}")
    lines = (Path("again") / name / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["step"] > STOPPED]
    expected = EXPECTED["resumed"][name]
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, before in zip(rows, expected, strict=True):
        assert row.keys() - {"seconds"} == before.keys()
        for term, value in before.items():
            rel = ROUNDING.get(name, 1e-4)
            assert row[term] == pytest.approx(value, rel=rel, abs=1e-6), term
    assert contents(copied / "cache") == cache  # read, not computed again


@pytest.mark.parametrize("name", EXPECTED["generate"])
def test_the_same_pictures_are_drawn(name: str, tmp_path: Path) -> None:
    command(f"generate {EXPECTED['generate'][name]} --out {tmp_path}")
    kept = sorted((Path("pictures") / name).iterdir())
    assert [p.name for p in kept] == sorted(
        p.name for p in tmp_path.iterdir() if p.name != "grid.png"
    )
    for path in kept:
        same(pixels(tmp_path / path.name), pixels(path), name)


@pytest.mark.parametrize("name", EXPECTED["generate"])
def test_a_picture_replays_from_its_record(name: str, tmp_path: Path) -> None:
    for path in sorted((Path("pictures") / name).iterdir()):
        record = read_request(path)["request"]
        if "prompt" in record:
            form = {".png": "png", ".jpg": "jpeg", ".webp": "webp"}[path.suffix]
            command(
                f"generate --from-parameters {path} --model {record['model']} --format {form} "
                f"--out {tmp_path}"
            )
            same(pixels(tmp_path / path.name), pixels(path), name)  # numbered in turn
        else:
            *_, result = triptych.run(from_json(ClassToImage, record))
            picture = np.broadcast_to(result.pictures[0], (*result.pictures[0].shape[:2], 3))
            same(picture.astype(np.float64), pixels(path), name)


@pytest.mark.parametrize("name", EXPECTED["embedded"])
def test_two_towers_embed_alike(name: str) -> None:
    before = EXPECTED["embedded"][name]
    rows = command(
        f"embed --model {name} --text 'a red circle' --image captioned/train/red-circle-0.png "
        "--json"
    )
    assert [row["kind"] for row in rows] == [row["kind"] for row in before]
    found, expected = (torch.tensor([row["embedding"] for row in part]) for part in (rows, before))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_an_index_is_read_and_not_made_again(copied: Path) -> None:
    index = contents(copied / "index")
    (found,) = command("search captioned --text 'a red circle' --model clip --index index --json")
    (before,) = EXPECTED["found"]
    assert (found["new"], found["pictures"]) == (0, before["pictures"])
    assert contents(copied / "index") == index
    scores = {match["name"]: match["score"] for match in found["matches"]}
    assert scores == pytest.approx({m["name"]: m["score"] for m in before["matches"]}, abs=1e-5)
