"""Short names lead to published repositories; without a network the way to get them is said."""

import json
from pathlib import Path

import pytest

from tests.hub_cache import place_in_cache, use_cache
from tests.parity.tiny_pipelines import vae
from triptych.cli.main import run
from triptych.loading import load
from triptych.systems.autoencoder.model import Autoencoder
from triptych.weights.catalog import CATALOG
from triptych.weights.hub import HUB_ID, find_repository, select_files
from triptych.weights.short_names import SHORT_NAMES


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    use_cache(tmp_path / "cache", monkeypatch)
    return tmp_path / "cache"


def test_each_is_a_repository_and_not_a_name_of_another_kind() -> None:
    for name, one in SHORT_NAMES.items():
        assert HUB_ID.fullmatch(one.repo) and "/" not in name and one.licence
        assert CATALOG[name].repo == one.repo and CATALOG[name].family == one.family
    assert len({one.repo for one in SHORT_NAMES.values()}) == len(SHORT_NAMES) >= 12


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("clip-b32", "openai/clip-vit-base-patch32"),
        ("ViT-B-32/laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("owner/name", "owner/name"),
        ("runs/demo", ""),
        ("SD15", ""),
        ("nothing", ""),
    ],
)
def test_what_a_name_stands_for(name: str, repo: str, cache: Path) -> None:
    assert find_repository(name) == repo


def test_a_path_comes_first(cache: Path) -> None:
    Path("sd15").mkdir()
    assert find_repository("sd15") == ""


def test_offline_the_repository_and_the_command_are_said(cache: Path, capsys) -> None:
    repo = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    for words in (["generate", "a fox", "--model", "sd15"], ["weights", "fetch", "sd15"]):
        assert run(words) == 3
        said = capsys.readouterr().err
        assert f"sd15 is {repo} on the hub" in said and "HF_HUB_OFFLINE is set" in said
        assert f"\n  triptych weights fetch {repo}\n" in said and "Traceback" not in said
    assert not Path("pictures").exists()


def test_what_is_nearly_a_short_name_is_suggested(cache: Path, capsys) -> None:
    assert run(["generate", "a fox", "--model", "sdlx"]) == 3
    said = capsys.readouterr().err
    assert "Did you mean 'sdxl'?" in said and "weights list" in said
    assert run(["weights", "fetch", "sdlx"]) == 3
    assert "Did you mean 'sdxl'?" in capsys.readouterr().err


def test_a_published_autoencoder_is_found_in_the_cache(cache: Path, capsys) -> None:
    """One network of diffusers at the root of its repository, as autoencoders are published."""
    folder = place_in_cache(cache, SHORT_NAMES["vae-ft-mse"].repo)
    vae().save_pretrained(folder)
    (folder / "README.md").write_text("words")
    loaded = load("vae-ft-mse")
    assert isinstance(loaded.model, Autoencoder) and loaded.name == "vae-ft-mse"
    assert run(["weights", "fetch", "vae-ft-mse", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "name": "vae-ft-mse",
        "repository": "stabilityai/sd-vae-ft-mse",
        "folder": str(folder),
    }


def test_one_network_of_diffusers_is_fetched_without_copies() -> None:
    listing = ["README.md", "config.json", "diffusion_pytorch_model.bin", "taesd_decoder.pth",
               "diffusion_pytorch_model.safetensors", "taesd_decoder.safetensors"]  # fmt: skip
    assert select_files(listing) == ["config.json", "diffusion_pytorch_model.safetensors"]
