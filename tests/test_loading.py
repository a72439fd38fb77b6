"""What is loaded is what was saved; what cannot be loaded is named."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from triptych.config import BadFile
from triptych.fields import to_json
from triptych.loading import load
from triptych.systems.clip.model import Clip, ClipConfig, TextConfig, VitConfig
from triptych.systems.cvae.model import Cvae, CvaeConfig
from triptych.train.checkpoint import export
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.files.weight_file import read_weights
from triptych.weights.loaded import Card

CONFIG = CvaeConfig(8, 8, 1, "label", 3, 2, "mlp", (8,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    card = Card("cvae", asdict(CONFIG), classes=("a", "b", "c"))
    export(tmp_path, Cvae(CONFIG), to_json(card))
    return tmp_path


def test_a_round_trip_loses_nothing(folder: Path) -> None:
    torch.manual_seed(0)
    before = Cvae(CONFIG).state_dict()
    found = load(str(folder))
    assert found.config == CONFIG and found.card.classes == ("a", "b", "c")
    after = found.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any(t.is_meta for t in after.values())


def test_a_pipeline_of_an_unknown_name_is_no_autoencoder(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    write_safetensors(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", {})
    index = {"_class_name": "Odd", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadFile, match="is a Odd; supported: StableDiffusionPipeline"):
        load(str(tmp_path))


def test_a_folder_that_is_no_run_is_told_from_one_that_trains(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"x")
    with pytest.raises(BadFile, match="holds no model: it is no run folder"):
        load(str(tmp_path))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no config.json yet: train until its first checkpoint"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>sign in</html>", "web page"),
        (b"PK\x03\x04" + b"\0" * 60, "zip archive"),
        (b"", "broke off"),
        (b"\xff" * 100, "does not begin like"),
        ((100).to_bytes(8, "little") + b"{" * 20, "cut short"),
        ((4).to_bytes(8, "little") + b"{]]]", "broken header"),
    ],
)
def test_a_file_that_holds_no_weights_is_recognised(folder: Path, content, words) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load(str(folder))


def test_a_truncated_file_is_told_by_its_bytes(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    assert read_weights(path)
    for cut in (1, 7, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        with pytest.raises(BadFile, match=f"has {len(whole) - cut} bytes"):
            read_weights(path)


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    other = CvaeConfig(8, 8, 1, "label", 3, 2, "mlp", (16,))
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(card | {"config": asdict(other)}))
    with pytest.raises(ValueError, match="do not fit"):
        load(str(folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "cvea"}, "Did you mean 'cvae'"),
        ({"latent": 3}, "no field 'latent'"),
        ({"config": {"height": "tall"}}, "height must be int"),
        ({"config": {"hight": 8}}, "Did you mean 'height'"),
        ({"config": []}, "no `config` object"),
    ],
)
def test_a_wrong_card_is_refused_by_field(folder: Path, change, words) -> None:
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(card | change))
    with pytest.raises(ValueError, match=words):
        load(str(folder))


def test_names_of_open_clip_lead_to_their_repositories(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(repo: str) -> Path:
        asked.append(repo)
        raise ValueError("no network here")

    monkeypatch.setattr("triptych.weights.hub.fetch_model", refuse)
    with pytest.raises(ValueError, match="no network"):
        load("ViT-B-32/laion2b_s34b_b79k")
    assert asked == ["laion/CLIP-ViT-B-32-laion2B-s34B-b79K"]
    with pytest.raises(ValueError, match="ViT-B-32/openai"):
        load("ViT-B-32")
    with pytest.raises(ValueError, match="ViT-B-32/openai"):
        load("ViT-B-32/openia")
    assert len(asked) == 1


def test_half_precision_leaves_the_temperature_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = TextConfig(50, 12, 16, 1, 2, 32, end=49)
    config = ClipConfig(8, VitConfig(16, 8, 16, 1, 2, 32), text=text)
    model = Clip(config)
    model.logit_scale.data.fill_(math.log(100))
    export(tmp_path, model, to_json(Card("clip", to_json(config))))
    half = load(str(tmp_path), dtype="bfloat16").model
    assert half.logit_scale.item() == model.logit_scale.item()
    pixels = torch.randn(3, 3, 16, 16)
    embedded = half.embed_image(pixels.bfloat16())
    assert embedded.dtype == torch.float32
    cosines = (embedded * model.embed_image(pixels)).sum(1)
    assert cosines.min() > 0.999
    with pytest.raises(ValueError, match="stored or auto, not"):
        load(str(tmp_path), dtype="float64")
