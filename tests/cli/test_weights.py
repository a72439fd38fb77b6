"""`triptych weights` as a user meets it, nonsense included: a sentence, a code, no traceback."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from triptych.cli.main import run
from triptych.weights.catalog import CATALOG
from triptych.weights.loaded import Reading

STATE = {"visual.proj": torch.arange(6.0).reshape(2, 3), "logit_scale": torch.tensor(2.5).half()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_list_prints_the_catalog(capsys) -> None:
    assert run(["weights", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(CATALOG) and lines[0].startswith("name")
    assert run(["weights", "list", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == list(CATALOG)
    assert all((row["licence"] or row["source"]) and row["files"] for row in rows)


def test_inspect_shows_every_tensor(saved: Path, capsys) -> None:
    assert run(["weights", "inspect", str(saved)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == ["visual.proj  2 x 3  float32", "logit_scale  scalar  float16"]
    assert "a torch.save archive, 2 tensors, 7 parameters in 26 bytes" in said.err
    assert run(["weights", "inspect", str(saved), "--json"]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert file["parameters"] == 7
    assert file["tensors"]["visual.proj"] == {"shape": [2, 3], "dtype": "float32"}


def test_names_in_a_file_send_nothing_to_the_terminal(tmp_path: Path, capsys) -> None:
    torch.save({"\x1b[2Jweight": torch.ones(1)}, tmp_path / "a.pt")
    assert run(["weights", "inspect", str(tmp_path / "a.pt")]) == 0
    assert capsys.readouterr().out == "\\x1b[2Jweight  1  float32\n"


def test_convert_to_safetensors(saved: Path, tmp_path: Path, capsys) -> None:
    dest = tmp_path / "new" / "model.safetensors"
    assert run(["weights", "convert", str(saved), str(dest)]) == 0
    found = load_file(dest)
    assert found.keys() == STATE.keys() and all(torch.equal(found[k], STATE[k]) for k in STATE)
    assert run(["weights", "convert", str(saved), str(dest)]) == 3
    assert "exists already" in capsys.readouterr().err
    assert run(["weights", "convert", str(saved), str(dest), "--overwrite"]) == 0
    assert run(["weights", "convert", str(saved), str(dest.parent), "--overwrite"]) == 0
    assert [p.name for p in dest.parent.iterdir()] == ["model.safetensors"]
    assert run(["weights", "convert", str(saved), str(tmp_path / "x.pt")]) == 2
    assert "should end in .safetensors" in capsys.readouterr().err


def test_convert_hands_other_forms_on(saved: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    asked = []
    module = types.ModuleType("triptych.export")
    module.convert_checkpoint = lambda *given: asked.append(given) or ("a thing to know",)
    monkeypatch.setitem(sys.modules, "triptych.export", module)
    dest = tmp_path / "folder"
    assert run(["weights", "convert", str(saved), str(dest), "--to", "open_clip"]) == 0
    flags = ["--predicts", "velocity", "--weights", "ema", "--variant", "fp16"]
    given = [str(saved), str(tmp_path / "other"), "--to", "diffusers", *flags]
    assert run(["weights", "convert", *given]) == 0
    assert asked == [
        (str(saved), dest, "open_clip", Reading()),
        (str(saved), tmp_path / "other", "diffusers", Reading("velocity", "ema", "fp16")),
    ]
    assert "a thing to know" in capsys.readouterr().err


def test_doctor_says_sound_or_what_to_do(saved: Path, tmp_path: Path, capsys) -> None:
    assert run(["weights", "doctor", str(saved)]) == 0
    assert "sound (a torch.save archive of 2 tensors)" in capsys.readouterr().out
    page = tmp_path / "page.safetensors"
    page.write_text("<!doctype html>")
    assert run(["weights", "doctor", str(saved), str(page), "--json"]) == 3
    first, second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first["fault"] is None and "web page" in second["fault"]
    assert run(["weights", "doctor", str(saved), str(page)]) == 3
    assert f"{page}: is a web page, not weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["lst"], 2),
        (["inspect"], 2),
        (["doctor"], 2),
        (["convert", "a"], 2),
        (["convert", "a", "b", "--to", "clip"], 2),
        (["inspect", "--tensors", "a"], 2),
        (["inspect", "nowhere.pt"], 3),
        (["inspect", "openai/clip-vit-base-patch32"], 3),
        (["inspect", "\0"], 3),
        (["inspect", "x" * 5000], 3),
        (["inspect", "/dev/null"], 3),
        (["inspect", "."], 3),
        (["doctor", "nowhere.pt"], 3),
        (["doctor", "."], 3),
        (["doctor", "\0"], 3),
        (["doctor", "x" * 5000], 3),
        (["convert", "nowhere.pt", "a.safetensors"], 3),
        (["convert", "empty.pt", "a.safetensors"], 3),
    ],
)
def test_nonsense_gets_a_sentence(words, code, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.pt").touch()
    found = run(["weights", *words])
    said = capsys.readouterr()
    assert found == code and (said.err or said.out)
    assert "Traceback" not in said.err and "unexpected" not in said.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.pt"]


def test_help(capsys) -> None:
    assert run(["weights", "--help"]) == 0
    assert "inspect PATH" in capsys.readouterr().out
    assert run(["weights", "lst"]) == 2
    assert "Did you mean 'list'" in capsys.readouterr().err
