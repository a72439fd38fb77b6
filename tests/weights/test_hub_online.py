"""The real hub, with `pytest -m network`: a file of 4 kB, and that every short name is there."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from triptych.cli.main import run
from triptych.weights.hub import fetch, select_files
from triptych.weights.short_names import SHORT_NAMES

pytestmark = pytest.mark.network


def test_a_file_is_downloaded_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = fetch(SHORT_NAMES["clip-b32"].repo, ["config.json"])
    assert json.loads((folder / "config.json").read_text())["model_type"] == "clip"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(SHORT_NAMES["clip-b32"].repo, ["config.json"]) == folder


def test_a_tiny_autoencoder_is_fetched_and_loads(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert run(["weights", "fetch", "taesd", "--json"]) == 0
    folder = json.loads(capsys.readouterr().out)["folder"]
    assert run(["weights", "doctor", folder]) == 0


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_a_short_name_is_a_repository_with_weights(name: str) -> None:
    listing = huggingface_hub.HfApi().list_repo_files(SHORT_NAMES[name].repo)
    assert select_files(listing)
