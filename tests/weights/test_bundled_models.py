"""Which model a bundled name stands for, and what a card has to say."""

import json
from pathlib import Path

import pytest
import torch

from tests.systems.stable_diffusion import tiny_stable_diffusion
from triptych.config import BadFile
from triptych.fields import to_json
from triptych.loading import load
from triptych.weights import bundled_models
from triptych.weights.bundled_models import (
    CARD,
    Figure,
    ModelCard,
    bundled_names,
    find_bundled,
    read_card,
)
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.files.weight_file import read_weights

KEEP = ModelCard(
    "Small pictures", "ten pictures", "Apache-2.0", ("triptych train cvae",), 0, "a CPU"
)


def place(folder: Path, name: str = "small") -> Path:
    """A bundled text-to-image model of some thousand weights, in bfloat16."""
    path = tiny_stable_diffusion.saved(folder / name)
    weights = {n: t.bfloat16() for n, t in read_weights(path / "model.safetensors").items()}
    write_safetensors(path / "model.safetensors", weights)
    (path / CARD).write_text(json.dumps(to_json(KEEP)))
    return path


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A box with the model `small`; the working directory is another, empty folder."""
    monkeypatch.setattr(bundled_models, "FOLDER", tmp_path / "box")
    place(tmp_path / "box")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "box"


def test_a_bundled_name_is_found_anywhere(box: Path) -> None:
    assert bundled_names() == ("small",)
    assert find_bundled("small") == box / "small" and find_bundled("smal") is None
    assert read_card(box / "small") == KEEP
    found = load("small", dtype="float32")
    assert found.name == "small"
    stored = read_weights(box / "small" / "model.safetensors")
    weights = found.model.state_dict()
    assert all(torch.equal(weights[n], stored[n].float()) for n in stored)


def test_a_model_of_that_name_here_goes_first_and_other_folders_do_not(box: Path) -> None:
    Path("small").mkdir()
    (Path("small") / "apple.png").write_bytes(b"")
    assert find_bundled("small") == box / "small"
    (Path("small") / "run.json").write_text("{}")
    assert find_bundled("small") is None
    with pytest.raises(ValueError, match=r"no config.json yet: train until"):
        load("small")


def test_an_unknown_name_gets_the_nearest(box: Path) -> None:
    with pytest.raises(ValueError, match=r"no model 'smal'.*Did you mean 'small'\?"):
        load("smal")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"title": ""}, "title is empty"),
        ({"licence": " "}, "licence is empty"),
        ({"commands": []}, "commands is empty"),
        ({"hardwear": "x"}, "the card has no field 'hardwear'. Did you mean 'hardware'?"),
        ({"seed": "0"}, "seed must be int"),
        ({"figures": [{"what": "x", "value": 1.0}]}, "lacks the field 'command'"),
        ({"figures": [{"what": "x", "value": 1.0, "command": ""}]}, "by which command"),
        ({"figures": [{"what": "x", "value": 1.0, "command": "y", "low": 0.5}]}, "low and a high"),
    ],
)
def test_a_damaged_card_is_named(box: Path, change, words: str) -> None:
    path = box / "small" / CARD
    path.write_text(json.dumps(to_json(KEEP) | change))
    with pytest.raises(BadFile) as error:
        read_card(box / "small")
    assert error.value.path == path and words in error.value.reason


def test_a_figure_with_everything_is_one_line() -> None:
    figure = Figure("accuracy", 0.9871, "triptych evaluate x", 0.98, 0.99, "chance 0.1")
    assert str(figure) == "accuracy: 0.9871 (0.98 to 0.99); chance 0.1"


def test_missing_and_foreign_weights_are_named(box: Path) -> None:
    weights = box / "small" / "model.safetensors"
    weights.unlink()
    with pytest.raises(ValueError, match=r"small lacks its model.safetensors: install it again"):
        load("small")
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BadFile, match="git lfs pull"):
        load("small")
    write_safetensors(weights, {"unet.conv_in.weight": torch.zeros(3, dtype=torch.int8)})
    with pytest.raises(ValueError, match=r"do not fit config.json"):
        load("small", dtype="float32")
