"""Single files are told apart by names and shapes as diffusers does, and nothing is guessed."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import infer_diffusers_model_type

from triptych.systems.autoencoder import published as published_autoencoder
from triptych.systems.clip.model import TextTransformer
from triptych.systems.stable_diffusion.model import ScheduleConfig, StableDiffusionConfig
from triptych.systems.stable_diffusion.published import unet as published_unet
from triptych.systems.stable_diffusion.published.folder.schedulers import from_diffusers
from triptych.systems.stable_diffusion.published.inspect_checkpoint import summary
from triptych.systems.stable_diffusion.published.single_file import read as single_file
from triptych.systems.stable_diffusion.published.single_file.configs import (
    AUTOENCODERS,
    UNETS,
    published_config,
)
from triptych.systems.stable_diffusion.published.single_file.read import (
    describe_single_file,
    split_names,
)
from triptych.systems.stable_diffusion.published.text_encoder import (
    OPENCLIP_BIGG,
    OPENCLIP_H,
    OPENCLIP_RULES,
    transformers_rules,
)
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.files.weight_file import open_weights, read_weights
from triptych.weights.keymap import convert, export
from triptych.weights.layouts import layout

DATA = Path(os.environ.get("TRIPTYCH_DATA", "nowhere")) / "configs" / "diffusers"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="TRIPTYCH_DATA is not set")
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TO_K = "input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"


def unet(width, context, channels=4, level=1, **others):
    """The tensors of a U-Net that tell it from others, the rest being the same everywhere."""
    names = {
        "input_blocks.0.0.weight": (width, channels, 3, 3),
        TO_K.format(level): (width, context),
        "out.2.weight": (4, width, 3, 3),
    }
    return {UNET + name: shape for name, shape in (names | others).items()}


OTHERS = {"alphas_cumprod": (1000,), f"{VAE}decoder.conv_in.weight": (512, 4, 3, 3)}
CLIP_L = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
H = "cond_stage_model.model."
OPEN_CLIP = {
    f"{H}transformer.resblocks.23.ln_1.weight": (1024,),
    f"{H}text_projection": (1024, 1024),
}
XL_L = "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight"
BIG = "model.transformer.resblocks.9.mlp.c_proj.bias"
SKIP = {"output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1)}
SD_2 = {"level": 2} | {"output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1)}

FILES = {
    "1.x": unet(320, 768, **SKIP) | OTHERS | {CLIP_L: (77, 768)},
    "1.x inpainting": unet(320, 768, 9, **SKIP) | OTHERS | {CLIP_L: (77, 768)},
    "2.x": unet(320, 1024, **SD_2) | OTHERS | OPEN_CLIP,
    "2.x inpainting": unet(320, 1024, 9, **SD_2) | OTHERS | OPEN_CLIP,
    "XL": unet(320, 2048, level=4, **{"label_emb.0.0.weight": (1280, 2816)})
    | OTHERS
    | {XL_L: (77, 768), f"conditioner.embedders.1.{BIG}": (1280,)},
    "XL inpainting": unet(320, 2048, 9, level=4, **{"label_emb.0.0.weight": (1280, 2816)})
    | OTHERS
    | {XL_L: (77, 768), f"conditioner.embedders.1.{BIG}": (1280,)},
    "XL refiner": unet(384, 1280, level=4, **{"label_emb.0.0.weight": (1536, 2560)})
    | OTHERS
    | {f"conditioner.embedders.0.{BIG}": (1280,)},
}  # fmt: skip
UPSCALER = (
    unet(
        256, 1024, 7, level=4,
        **{
            "label_emb.weight": (1000, 1024),
            "input_blocks.10.0.skip_connection.bias": (1024,),
        },
    )
    | OTHERS
    | OPEN_CLIP
    | {"low_scale_model.betas": (1000,)}
)  # fmt: skip
THEIRS = {  # diffusers' names of them
    "1.x": "v1", "1.x inpainting": "inpainting", "2.x": "v2", "2.x inpainting": "inpainting_v2",
    "XL": "xl_base", "XL inpainting": "xl_inpaint", "XL refiner": "xl_refiner",
}  # fmt: skip


def split_single_file(state, file):
    """A file's tensors by part, without prefixes."""
    names = split_names(state, file)
    return {part: {n: state[full] for n, full in own.items()} for part, own in names.items()}


def tensors(shapes):
    return {name: torch.zeros(shape, dtype=torch.uint8) for name, shape in shapes.items()}


def describe(path, **flags):
    return describe_single_file(open_weights(path), **flags)


def saved(folder, shapes, notes=None):
    path = folder / "model.safetensors"
    write_safetensors(path, tensors(shapes), notes)
    return path


@pytest.mark.parametrize("name", FILES)
def test_families_are_those_of_diffusers(name, tmp_path):
    assert infer_diffusers_model_type(tensors(FILES[name])) == THEIRS[name]
    path = saved(tmp_path, FILES[name])
    flag = {"predicts": "noise"} if name.startswith("2.x") else {}
    found = describe(path, **flag)
    assert found.family == f"Stable Diffusion {name.removesuffix(' inpainting')}"
    assert found.config.unet.in_channels == (9 if name.endswith("inpainting") else 4)
    assert found.missing == () and found.notes == ()
    assert ("text_encoder_2" in found.parts) == (name in ("XL", "XL inpainting"))
    assert found.config.schedule.predicts == "noise"
    split = split_single_file(read_weights(path), found)
    assert sum(map(len, split.values())) == sum(
        n.startswith((UNET, VAE, "cond")) for n in FILES[name]
    )


def test_the_upscaler_is_refused_by_name(tmp_path):
    assert infer_diffusers_model_type(tensors(UPSCALER)) == "upscale"
    path = saved(tmp_path, UPSCALER)
    with pytest.raises(ValueError, match="is the Stable Diffusion x4 upscaler"):
        describe(path)
    found = summary(layout(path))
    assert found is not None and "x4 upscaler" in found.notes[0]


def test_a_ckpt_is_described_as_a_safetensors_is(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": tensors(FILES["1.x"]), "global_step": 3}, path)
    assert describe(path) == describe(saved(tmp_path, FILES["1.x"]))


def test_only_the_header_is_read(tmp_path, monkeypatch):
    path = saved(tmp_path, FILES["1.x"], {"a": "b"})
    monkeypatch.setattr("triptych.weights.files.safetensors.load_file", None)
    assert describe(path).family == "Stable Diffusion 1.x"
    header = open_weights(path).header
    assert header.shapes == FILES["1.x"] and header.notes == {"a": "b"}
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cut short"):
        describe(path)
    with pytest.raises(ValueError, match="does not exist"):
        describe(tmp_path / "nothing.safetensors")


def test_what_2x_predicts_is_never_guessed(tmp_path, monkeypatch):
    path = saved(tmp_path, FILES["2.x"])
    with pytest.raises(ValueError, match=r"--predicts noise .* or --predicts velocity"):
        describe(path)
    velocity = describe(path, predicts="velocity")
    assert velocity.config.schedule.predicts == "velocity"
    assert velocity.config.sampling.height == velocity.config.sampling.width == 768
    noise = describe(path, predicts="noise").config.sampling
    assert noise.height == noise.width == 512
    digest = single_file.file_digest(path)
    for predicts in ("noise", "velocity"):
        known = {digest: (path.stat().st_size, predicts)}
        monkeypatch.setattr(single_file, "PUBLISHED_2X", known)
        assert describe(path).config.schedule.predicts == predicts
    monkeypatch.setattr(single_file, "PUBLISHED_2X", {"0" * 64: (path.stat().st_size, "noise")})
    with pytest.raises(ValueError, match="--predicts"):
        describe(path)
    monkeypatch.setattr(
        single_file, "PUBLISHED_2X", {digest: (1, "noise")}
    )  # another size: not hashed
    monkeypatch.setattr(single_file, "file_digest", None)
    with pytest.raises(ValueError, match="--predicts"):
        describe(path)


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ({"modelspec.prediction_type": "v"}, "velocity"),
        ({"modelspec.prediction_type": "epsilon"}, "noise"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, "velocity"),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, "noise"),
    ],
)
def test_what_the_file_says_counts(notes, expected, tmp_path):
    found = describe(saved(tmp_path, FILES["2.x"], notes))
    assert found.config.schedule.predicts == expected


def test_markers_of_fine_tunes_of_xl(tmp_path):
    path = saved(tmp_path, FILES["XL"] | {"v_pred": (0,), "ztsnr": (0,)})
    found = describe(path)
    assert found.config.schedule == ScheduleConfig(predicts="velocity", zero_terminal_snr=True)
    assert describe(path, predicts="noise").config.schedule.predicts == "noise"
    split_single_file(read_weights(path), found)  # markers belong to no part


STRANGE = {
    "Stable Diffusion 3": {"joint_blocks.0.context_block.adaLN_modulation.1.bias": (1,)},
    "FLUX": {f"{UNET}double_blocks.0.img_attn.norm.key_norm.scale": (1,)},
    "Playground 2.5": FILES["XL"] | {"edm_mean": (4,)},
    "unCLIP": unet(320, 1024, **SD_2, **{"label_emb.0.0.weight": (1280, 2048)}),
    "depth map": unet(320, 1024, 5, **SD_2),
    "InstructPix2Pix": unet(320, 768, 8),
    "size that is not among": unet(128, 64),
    "reads 6 channels": unet(320, 768, 6),
    "a LoRA": {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": (4, 4)},
    "give the folder": {"down_blocks.0.resnets.0.conv1.weight": (1,)},
    "an autoencoder without": {"first_stage_model.encoder.down.0.block.0.conv1.weight": (1,)},
    "a text encoder without": {"text_model.encoder.layers.0.mlp.fc1.bias": (1,)},
    "textual-inversion": {"emb_params": (2, 768)},
    "not a Stable Diffusion: .* but what": {"what.weight": (1,)},
}


@pytest.mark.parametrize("words", STRANGE)
def test_what_is_not_ours_is_refused_by_name(words, tmp_path):
    with pytest.raises(ValueError, match=words):
        describe(saved(tmp_path, STRANGE[words]))


def test_averaged_weights_by_choice(tmp_path):
    raw = tensors(FILES["1.x"])
    averaged = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): torch.ones_like(x)
        for name, x in raw.items()
        if name.startswith(UNET)
    }
    both = (
        raw
        | averaged
        | {"model_ema.decay": torch.ones(()), "model_ema.num_updates": torch.ones(())}
    )
    path = tmp_path / "both.safetensors"
    write_safetensors(path, both)
    found = describe(path)
    assert "--weights ema" in found.notes[0]
    assert all(not x.any() for x in split_single_file(both, found)["unet"].values())
    chosen = describe(path, weights="ema")
    assert chosen.notes == ()
    split = split_single_file(both, chosen)
    assert all(x.all() for x in split["unet"].values())
    assert not any(x.any() for x in split["vae"].values())
    del both[next(iter(averaged))]
    with pytest.raises(ValueError, match="there is no averaged"):
        split_single_file(both, chosen)
    with pytest.raises(ValueError, match="has no averaged weights"):
        describe(saved(tmp_path, FILES["1.x"]), weights="ema")


def test_missing_parts_are_named_and_strange_tensors_refused(tmp_path):
    shapes = {name: x for name, x in FILES["1.x"].items() if not name.startswith(VAE)}
    found = describe(saved(tmp_path, shapes))
    assert found.missing == ("vae",) and found.notes == ("the file has no vae",)
    strange = tensors(FILES["1.x"] | {"hypernetwork.0.weight": (1,)})
    with pytest.raises(ValueError, match=r"hypernetwork.0.weight belong to no part of Stable"):
        split_single_file(strange, describe(saved(tmp_path, FILES["1.x"])))


@pytest.mark.parametrize("name", ["1.x", "2.x", "XL", "XL refiner"])
def test_every_tensor_of_the_text_towers_is_claimed(name, tmp_path):
    """Whole towers on the meta device below their prefixes go out and come back."""
    found = describe(saved(tmp_path, FILES[name]), predicts="noise")
    state = {}
    towers = {n: p for n, p in found.parts.items() if n.startswith("text")}
    for part in towers.values():
        with torch.device("meta"):
            model = TextTransformer(part.tower.text, part.tower.dim)
        rules = OPENCLIP_RULES if part.names == "openclip" else transformers_rules(part.tower)
        state |= {part.prefix + n: x for n, x in export(model.state_dict(), rules).items()}
    for tower, own in split_single_file(state, found).items():
        if tower in towers:
            part = towers[tower]
            rules = transformers_rules(part.tower, own)
            converted = convert(own, OPENCLIP_RULES if part.names == "openclip" else rules)
            with torch.device("meta"):
                model = TextTransformer(part.tower.text, part.tower.dim)
            shapes = {n: x.shape for n, x in converted.items()}
            assert shapes == {n: x.shape for n, x in model.state_dict().items()}


def test_2x_files_without_the_block_that_is_not_read(tmp_path):
    shapes = {n: x for n, x in FILES["2.x"].items() if not n.startswith(H)}
    shapes |= {f"{H}ln_final.weight": (1024,)}
    tower = describe(saved(tmp_path, shapes), predicts="noise").parts["text_encoder"]
    assert (tower.tower.text.layers, tower.tower.skip, tower.tower.dim) == (23, 0, None)
    whole = describe(saved(tmp_path, FILES["2.x"]), predicts="noise")
    tower = whole.parts["text_encoder"]
    assert (tower.tower.text.layers, tower.tower.skip, tower.tower.dim) == (24, 1, 1024)


PUBLISHED = {
    "Stable Diffusion 1.x": "stable-diffusion-v1-5",
    "Stable Diffusion 2.x": "stable-diffusion-2-1-base",
    "Stable Diffusion XL": "stable-diffusion-xl-base-1.0",
    "Stable Diffusion XL refiner": "stable-diffusion-xl-refiner-1.0",
}


@needs_data
def test_the_bundled_configurations_are_the_published_ones():
    def stored(family, file):
        return json.loads((DATA / PUBLISHED[family] / file).read_text())

    for family in PUBLISHED:
        unet = published_unet.from_diffusers(stored(family, "unet/config.json"))
        assert UNETS[family] == unet, family
        vae = published_autoencoder.from_diffusers(stored(family, "vae/config.json"))
        assert AUTOENCODERS[family] == vae, family
    schedulers = {
        "stable-diffusion-2-1-base": "Stable Diffusion 2.x",
        "stable-diffusion-xl-base-1.0": "Stable Diffusion XL",
    }
    for family in schedulers.values():
        scheduler = from_diffusers(
            {"timestep_spacing": "leading"} | stored(family, "scheduler/scheduler_config.json")
        )
        towers = {"Stable Diffusion 2.x": (OPENCLIP_H,)}.get(
            family, (replace(StableDiffusionConfig().text[0], skip=1, norm=False), OPENCLIP_BIGG)
        )
        config = published_config(family, ScheduleConfig(), towers, 4)
        assert config.schedule == scheduler.schedule
        for field in ("sampler", "spacing", "offset", "end"):
            assert getattr(config.sampling, field) == getattr(scheduler.sampling, field), field
