"""`triptych models`: what is on this computer, and what a card says."""

import json
from pathlib import Path

import pytest

from tests.hub_cache import place_in_cache, use_cache
from tests.systems.clip import tiny_clip
from tests.weights.test_bundled_models import KEEP, box, place  # noqa: F401
from triptych.cli.main import run
from triptych.fields import to_json
from triptych.weights.bundled_models import CARD


@pytest.fixture
def models(box: Path, tmp_path: Path, monkeypatch) -> Path:  # noqa: F811
    """A bundled model, a run folder and a model in the hub's cache."""
    use_cache(tmp_path / "cache", monkeypatch)
    (place_in_cache(tmp_path / "cache", "someone/some--model") / "weights").write_bytes(b"x" * 2000)
    tiny_clip.saved(tiny_clip.tiny_clip(), Path("runs/clip"))
    (Path("runs/clip") / "step-001000").mkdir()
    (Path("runs") / "pictures").mkdir()
    return box


def test_every_model_is_listed_with_where_it_is(models: Path, capsys) -> None:
    assert run(["models", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(m["name"], m["place"], m["kind"], m["about"]) for m in found] == [
        ("small", "bundled", "stable-diffusion", KEEP.title),
        ("runs/clip", "run", "clip", "step 1,000"),
        ("someone/some--model", "hub", "", ""),
    ]
    sizes = [(models / "small" / "model.safetensors").stat().st_size / 1e6]
    sizes += [Path("runs/clip/model.safetensors").stat().st_size / 1e6, 0.002]
    assert [m["megabytes"] for m in found] == sizes
    assert run(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "from", "kind", "MB"] and len(lines) == 4
    assert lines[1].startswith("small") and lines[1].endswith(KEEP.title)


def test_what_is_wrong_with_one_stands_beside_it(models: Path, capsys) -> None:
    (models / "small" / CARD).write_text("{")
    (models / "small" / "model.safetensors").unlink()
    (models / "small" / "config.json").unlink()
    place(models, "other")
    Path("other").mkdir()
    (Path("other") / "run.json").write_text("{}")
    assert run(["models", "--json"]) == 0
    first, second, *_ = map(json.loads, capsys.readouterr().out.splitlines())
    assert second["name"] == "small" and "is not JSON from line 1" in second["about"]
    assert second["megabytes"] == 0 and second["kind"] == ""
    assert first["about"] == "not by this name here, which is that of ./other"


def test_a_card_is_shown_as_text_and_as_json(models: Path, capsys) -> None:
    assert run(["models", "small", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "small", **to_json(KEEP)}
    assert run(["models", str(models / "small")]) == 0
    text = capsys.readouterr().out
    for what in (KEEP.title, KEEP.data, KEEP.licence, KEEP.hardware, *KEEP.commands):
        assert what in text


def test_what_has_no_card_is_named(models: Path, capsys) -> None:
    assert run(["models", "smal"]) == 3
    assert "there are small. Did you mean 'small'?" in capsys.readouterr().err
    assert run(["models", "runs/clip"]) == 3
    assert "runs/clip has no card" in capsys.readouterr().err
