"""Layouts are told apart by what lies in them; the doctor names faults, and the way out."""

import json
import socket
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from triptych import doctor
from triptych.doctor import examine, family, matches_declared
from triptych.fields import to_json
from triptych.systems.cvae.model import Cvae, CvaeConfig
from triptych.train.checkpoint import export
from triptych.weights import catalog
from triptych.weights.layouts import layout
from triptych.weights.loaded import Card

CLIP = {
    "logit_scale": torch.zeros(()),
    "text_model.embeddings.token_embedding.weight": torch.zeros(4, 2),
    "vision_model.embeddings.class_embedding": torch.zeros(2),
}
SIGLIP = {
    "text_model.embeddings.token_embedding.weight": torch.zeros(4, 2),
    "vision_model.head.probe": torch.zeros(1, 1, 2),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a local path asked the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def transformers(folder: Path, tensors=CLIP, declared: str = "clip") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": declared, "projection_dim": 2}))
    save_file(tensors, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


def faults(path: Path, **options: bool) -> list[str]:
    return [f"{f.path.name}: {f.fault}" for f in examine(path, **options) if f.fault]


def test_sizes_of_no_model_are_a_fault_of_the_configuration(tmp_path: Path) -> None:
    folder = transformers(tmp_path)
    assert faults(folder) == []
    for part, name, value, words in (
        ("vision_config", "num_hidden_layers", 10**9, "layers must be at most 1,048,576"),
        ("vision_config", "num_hidden_layers", 10**6, "a model of more than 4,000 tensors"),
        ("text_config", "num_attention_heads", 0, "heads must be at least 1, not 0"),
        ("text_config", "hidden_size", 0, "width must be at least 1, not 0"),
        ("text_config", "num_attention_heads", 7, "does not divide into 7 heads"),
        ("vision_config", "layer_norm_eps", float("nan"), "eps must be a finite number"),
    ):
        (folder / "config.json").write_text(json.dumps({"model_type": "clip", part: {name: value}}))
        (fault,) = faults(folder)
        assert fault.startswith("config.json: ") and words in fault
        assert part in fault or "tensors" in fault


def test_a_transformers_folder(tmp_path: Path) -> None:
    found = layout(transformers(tmp_path))
    assert (found.form, found.declared) == ("transformers", "clip")
    assert found.weights == (tmp_path / "model.safetensors",)
    assert found.config == tmp_path / "config.json"
    assert found.tokenizer == (tmp_path / "tokenizer.json",)
    assert found.preprocessor == tmp_path / "preprocessor_config.json"
    assert faults(tmp_path) == []


def test_shards_and_pickles_of_transformers(tmp_path: Path) -> None:
    transformers(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(CLIP, tmp_path / "pytorch_model.bin")
    assert layout(tmp_path).weights == (tmp_path / "pytorch_model.bin",)
    index = {"weight_map": dict.fromkeys(CLIP, "model-00001-of-00002.safetensors")}
    index["weight_map"]["logit_scale"] = "model-00002-of-00002.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert layout(tmp_path).weights == (tmp_path / "model.safetensors.index.json",)
    assert "lacks 2 shards: model-00001-of-00002.safetensors, model-0000" in faults(tmp_path)[0]


@pytest.mark.parametrize(
    "name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_model.bin"]
)
def test_an_open_clip_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}, "preprocess_cfg": {}}')
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')  # many have both
    save_file(CLIP, tmp_path / name)
    found = layout(tmp_path)
    assert found.form == "open_clip" and found.weights == (tmp_path / name,)
    assert found.config == tmp_path / "open_clip_config.json"


def test_a_run_folder_of_ours(tmp_path: Path) -> None:
    config = CvaeConfig(8, 8, 1, "label", 3, 2, "mlp", (8,))
    export(tmp_path, Cvae(config), to_json(Card("cvae", asdict(config), classes=("a", "b", "c"))))
    found = layout(tmp_path)
    assert (found.form, found.declared) == ("triptych", "cvae")
    assert faults(tmp_path) == []


def test_a_diffusers_folder_of_the_real_configuration(tmp_path: Path, real_data: Path) -> None:
    source = real_data / "configs" / "diffusers" / "stable-diffusion-v1-5"
    (tmp_path / "model_index.json").write_bytes((source / "model_index.json").read_bytes())
    with pytest.raises(ValueError, match="diffusers folder without weights"):
        layout(tmp_path)
    for part in ("unet", "vae", "scheduler"):
        (tmp_path / part).mkdir()
    save_file(CLIP, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(CLIP, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    found = layout(tmp_path)
    assert (found.form, found.declared) == ("diffusers", "StableDiffusionPipeline")
    assert [path.parent.name for path in found.weights] == ["unet", "vae"]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_single_files(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    np.savez(tmp_path / "siglip.npz", **{"params/t": np.ones(1)})
    save_file(CLIP, tmp_path / "model.safetensors")
    for name, form in (
        ("ViT-B-32.pt", "openai"), ("siglip.npz", "big_vision"), ("model.safetensors", "file")
    ):  # fmt: skip
        assert layout(tmp_path / name).form == form
        assert faults(tmp_path / name) == []


def test_the_cache_of_the_hub_is_a_folder_like_another(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    transformers(snapshot)
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs" / "main").write_text("0123")
    assert layout(tmp_path).path == snapshot
    (tmp_path / "refs" / "main").write_text("../../..")
    with pytest.raises(ValueError, match="holds no model"):
        layout(tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no model: it is no run folder .* there is no config.json"),
        ({"a.safetensors": b""}, r"no config\.json that says .* itself: .*a\.safetensors"),
        ({"config.json": b'{"x": 1}'}, "names no `model_type`"),
        ({"config.json": b"<html>"}, "config.json: is not JSON"),
        ({"config.json": b'{"model_type": "clip"}'},
         "transformers folder of a clip model without its weights"),
        ({"config.json": b'{"model_type": "clip"}', "model.safetensors.part": b"x"},
         r"model\.safetensors\.part is an unfinished download"),
        ({"model-00001-of-00002.safetensors": b"x"}, "shards without their index"),
        ({"config.json": b'{"model": "cvae", "config": {}}'}, "triptych folder of a cvae model w"),
        ({"open_clip_config.json": b"{\"model_cfg\": {}}"}, "open_clip folder of a model without"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_checkpoint(tmp_path: Path, files, words: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        layout(tmp_path)
    assert faults(tmp_path)


def test_the_doctor_finds_every_fault_of_a_folder(tmp_path: Path) -> None:
    transformers(tmp_path, SIGLIP)
    (found,) = faults(tmp_path)
    assert "contains SigLIP (Transformers), but its configuration says clip" in found
    transformers(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "preprocessor_config.json").unlink()
    assert [fault.split(":")[0] for fault in faults(tmp_path)] == [
        "tokenizer.json", "preprocessor_config.json"
    ]  # fmt: skip
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1])
    assert f"{len(whole) - 1} bytes instead of {len(whole)}" in faults(tmp_path)[0]


def test_the_doctor_knows_a_wrong_name(tmp_path: Path) -> None:
    torch.save(CLIP, tmp_path / "model.safetensors")
    (found,) = faults(tmp_path / "model.safetensors")
    assert "a torch.save archive under a wrong name: rename it to model.pt" in found
    assert faults(tmp_path / "modle.safetensors") == [
        "modle.safetensors: does not exist. Did you mean 'model.safetensors'?"
    ]


def test_digests_of_the_catalog(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "ViT-B-32.pt"
    torch.save(CLIP, path)
    assert faults(path) == []
    published = catalog.CATALOG["openai/ViT-B-32"].sha256["ViT-B-32.pt"]
    assert f"is published with {published}" in faults(path, digests=True)[0]
    entry = catalog.Checkpoint("x", "clip", "", (path.name,), {path.name: doctor.file_digest(path)})
    monkeypatch.setitem(catalog.CATALOG, "x", entry)
    assert faults(path, digests=True) == []


def test_every_digest_of_the_catalog_is_one_and_has_its_source() -> None:
    for name, entry in catalog.CATALOG.items():
        assert entry.name == name and entry.files and (entry.licence or entry.source)
        assert set(entry.sha256) <= set(entry.files)
        assert all(len(bytes.fromhex(digest)) == 32 for digest in entry.sha256.values())
        assert entry.source or not entry.sha256


def test_families_of_real_names() -> None:
    openai = dict.fromkeys(("visual.class_embedding", "token_embedding.weight"), torch.zeros(1))
    assert family(openai) == "CLIP (OpenAI's names, ViT)"
    assert family({f"module.{k}": v for k, v in openai.items()}) == "CLIP (OpenAI's names, ViT)"
    assert family(CLIP) == "CLIP (Transformers)"
    assert family(SIGLIP) == "SigLIP (Transformers)"
    assert family({"params/img/x": torch.zeros(1), "params/txt/y": torch.zeros(1)}).startswith(
        "SigLIP"
    )
    assert family({"w": torch.zeros(1)}) == ""
    assert matches_declared("clip", "CLIP (Transformers)") and not matches_declared(
        "clip", "SigLIP (Transformers)"
    )
    assert matches_declared("anything", "CLIP (Transformers)") and matches_declared("clip", "")
