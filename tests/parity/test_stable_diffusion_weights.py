"""Whole pipelines of diffusers load here with the same numbers, and ours there."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file

from tests.parity.tiny_pipelines import CAPTIONS, FORMS, LENGTH, texts
from triptych.cli.main import run
from triptych.doctor import examine
from triptych.export import convert_checkpoint
from triptych.loading import load
from triptych.systems.autoencoder import published as published_autoencoder
from triptych.systems.clip.model import TextEncoderConfig
from triptych.systems.stable_diffusion.published import text_encoder
from triptych.systems.stable_diffusion.published import unet as published_unet
from triptych.systems.stable_diffusion.published.single_file import read as single_file
from triptych.systems.stable_diffusion.published.single_file import write as single_file_export
from triptych.systems.stable_diffusion.published.single_file.configs import AUTOENCODERS, UNETS
from triptych.weights.files import torch_archive
from triptych.weights.files.pickle_reader import read_pickle
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.loaded import Reading

PROMPTS = [*CAPTIONS, "", "stars " * 30]
PLAIN = [text for text in PROMPTS if "!" not in text]  # which folders and single files pad with


def save(pipeline, folder, **options):
    pipeline.save_pretrained(folder, **options)
    return folder


@torch.no_grad()
def agree(pipeline, loaded, prompts=PROMPTS):
    """The same tokens, texts, predictions, latents and pictures."""
    model, config = loaded.model, loaded.config
    random = torch.Generator().manual_seed(0)
    ids = [t.encode(prompts).tokens for t in loaded.tokenizers]
    names = [n for n in ("tokenizer", "tokenizer_2") if getattr(pipeline, n, None) is not None]
    for own, name in zip(ids, names, strict=True):
        theirs = getattr(pipeline, name)(
            prompts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
        ).input_ids
        assert torch.equal(own, theirs)
    states, vector = texts(pipeline, prompts)
    ours, pooled = model.encode_text(ids)
    torch.testing.assert_close(ours, states, atol=1e-4, rtol=1e-4)
    assert (pooled is None) == (vector is None)
    if vector is not None:
        torch.testing.assert_close(pooled, vector, atol=1e-4, rtol=1e-4)
    x = torch.randn(len(prompts), config.unet.in_channels, 8, 7, generator=random)
    time = torch.tensor([999, 700, 431, 20, 0, 5])[: len(prompts)]
    told, cond = {}, {"context": ours}
    if pooled is not None:
        sizes = torch.tensor([[64, 48, 0, 8, 64, 48]] * len(prompts))[:, : config.sizes]
        told = {"added_cond_kwargs": {"text_embeds": vector, "time_ids": sizes}}
        cond |= {"vector": pooled, "sizes": sizes}
    if config.unet.labels:
        label = torch.arange(len(prompts)) * 3
        told, cond = {"class_labels": label}, cond | {"label": label}
    expected = pipeline.unet(x, time, states, **told).sample
    assert expected.std() > 0.01
    torch.testing.assert_close(model.predict(x, time, cond), expected, atol=1e-4, rtol=1e-4)
    latents = torch.randn(1, config.unet.out_channels, 8, 6, generator=random)
    vae = pipeline.vae
    picture = vae.decode(latents / vae.config.scaling_factor).sample
    torch.testing.assert_close(model.autoencoder.decode(latents), picture, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_pipeline_of_diffusers_loads_here(form, tmp_path):
    pipeline = FORMS[form](tmp_path)
    loaded = load(str(save(pipeline, tmp_path / "saved")), dtype="float32")
    agree(pipeline, loaded)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_exported_loads_in_diffusers(form, tmp_path):
    """And gives the same numbers, tokens included; and comes back to the bit."""
    first = str(save(FORMS[form](tmp_path), tmp_path / "saved"))
    said = convert_checkpoint(first, tmp_path / "out", "diffusers")
    assert said == ()
    before, after = (load(x, dtype="stored") for x in (first, str(tmp_path / "out")))
    assert after.config == before.config and not (tmp_path / "out" / "triptych.json").exists()
    assert [t.config for t in after.tokenizers] == [t.config for t in before.tokenizers]
    same(before.model, after.model)
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert (
        type(theirs).__name__
        == json.loads((tmp_path / "saved" / "model_index.json").read_text())["_class_name"]
    )
    agree(theirs, load(first, dtype="float32"))


def same(before, after):
    state, other = before.state_dict(), after.state_dict()
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("form", ["1.x", pytest.param("XL", marks=pytest.mark.slow)])
def test_variants_and_shards(form, tmp_path):
    pipeline = FORMS[form](tmp_path)
    whole = load(str(save(pipeline, tmp_path / "whole")), dtype="float32")
    sharded = tmp_path / "sharded"
    save(pipeline, sharded, max_shard_size="20KB")
    assert (sharded / "unet" / "diffusion_pytorch_model.safetensors.index.json").exists()
    same(whole.model, load(str(sharded), dtype="float32").model)
    half = tmp_path / "half"
    save(pipeline.to(torch.float16), half, variant="fp16", max_shard_size="20KB")
    save(pipeline, half, variant="fp16")  # both forms, of which the file counts
    read = load(str(half), dtype="stored")
    assert read.notes == ("variants of the weights that are used: fp16",)
    assert {x.dtype for x in read.model.state_dict().values()} == {torch.float16}
    again = load(str(half), dtype="stored", reading=Reading(variant="fp16"))
    assert again.notes == ()
    same(read.model, again.model)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(read.model.state_dict()[name], tensor.half()), name
    cast = load(str(half), dtype="bfloat16").model
    assert {x.dtype for x in cast.state_dict().values()} == {torch.bfloat16}
    shutil.copytree(tmp_path / "whole" / "unet", half / "unet", dirs_exist_ok=True)
    mixed = load(str(half), dtype="stored")
    assert mixed.notes == ("variants of the weights that are used: fp16, no variant",)
    assert mixed.model.unet.conv_in.weight.dtype == torch.float32
    with pytest.raises(ValueError, match="no part has weights of the variant 'fp8'"):
        load(str(tmp_path / "whole"), reading=Reading(variant="fp8"))
    with pytest.raises(ValueError, match="averaged weights of a diffusers folder are a variant"):
        load(str(tmp_path / "whole"), reading=Reading(weights="ema"))


def test_old_files_of_pickles_and_old_names_of_attention(tmp_path):
    """As the first published folders were: .bin files, and the names of 2022."""
    pipeline = FORMS["1.x"](tmp_path)
    whole = load(str(save(pipeline, tmp_path / "saved")), dtype="float32")
    save(pipeline, tmp_path / "old", safe_serialization=False)
    file = tmp_path / "old" / "vae" / "diffusion_pytorch_model.bin"
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    state = {}
    for name, tensor in torch.load(file).items():
        for new, word in old.items():
            name = name.replace(new, word)
        state[name] = tensor
    torch.save(state, file)
    text = tmp_path / "old" / "text_encoder"
    torch.save(load_file(text / "model.safetensors"), text / "pytorch_model.bin")
    (text / "model.safetensors").unlink()
    assert not list((tmp_path / "old").glob("*/*.safetensors"))
    same(whole.model, load(str(tmp_path / "old"), dtype="float32").model)


@pytest.mark.parametrize("form", ["1.x", "2.x", "XL"])
def test_a_run_folder_holds_a_published_model(form, tmp_path):
    first = str(save(FORMS[form](tmp_path), tmp_path / "saved"))
    convert_checkpoint(first, tmp_path / "run", "triptych")
    before, after = (load(x, dtype="float32") for x in (first, str(tmp_path / "run")))
    assert after.config == before.config and after.card.model == "stable-diffusion"
    same(before.model, after.model)
    for own, theirs in zip(before.tokenizers, after.tokenizers, strict=True):
        assert own.config == theirs.config
        assert torch.equal(own.encode(PROMPTS).tokens, theirs.encode(PROMPTS).tokens)
    convert_checkpoint(str(tmp_path / "run"), tmp_path / "back", "diffusers")
    agree(DiffusionPipeline.from_pretrained(tmp_path / "back"), after)


FAMILIES = {
    "1.x": "Stable Diffusion 1.x",
    "2.x": "Stable Diffusion 2.x",
    "inpainting": "Stable Diffusion 1.x",
    "XL": "Stable Diffusion XL",
    "XL refiner": "Stable Diffusion XL refiner",
}


def publish(monkeypatch, form, folder):
    """As if a folder's tiny sizes were those of the published models of its family."""
    family = FAMILIES[form]
    for table, part, parse in (
        (UNETS, "unet", published_unet.from_diffusers),
        (AUTOENCODERS, "vae", published_autoencoder.from_diffusers),
    ):
        stored = json.loads((folder / part / "config.json").read_text())
        for other in list(table):
            monkeypatch.delitem(table, other)
        monkeypatch.setitem(table, family, parse(stored))
    towers = []
    for part in ("text_encoder", "text_encoder_2"):
        if (folder / part).exists():
            stored = json.loads((folder / part / "config.json").read_text())
            large = {"skip": 1, "norm": False} if "XL" in form else {}
            towers.append(text_encoder.from_transformers(stored, **large))
    small, big = towers[0], towers[-1]
    if form == "2.x":  # the whole tower, one block of which folders do not have
        whole = replace(small.text, layers=small.text.layers + 1)
        whole = TextEncoderConfig(whole, small.text.width, skip=1)
        for module in (single_file, single_file_export):
            monkeypatch.setattr(module, "OPENCLIP_H", whole)
    else:
        for module in (single_file, single_file_export):
            monkeypatch.setattr(module, "CLIP_L", TextEncoderConfig(small.text))
        monkeypatch.setattr(single_file, "OPENCLIP_BIGG", big)
    return family


def converted(state, pipeline, form):
    """What diffusers' own converters make of a single file, by part."""
    parts = {
        "unet": convert_ldm_unet_checkpoint(dict(state), dict(pipeline.unet.config)),
        "vae": convert_ldm_vae_checkpoint(dict(state), dict(pipeline.vae.config)),
    }
    if form in ("1.x", "inpainting"):
        parts["text_encoder"] = convert_ldm_clip_checkpoint(dict(state))
    elif form == "2.x":
        parts["text_encoder"] = convert_open_clip_checkpoint(
            pipeline.text_encoder, dict(state), prefix="cond_stage_model.model."
        )
    else:
        if form == "XL":
            parts["text_encoder"] = convert_ldm_clip_checkpoint(dict(state))
        number = 0 if form == "XL refiner" else 1
        parts["text_encoder_2"] = convert_open_clip_checkpoint(
            pipeline.text_encoder_2, dict(state), prefix=f"conditioner.embedders.{number}.model."
        )
    return parts


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=pytest.mark.slow if form in ("inpainting", "XL refiner") else ())
        for form in FAMILIES
    ],
)
def test_single_files_are_read_by_diffusers_converters(form, tmp_path, monkeypatch):
    """Every tensor of ours arrives where the folder had it, to the bit; and comes back here."""
    pipeline = FORMS[form](tmp_path)
    folder = save(pipeline, tmp_path / "saved")
    publish(monkeypatch, form, folder)
    before = load(str(folder), dtype="float32")
    path = tmp_path / "single" / "model.safetensors"
    said = convert_checkpoint(str(folder), path, "single-file")
    assert any("tokenizer.json beside it" in line for line in said)
    state = load_file(path)
    for part, theirs in converted(state, pipeline, form).items():
        own = getattr(pipeline, part).state_dict()
        theirs = {name.removeprefix("text_model."): x for name, x in theirs.items()}
        own = {name.removeprefix("text_model."): x for name, x in own.items()}
        assert own.keys() <= theirs.keys() | {"embeddings.position_ids"}, part
        assert all(torch.equal(own[name], theirs[name]) for name in own), part
    after = load(str(path), dtype="float32")
    same(before.model, after.model)
    assert after.config == before.config
    if form != "2.x":
        agree(pipeline, after, PLAIN)
    convert_checkpoint(str(path), tmp_path / "twice" / "again.safetensors", "single-file")
    again = load_file(tmp_path / "twice" / "again.safetensors")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    convert_checkpoint(str(path), tmp_path / "folder", "diffusers")
    agree(DiffusionPipeline.from_pretrained(tmp_path / "folder"), after, PLAIN)


@pytest.fixture(scope="module")
def tiny_1x(tmp_path_factory):
    """The folder of a tiny 1.x, and a single file of it with its vocabulary beside it."""
    root = tmp_path_factory.mktemp("tiny")
    folder = save(FORMS["1.x"](root), root / "saved")
    with pytest.MonkeyPatch.context() as patch:
        publish(patch, "1.x", folder)
        convert_checkpoint(str(folder), root / "single" / "model.safetensors", "single-file")
    return folder, root / "single"


@pytest.fixture
def single(tiny_1x, tmp_path, monkeypatch):
    """A copy of the single file, and what the folder holds."""
    folder, file = tiny_1x
    publish(monkeypatch, "1.x", folder)
    path = shutil.copytree(file, tmp_path / "single") / "model.safetensors"
    return path, load(str(folder), dtype="float32")


def written(path, change, notes=None):
    """The same file with other tensors, as another program leaves it."""
    state = change(load_file(path))
    path.unlink()
    write_safetensors(path, state, notes)
    return str(path)


def test_a_ckpt_of_training_with_averaged_weights(single):
    path, before = single
    state = load_file(path)
    averaged = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1
        for name, tensor in state.items()
        if name.startswith("model.diffusion_model.")
    }
    more = {
        "betas": torch.zeros(1000), "model_ema.num_updates": torch.tensor(3),
        "model_ema.decay": torch.tensor(0.9999), "first_stage_model.loss.logvar": torch.zeros(()),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(16)[None],
    }  # fmt: skip
    ckpt = path.with_name("model.ckpt")
    torch.save({"state_dict": state | averaged | more, "global_step": 3}, ckpt)
    for dtype in ("float32", "stored"):
        raw = load(str(ckpt), dtype=dtype)
        assert raw.notes == ("the file also has averaged weights: --weights ema reads them",)
        same(before.model, raw.model)
        ema = load(str(ckpt), dtype=dtype, reading=Reading(weights="ema"))
        assert ema.notes == ()
        for name, tensor in before.model.state_dict().items():
            expected = tensor + 1 if name.startswith("unet.") else tensor
            assert torch.equal(ema.model.state_dict()[name], expected), name


def test_the_pickle_of_a_ckpt_is_interpreted_once(single, monkeypatch, capsys):
    path, before = single
    ckpt = path.with_name("model.ckpt")
    torch.save({"state_dict": load_file(path)}, ckpt)
    calls = []

    def count(stream):
        calls.append(stream)
        return read_pickle(stream)

    monkeypatch.setattr(torch_archive, "read_pickle", count)
    same(before.model, load(str(ckpt), dtype="float32").model)
    assert len(calls) == 1
    assert len(list(examine(ckpt))) == 2 and len(calls) == 2
    assert run(["weights", "inspect", str(ckpt), "--json"]) == 0
    assert len(calls) == 3
    assert json.loads(capsys.readouterr().out)["whole"]["parts"] == ["unet", "vae", "text_encoder"]
    assert run(["weights", "convert", str(ckpt), str(ckpt.with_name("copy.safetensors"))]) == 0
    assert len(calls) == 4


BROKEN = {
    "has no vae: get a complete file": lambda s: {
        n: x for n, x in s.items() if not n.startswith("first_stage_model.")
    },
    "has no text_encoder: get": lambda s: {
        n: x for n, x in s.items() if not n.startswith("cond_stage_model.")
    },
    "hypernetwork.0.weight belong to no part": lambda s: s
    | {"hypernetwork.0.weight": torch.zeros(1)},
    "model.diffusion_model.*there is no norm_out.weight": lambda s: {
        n: x for n, x in s.items() if n != "model.diffusion_model.out.0.weight"
    },
    "is Stable Diffusion 3": lambda s: s | {"joint_blocks.0.x": torch.zeros(1)},
    "is a ControlNet": lambda s: s | {"control_model.time_embed.0.weight": torch.zeros(1)},
    "cond_stage_model.transformer.*no rule claims": lambda s: s
    | {"cond_stage_model.transformer.text_model.what": torch.zeros(1)},
}  # fmt: skip


@pytest.mark.parametrize("words", BROKEN)
def test_a_broken_single_file_says_what_is_wrong(words, single):
    path, _ = single
    with pytest.raises(ValueError, match=words) as caught:
        load(written(path, BROKEN[words]))
    assert str(path) in str(caught.value)


def test_other_faults_of_single_files(single):
    path, before = single
    with pytest.raises(ValueError, match="has no variants"):
        load(str(path), reading=Reading(variant="fp16"))
    with pytest.raises(ValueError, match="no averaged weights"):
        load(str(path), reading=Reading(weights="ema"))
    told = load(str(path), reading=Reading(predicts="velocity"))
    assert told.config.schedule.predicts == "velocity"
    with pytest.raises(
        ValueError, match="metadata 'triptych' in its header that is not a JSON object"
    ):
        load(written(path, dict, {"triptych": "{"}))
    same(before.model, load(written(path, dict), dtype="float32").model)  # no notes at all
    (path.parent / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"put the tokenizer\.json of openai/clip-vit-large"):
        load(str(path))
    data = path.read_bytes()
    path.write_bytes(data[:-7])
    with pytest.raises(ValueError, match="cut short"):
        load(str(path))


def test_what_2x_predicts_is_told_once_and_kept(tmp_path, monkeypatch):
    folder = save(FORMS["2.x"](tmp_path), tmp_path / "saved")
    publish(monkeypatch, "2.x", folder)
    path = tmp_path / "single" / "model.safetensors"
    convert_checkpoint(str(folder), path, "single-file")
    assert load(str(path)).config.schedule.predicts == "velocity"  # its notes say so
    written(path, dict)
    with pytest.raises(ValueError, match=r"--predicts noise .* or --predicts velocity"):
        load(str(path))
    told = Reading(predicts="velocity")
    convert_checkpoint(str(path), tmp_path / "out", "diffusers", told)
    assert load(str(tmp_path / "out")).config.schedule.predicts == "velocity"
    assert "does not declare what the network predicts" in str(list(examine(path))[1].what)


def test_the_doctor_and_inspect_know_a_single_file(single, capsys):
    path, _ = single
    assert run(["weights", "doctor", str(path)]) == 0
    said = capsys.readouterr().out
    assert "(Stable Diffusion 1.x, predicts noise: unet, vae, text_encoder)" in said
    assert run(["weights", "inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["whole"]
    assert facts["parts"] == ["unet", "vae", "text_encoder"] and facts["missing"] == []
    written(path, BROKEN["has no vae: get a complete file"])
    assert run(["weights", "doctor", str(path)]) == 3
    assert "has no vae: fetch it" in capsys.readouterr().out
    assert run(["weights", "inspect", str(path)]) == 0
    shown = capsys.readouterr().err
    assert "model: Stable Diffusion 1.x, predicts noise, made of unet, text_encoder" in shown
    assert "missing: vae" in shown
    dest = path.parent / "ours"
    assert run(["weights", "convert", str(path), str(dest), "--to", "diffusers"]) == 3
    assert "has no vae" in capsys.readouterr().err and not dest.exists()
