"""Whole Stable Diffusion checkpoints: the published configurations on the meta device, what this
project trains written for diffusers and back, and everything wrong that a folder or file can be.
"""

import inspect
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch

from tests.manifests import FOLDER
from tests.systems.stable_diffusion.published.test_unet import nested
from triptych.doctor import examine
from triptych.export import convert_checkpoint
from triptych.fields import to_json
from triptych.loading import load
from triptych.systems.autoencoder.model import AutoencoderConfig
from triptych.systems.autoencoder.published import diffusers_rules as vae_rules
from triptych.systems.autoencoder.tiny_model import TinyAutoencoderConfig
from triptych.systems.clip.model import TextConfig, TextEncoderConfig
from triptych.systems.stable_diffusion.model import (
    SamplingConfig,
    ScheduleConfig,
    StableDiffusion,
    StableDiffusionConfig,
)
from triptych.systems.stable_diffusion.published.folder.read import OTHERS, PIPELINES, read_folder
from triptych.systems.stable_diffusion.published.text_encoder import transformers_rules
from triptych.systems.stable_diffusion.published.unet import diffusers_rules
from triptych.systems.stable_diffusion.unet import LatentUNetConfig
from triptych.text.tokenizer import train_tokenizer
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.files.weight_file import open_weights, read_weights
from triptych.weights.keymap import export
from triptych.weights.loaded import Card, Reading
from triptych.weights.skeleton import skeleton

DATA = Path(os.environ.get("TRIPTYCH_DATA", "nowhere")) / "configs" / "diffusers"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="TRIPTYCH_DATA is not set")
MANIFESTS = {
    name: json.loads((FOLDER / f"{name}.json").read_text())["models"]
    for name in ("diffusers_unets", "autoencoders", "text_encoders")
}
PUBLISHED = {  # predicts, sampler, guidance, steps, side, towers as (layers, dim, skip, norm)
    "stable-diffusion-v1-4": ("noise", "plms", 7.5, 50, 512, ((12, None, 0, True),)),
    "stable-diffusion-v1-5": ("noise", "plms", 7.5, 50, 512, ((12, None, 0, True),)),
    "stable-diffusion-2-1": ("velocity", "ddim", 7.5, 50, 768, ((23, None, 0, True),)),
    "stable-diffusion-2-1-base": ("noise", "plms", 7.5, 50, 512, ((23, None, 0, True),)),
    "stable-diffusion-inpainting": ("noise", "ddim", 7.5, 50, 512, ((12, None, 0, True),)),
    "stable-diffusion-xl-base-1.0": (
        "noise", "euler", 5.0, 50, 1024, ((12, None, 1, False), (32, 1280, 1, False)),
    ),
    "stable-diffusion-xl-refiner-1.0": (
        "noise", "euler", 5.0, 50, 1024, ((32, 1280, 1, False),),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Nothing here may ask the network, or find a vocabulary that someone has downloaded."""

    def refuse(*_, **__):
        raise AssertionError("a local path asked the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def published(name, folder):
    """A published folder with empty files for weights."""
    shutil.copytree(DATA / name, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (folder / part).is_dir():
            stem = "model" if "text" in part else "diffusion_pytorch_model"
            (folder / part / f"{stem}.safetensors").touch()
    return folder


@needs_data
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_configuration_builds_as_a_whole(name, tmp_path):
    folder = read_folder(published(name, tmp_path / name))
    config = folder.config
    model = skeleton(lambda: StableDiffusion(config))
    assert all(x.is_meta for x in model.state_dict().values())
    unet = export(model.unet.state_dict(), diffusers_rules(config.unet))
    assert nested(unet) == MANIFESTS["diffusers_unets"][name]
    vae = export(model.autoencoder.state_dict(), vae_rules())
    assert nested(vae) == MANIFESTS["autoencoders"][f"{name}/vae"]
    parts = [part for part in folder.files if part.startswith("text")]
    for part, module, tower in zip(parts, model.text, config.text, strict=True):
        wanted = MANIFESTS["text_encoders"][f"{name}/{part}"]
        assert nested(export(module.state_dict(), transformers_rules(tower, wanted))) == wanted
    towers = tuple((t.text.layers, t.dim, t.skip, t.norm) for t in config.text)
    sampling = config.sampling
    assert (
        config.schedule.predicts, sampling.sampler, sampling.guidance, sampling.steps,
        sampling.height, towers,
    ) == PUBLISHED[name]  # fmt: skip
    assert sampling.width == sampling.height and config.dropped == 0.1
    assert sampling.zeros_for_empty == (name == "stable-diffusion-xl-base-1.0")
    checked = name in ("stable-diffusion-v1-4", "stable-diffusion-v1-5",
                       "stable-diffusion-inpainting")  # fmt: skip
    assert folder.notes == (("left out: the safety checker",) if checked else ())


@needs_data
def test_single_files_mean_what_the_published_folders_do(tmp_path):
    """The bundled configurations and the folders make the same whole, block for block read."""
    from triptych.systems.stable_diffusion.published.single_file.read import (
        describe_header,
    )
    from triptych.systems.stable_diffusion.published.single_file.write import (
        _tensors,
        published_family,
    )
    from triptych.weights.files.weight_file import Header

    for name in PUBLISHED:
        config = read_folder(published(name, tmp_path / name)).config
        family = published_family(config)
        tensors = _tensors(skeleton(lambda c=config: StableDiffusion(c)), config, family)
        shapes = {key: tuple(x.shape) for key, x in tensors.items()}
        found = describe_header(Header(shapes, {}), Path(name), config.schedule.predicts)
        read = found.config
        sampler = config.sampling.sampler  # which differs between folders of one family
        assert read == replace(
            config, sampling=replace(config.sampling, sampler=read.sampling.sampler)
        ), name
        assert sampler in ("plms", "ddim", "euler") and not found.missing


@needs_data
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FLUX.1-dev", r"is a FluxPipeline \(FLUX\)"),
        ("stable-diffusion-x4-upscaler", r"Pipeline \(the x4 upscaler, which enlarges a picture\)"),
        ("stable-diffusion-3-medium-diffusers", r"is a StableDiffusion3Pipeline \(Stable Diff"),
        ("stable-cascade", "Stable Cascade"),
        ("stable-cascade-prior", "Stable Cascade"),
        ("playground-v2.5-1024px-aesthetic", r"EDM's form \(Playground 2.5\)"),
        ("ddpm-butterflies-128", "diffusion on pixels"),
    ],
)
def test_other_families_are_refused_by_name(name, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        read_folder(published(name, tmp_path / name))


def test_pipelines_do_what_those_of_diffusers_do():
    for name, guidance in PIPELINES.items():
        defaults = inspect.signature(getattr(diffusers, name).__call__).parameters
        assert defaults["guidance_scale"].default == guidance, name
        assert defaults["num_inference_steps"].default == SamplingConfig().steps, name
    with_control = ("StableDiffusionControlNetPipeline", "StableDiffusionXLAdapterPipeline")
    for name in with_control:
        assert any(word in name for word in OTHERS)


CAPTIONS = ["a red circle on a blue ground", "two green squares", "a small star"]
TOKENIZER = train_tokenizer(CAPTIONS * 3, 530, 12)
TOWER = TextEncoderConfig(
    TextConfig(TOKENIZER.vocabulary, 12, 16, 3, 2, 24, end=TOKENIZER.config.end)
)
UNET = LatentUNetConfig(
    widths=(8, 16), transformers=(1, 0), heads=(2, 4), context=16, groups=4, blocks=1
)
VAE = AutoencoderConfig(widths=(8, 16), blocks=1, groups=4, scale=0.4)
OURS = StableDiffusionConfig(
    UNET, (TOWER,), sampling=SamplingConfig(height=16, width=16), autoencoder=VAE
)
RUNS = {
    "plain": OURS,
    "what a request leaves open": replace(
        OURS,
        dropped=0.0,
        sampling=SamplingConfig(
            "dpmpp_2s_ancestral", 12, "exponential", 0, "clean", 3.0, 0.5, 24, 17, True
        ),
    ),
    "flow": replace(
        OURS,
        schedule=ScheduleConfig("flow", shift=2.0, predicts="flow"),
        sampling=SamplingConfig("heun", 20, "trailing", 0, "clean", 4.0),
    ),
    "pure noise at the end": replace(
        OURS, schedule=ScheduleConfig("cosine", zero_terminal_snr=True, predicts="velocity")
    ),
    "tiny autoencoder": replace(
        OURS, autoencoder=None, tiny=TinyAutoencoderConfig(width=8, blocks=(1, 1))
    ),
    "channels of their own": replace(
        OURS,
        autoencoder=replace(VAE, latent_channels=3, channel_means=(0.1, 0.2, 0.3), shift=0.2),
        unet=replace(UNET, in_channels=3, out_channels=3),
    ),
    "two towers and sizes": replace(
        OURS,
        unet=replace(UNET, context=32, added=6 + 6 * 8, size_waves=8),
        text=(replace(TOWER, skip=1, norm=False), replace(TOWER, dim=6, skip=1, norm=False)),
    ),
}


KEPT = {  # what no file of diffusers says
    "what a request leaves open": {
        *("sampler", "steps", "spacing", "guidance", "rescale", "width"),
        "zeros_for_empty",
    },
    "flow": {"sampler", "steps", "spacing", "guidance"},
    "pure noise at the end": {"sampler"},  # PNDM's class cannot end there
    "two towers and sizes": {"guidance"},
}


def trained(folder, config, dtype=torch.float32):
    """A run folder, as a recipe of this project leaves it."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    model = StableDiffusion(config).to(dtype)
    around = (TOKENIZER.config,) * len(config.text)
    card = Card("stable-diffusion", to_json(config), tokenizers=around)
    (folder / "config.json").write_text(json.dumps(to_json(card)))
    write_safetensors(folder / "model.safetensors", model.state_dict())
    TOKENIZER.save(folder)
    return folder


def same(before, after):
    state, other = before.state_dict(), after.state_dict()
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("name", RUNS)
def test_what_is_trained_here_goes_out_and_comes_back(name, tmp_path):
    run, out = trained(tmp_path / "run", RUNS[name]), tmp_path / "out"
    said = convert_checkpoint(str(run), out, "diffusers")
    before, after = (load(str(path), dtype="float32") for path in (run, out))
    assert after.config == before.config == RUNS[name]
    same(before.model, after.model)
    assert [t.config for t in after.tokenizers] == [t.config for t in before.tokenizers]
    tokens = [t.encode(CAPTIONS).tokens for t in after.tokenizers]
    assert torch.equal(tokens[0], before.tokenizers[0].encode(CAPTIONS).tokens)
    kept = json.loads((out / "triptych.json").read_text()) if said else {}
    assert set(kept.get("sampling", {})) == KEPT.get(name, set())
    assert ("dropped" in kept) == (name == "what a request leaves open")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(out)
    scheduler = pipeline.scheduler.config
    if name == "flow":
        assert scheduler.shift == 2.0
    kind = "AutoencoderTiny" if name == "tiny autoencoder" else "AutoencoderKL"
    assert type(pipeline.vae).__name__ == kind
    x = torch.randn(1, RUNS[name].unet.out_channels, 8, 7)
    theirs = pipeline.vae.decode(x).sample if kind == "AutoencoderTiny" else None
    if theirs is not None:
        torch.testing.assert_close(after.model.autoencoder.decode(x), theirs, atol=1e-4, rtol=1e-4)


def test_what_a_request_leaves_open_is_kept_beside(tmp_path):
    name = "what a request leaves open"
    run = trained(tmp_path / "run", RUNS[name])
    convert_checkpoint(str(run), tmp_path / "out", "diffusers")
    own = json.loads((tmp_path / "out" / "triptych.json").read_text())
    assert own["dropped"] == 0 and own["sampling"]["sampler"] == "dpmpp_2s_ancestral"
    assert "end" not in own["sampling"]  # diffusers' files say it
    for changes, words in (
        ({"nothing": 1}, "unknown fields: nothing"),
        ({"sampling": {"steps": "many"}}, "triptych.json.sampling.steps"),
        ({"sampling": 3}, "sampling must be an object"),
    ):
        (tmp_path / "out" / "triptych.json").write_text(json.dumps(changes))
        with pytest.raises(ValueError, match=words):
            load(str(tmp_path / "out"))


SMALL_VECTOR = replace(TOWER, dim=6, skip=1, norm=False)
REFUSED = {
    "patches of pixels": replace(
        OURS, autoencoder=None, patch=2, unet=replace(UNET, in_channels=12, out_channels=12)
    ),
    "1 text towers, not 2": replace(
        OURS, unet=replace(UNET, context=32), text=(TOWER, TOWER)
    ),
    "this model does not": replace(OURS, text=(replace(TOWER, norm=False),)),
    "skips 0, with a norm": replace(
        OURS, unet=replace(UNET, added=6 + 48, size_waves=8), text=(replace(TOWER, dim=6),)
    ),
    "5 or 6 sizes, not 4": replace(
        OURS, unet=replace(UNET, added=6 + 32, size_waves=8), text=(SMALL_VECTOR,)
    ),
    "5 input channels, 4 output channels": replace(OURS, unet=replace(UNET, in_channels=5)),
    "and 7 labels": replace(OURS, unet=replace(UNET, labels=7)),
    "no global norm": replace(
        OURS, autoencoder=None, tiny=TinyAutoencoderConfig(width=8, blocks=(1, 1), global_norm=True)
    ),
    "network that predicts edm": replace(OURS, schedule=ScheduleConfig(predicts="edm")),
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_what_diffusers_cannot_have_is_refused_by_name(words, tmp_path):
    run = trained(tmp_path / "run", REFUSED[words])
    with pytest.raises(ValueError, match=words):
        convert_checkpoint(str(run), tmp_path / "out", "diffusers")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_text_layers_that_are_never_read_are_left_out_and_it_is_said(tmp_path):
    config = replace(OURS, text=(replace(TOWER, dim=5, skip=1),))
    run = trained(tmp_path / "run", config)
    said = convert_checkpoint(str(run), tmp_path / "out", "diffusers")
    assert said == ("left out of the text tower, because never read: projection and last block",)
    before, after = (load(str(p), dtype="float32") for p in (run, tmp_path / "out"))
    tokens = [TOKENIZER.encode(CAPTIONS).tokens]
    assert after.config.text[0].text.layers == 2
    with torch.inference_mode():
        theirs, _ = before.model.encode_text(tokens)
        ours, _ = after.model.encode_text(tokens)
    torch.testing.assert_close(ours, theirs)


def test_a_size_that_no_program_knows_is_no_single_file(tmp_path):
    run = trained(tmp_path / "run", OURS)
    with pytest.raises(ValueError, match="has 8 channels and a context of width 16"):
        convert_checkpoint(str(run), tmp_path / "out.safetensors", "single-file")
    with pytest.raises(ValueError, match=r"should end in \.safetensors"):
        convert_checkpoint(str(run), tmp_path / "out.ckpt", "single-file")
    with pytest.raises(ValueError, match="is a stable-diffusion, which converts to diffusers, tri"):
        convert_checkpoint(str(run), tmp_path / "out", "transformers")


def test_types_of_weights(tmp_path):
    """As they are stored, or as asked; a conversion keeps them."""
    run = trained(tmp_path / "run", OURS, torch.float16)
    convert_checkpoint(str(run), tmp_path / "out", "diffusers")
    for path in (run, tmp_path / "out"):
        for asked, found in (
            ("stored", torch.float16), ("float16", torch.float16), ("float32", torch.float32),
            ("bfloat16", torch.bfloat16),
        ):  # fmt: skip
            model = load(str(path), dtype=asked).model
            assert {x.dtype for x in model.state_dict().values()} == {found}
            assert not any(p.requires_grad for p in model.parameters()) and not model.training
        assert {x.dtype for x in load(str(path)).model.state_dict().values()} <= {
            torch.float32, torch.bfloat16,
        }  # fmt: skip
    file = tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors"
    assert {x.dtype for x in read_weights(file).values()} == {torch.float16}
    with pytest.raises(ValueError, match="stored or auto, not 'int3'"):
        load(str(run), dtype="int3")


def test_tensors_are_cast_as_they_are_read(tmp_path):
    torch.manual_seed(0)
    state = {
        "half": torch.randn(3, 4).half(), "whole": torch.randn(5), "count": torch.tensor(7),
        "empty": torch.empty(0, 3), "double": torch.randn(2, dtype=torch.float64),
    }  # fmt: skip
    write_safetensors(tmp_path / "a.safetensors", state)
    torch.save(state, tmp_path / "a.pt")
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pt"):
        read = open_weights(path).read(torch.bfloat16)
        assert read.keys() == state.keys() and read["count"].dtype == torch.int64
        for name, tensor in state.items():
            expected = tensor.bfloat16() if tensor.is_floating_point() else tensor
            assert torch.equal(read[name], expected) and read[name].shape == tensor.shape
        assert open_weights(path).read(torch.float32, ["whole"]).keys() == {"whole"}
        assert open_weights(path).read()["half"].dtype == torch.float16
    data = (tmp_path / "a.safetensors").read_bytes()
    for old, new in ((b"[3,4]", b"[3,5]"), (b"[5]", b"[-5]"[:3]), (b'"F16"', b'"F64"')):
        (tmp_path / "b.safetensors").write_bytes(data.replace(old, new, 1))
        with pytest.raises(ValueError, match="Fetch it again"):
            open_weights(tmp_path / "b.safetensors").read(torch.float32)
    (tmp_path / "b.safetensors").write_bytes(data[:-1])
    with pytest.raises(ValueError, match="cut short"):
        open_weights(tmp_path / "b.safetensors").read(torch.float32)
    with pytest.raises(ValueError, match="does not exist"):
        open_weights(tmp_path / "c.safetensors").read(torch.float32)


MEASURE = """
import resource, sys, torch
from triptych.loading import load
load(sys.argv[1], dtype="float32")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
model = load(sys.argv[2], dtype="bfloat16").model
weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 1024
print((peak() - before) / weights, weights)
"""


def test_loading_never_has_two_copies(tmp_path):
    """From float32 files, half of which is what comes out: a map of them would be two more."""
    wide = replace(UNET, widths=(256, 512), heads=(8, 8), context=16)
    small, large = trained(tmp_path / "small", OURS), tmp_path / "large"
    convert_checkpoint(str(trained(tmp_path / "run", replace(OURS, unet=wide))), large, "diffusers")
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(large)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    share, kilobytes = map(float, ran.stdout.split())
    assert kilobytes > 30_000
    assert share <= 1.3


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A small diffusers folder that loads."""
    root = tmp_path_factory.mktemp("converted")
    convert_checkpoint(str(trained(root / "run", OURS)), root / "sd", "diffusers")
    load(str(root / "sd"))
    return root / "sd"


@pytest.fixture
def folder(converted, tmp_path):
    """A copy of it."""
    return shutil.copytree(converted, tmp_path / "sd")


def edited(path, **changes):
    stored = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in stored.items() if v is not None}))


BROKEN = {
    "its folder vae is missing": lambda f: shutil.rmtree(f / "vae"),
    "names no vae": lambda f: edited(f / "model_index.json", vae=[None, None]),
    "its folder tokenizer is missing": lambda f: shutil.rmtree(f / "tokenizer"),
    "has no tokenizer file": lambda f: [
        (f / "tokenizer" / name).unlink() for name in ("vocab.json", "tokenizer.json")
    ],
    "unet: has no weights": lambda f: (
        f / "unet" / "diffusion_pytorch_model.safetensors"
    ).unlink(),
    "scheduler/scheduler_config.json is missing": lambda f: (
        f / "scheduler" / "scheduler_config.json"
    ).unlink(),
    "controlnet = .* is not supported": lambda f: edited(
        f / "model_index.json", controlnet=["diffusers", "ControlNetModel"]
    ),
    "StableDiffusionControlNetPipeline .a ControlNet": lambda f: edited(
        f / "model_index.json", _class_name="StableDiffusionControlNetPipeline"
    ),
    "does not fit a U-Net with projection_class_embeddings_input_dim 0": lambda f: edited(
        f / "model_index.json", _class_name="StableDiffusionXLPipeline"
    ),
    "unet: act_fn is 'gelu'": lambda f: edited(f / "unet" / "config.json", act_fn="gelu"),
    "vae: .* unknown fields": lambda f: edited(f / "vae" / "config.json", what=1),
    "text_encoder: the text encoder has model_type 't5'": lambda f: edited(
        f / "text_encoder" / "config.json", model_type="t5"
    ),
    "the text towers have width 16 together": lambda f: edited(
        f / "unet" / "config.json", cross_attention_dim=24
    ),
    "5 latent channels and the U-Net predicts 4": lambda f: edited(
        f / "vae" / "config.json", latent_channels=5
    ),
    "scheduler: the scheduler's beta_schedule is 'what'": lambda f: edited(
        f / "scheduler" / "scheduler_config.json", beta_schedule="what"
    ),
    "sample_size must be one or two positive integers, not 'big'": lambda f: edited(
        f / "unet" / "config.json", sample_size="big"
    ),
    "unet/diffusion_pytorch_model.*cut short": lambda f: (
        (path := f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(
            path.read_bytes()[:-5]
        )
    ),
    "git-lfs pointer": lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    ),
    "vae.*weights do not fit the model": lambda f: edited(
        f / "vae" / "config.json", block_out_channels=[8, 32]
    ),
    "belong to different models": lambda f: edited(
        f / "text_encoder" / "config.json", vocab_size=99
    ),
    "only as bf16, fp16: choose one, as in --variant bf16": lambda f: [
        shutil.copy(
            f / "vae" / "diffusion_pytorch_model.safetensors",
            f / "vae" / f"diffusion_pytorch_model.{kind}.safetensors",
        )
        for kind in ("fp16", "bf16")
    ]
    + [(f / "vae" / "diffusion_pytorch_model.safetensors").unlink()],
    "model_index.json: is not a JSON object": lambda f: (f / "model_index.json").write_text("[]"),
}  # fmt: skip


@pytest.mark.parametrize("words", BROKEN)
def test_a_broken_folder_says_what_is_wrong_and_where(words, folder):
    BROKEN[words](folder)
    with pytest.raises(ValueError, match=words) as caught:
        load(str(folder))
    assert str(folder) in str(caught.value)


def test_a_scheduler_without_its_class_is_what_the_index_names(folder):
    before = load(str(folder)).config
    edited(folder / "scheduler" / "scheduler_config.json", _class_name=None)
    assert load(str(folder)).config == before


def test_what_is_left_out_is_said(folder):
    edited(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
    )
    assert load(str(folder)).notes == (
        "left out: the safety checker and the image encoder (for picture prompts)",
    )


def test_what_the_network_predicts_may_be_told(folder):
    assert load(str(folder)).config.schedule.predicts == "noise"
    told = load(str(folder), reading=Reading(predicts="velocity"))
    assert told.config.schedule.predicts == "velocity" == told.model.config.schedule.predicts
    assert told.card.config["schedule"]["predicts"] == "velocity"


def faults(path):
    return [finding.fault for finding in examine(path) if finding.fault]


def test_the_doctor_knows_the_whole(folder):
    found = [finding.what for finding in examine(folder)]
    assert "StableDiffusionPipeline, predicts noise: unet, vae, text_encoder" in found
    assert faults(folder) == []
    shutil.rmtree(folder / "tokenizer")
    assert faults(folder) == ["has no tokenizer: fetch it from where the rest is"]
    edited(folder / "model_index.json", vae=[None, None])
    assert any("does not load: model_index.json names no vae" in fault for fault in faults(folder))
