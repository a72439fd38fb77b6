"""`triptych generate PROMPT` as someone uses it, and what nonsense gets."""

import json
from pathlib import Path

import pytest
from tests.pipelines.tiny_stable_diffusion import saved

from triptych.cli.main import run
from triptych.vision.images import read_parameters, read_request


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def generate(*words) -> int:
    return run(["generate", *map(str, words)])


def test_a_prompt_becomes_pictures_that_carry_their_request(tiny, capsys) -> None:
    words = ["a red cat", "--model", tiny, "--n", 2, "--seed", 5, "--precision", "float32"]
    assert generate(*words, "--json") == 0
    out = capsys.readouterr()
    said = json.loads(out.out)
    files = sorted(path.name for path in Path("pictures").iterdir())
    assert files == ["0000-5.png", "0001-6.png"]
    assert [one["seed"] for one in said["pictures"]] == [5, 6]
    record = read_request(Path("pictures/0001-6.png"))["request"]
    assert record["prompt"] == "a red cat" and record["seed"] == 6 and record["n"] == 1
    assert record["model"] == "tiny" and record["steps"] == 4 and record["size"] == "64x64"
    line = read_parameters(Path("pictures/0001-6.png"))
    assert line.startswith("a red cat\nSteps: 4, Sampler: Euler, ")
    assert "Seed: 6, Size: 64x64" in line and "Model: tiny" in line
    assert str(tiny) not in json.dumps(record) + line
