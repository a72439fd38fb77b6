"""A text-to-image model as a folder that diffusers loads.

What a folder says is read back before anything is written: where diffusers has no word for
something, it is refused by name, or, if it is only what a request leaves open, kept in
`triptych.json`, which diffusers passes over.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from triptych.config import write_json
from triptych.systems.autoencoder import published as published_autoencoder
from triptych.systems.autoencoder import tiny_published
from triptych.systems.clip.model import TextEncoderConfig
from triptych.systems.stable_diffusion.model import StableDiffusion, StableDiffusionConfig
from triptych.systems.stable_diffusion.published import text_encoder
from triptych.systems.stable_diffusion.published import unet as published_unet
from triptych.systems.stable_diffusion.published.folder import schedulers
from triptych.systems.stable_diffusion.published.folder.read import (
    OWN,
    beyond,
    configuration,
)
from triptych.text.tokenizer import Tokenizer
from triptych.weights.files.read import write_safetensors
from triptych.weights.keymap import Rule, export

Json = dict[str, Any]

VERSION = "0.30.0"
"""The version of diffusers whose form a folder has; its pipeline for inpainting asks for one."""
UNREAD = "left out, because it is never read: the text tower's"


class Readable(NamedTuple):
    """A model without the text layers that are in its file and never read."""

    config: StableDiffusionConfig
    notes: tuple[str, ...]


def write_diffusers(
    model: StableDiffusion, tokenizers: tuple[Tokenizer, ...], folder: Path
) -> tuple[str, ...]:
    """Every part in a folder of its own, weights in the type that they have here.

    Returns what someone should know, such as layers that are left out.

    Raises:
        ValueError: diffusers has no such model; names what it lacks.
        OSError: the disk is full or the folder cannot be written.
    """
    config, notes = readable(model.config)
    index = pipeline_index(config)
    parts = configurations(config)
    own = beyond(config, configuration(index, parts)[0])
    for tokenizer in tokenizers:
        if tokenizer.pairs() is None:
            raise ValueError(
                "the pipelines of diffusers read CLIP's byte pairs, and this model's vocabulary is "
                "of another form"
            )
    names = [name for name in parts if name.startswith("text")]
    for name, tokenizer in zip(names, tokenizers, strict=True):
        _write_tokenizer(tokenizer, folder / name.replace("text_encoder", "tokenizer"))
    for name, stored in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        write_json(folder / name / file, stored)
    towers = dict(zip(names, zip(model.text, config.text, strict=True), strict=True))
    _write(folder / "unet", model.unet, published_unet.diffusers_rules(config.unet))
    rules = published_autoencoder.diffusers_rules()
    if config.tiny is not None:
        rules = tiny_published.diffusers_rules(config.tiny)
    _write(folder / "vae", model.autoencoder, rules)
    for name, (module, tower) in towers.items():
        state = read_part(module, tower)
        tensors = export(state, text_encoder.transformers_rules(tower))
        write_safetensors(folder / name / "model.safetensors", tensors, {"format": "pt"})
    if own:
        write_json(folder / OWN, own)
        notes = (*notes, f"what diffusers' files cannot say is in {OWN}: {', '.join(_words(own))}")
    write_json(folder / "model_index.json", index)
    return notes


def readable(config: StableDiffusionConfig) -> Readable:
    """Without text layers that are never read, which published folders do not have either.

    Raises:
        ValueError: the model is of a kind that no pipeline of diffusers is.
    """
    if config.patch:
        raise ValueError(
            "pipelines of diffusers have an autoencoder; this model's latents are squares of "
            f"{config.patch} pixels"
        )
    large = bool(config.unet.added)
    if len(config.text) > 1 + large:
        raise ValueError(
            f"diffusers' pipeline of such a U-Net has {1 + large} text towers, not "
            f"{len(config.text)}"
        )
    if large:
        for tower in config.text:
            if tower.skip != 1 or tower.norm:
                raise ValueError(
                    "diffusers' XL reads the layer before the last one of its text towers without "
                    f"a norm; this model skips {tower.skip} with{'' if tower.norm else 'out'} one"
                )
        return Readable(config, ())
    (tower,) = config.text
    if not tower.norm:
        raise ValueError("diffusers normalises what it reads of a text tower; this model does not")
    left = ["projection"] * (tower.dim is not None)
    left += [f"last {tower.skip} blocks" if tower.skip > 1 else "last block"] * bool(tower.skip)
    text = replace(tower.text, layers=tower.text.layers - tower.skip)
    cut = replace(config, text=(TextEncoderConfig(text),))
    return Readable(cut, (f"{UNREAD} {' and '.join(left)}",) if left else ())


def read_part(module: nn.Module, tower: TextEncoderConfig) -> dict[str, Tensor]:
    """The tensors of a text tower that its cut configuration still has."""
    kept = {}
    for name, tensor in module.state_dict().items():
        words = name.split(".")
        if words[0] == "projection" and tower.dim is None:
            continue
        if words[:2] == ["transformer", "blocks"] and int(words[2]) >= tower.text.layers:
            continue
        kept[name] = tensor
    return kept


def pipeline_index(config: StableDiffusionConfig) -> Json:
    """The `model_index.json` of a model.

    Raises:
        ValueError: no pipeline gives the U-Net its input.
    """
    unet, large = config.unet, bool(config.unet.added)
    extra = unet.in_channels - unet.out_channels
    kinds = {0: "", unet.out_channels + 1: "Inpaint"}
    if unet.labels or extra not in kinds:
        raise ValueError(
            f"no pipeline of diffusers has a U-Net with {unet.in_channels} channels in, "
            f"{unet.out_channels} out and {unet.labels} labels"
        )
    kind = kinds[extra]
    if large and config.sizes not in (5, 6):
        raise ValueError(f"diffusers' XL tells its U-Net 5 or 6 sizes, not {config.sizes}")
    refines = large and config.sizes == 5
    kind = "Img2Img" if refines and not kind else kind
    index: Json = {
        "_class_name": f"StableDiffusion{'XL' * large}{kind}Pipeline",
        "_diffusers_version": VERSION,
    }
    names = towers_of(config)
    for name, tower in zip(names, config.text, strict=True):
        projected = "" if tower.dim is None else "WithProjection"
        index[name] = ["transformers", f"CLIPTextModel{projected}"]
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if large and len(names) == 1:
        index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    scheduler = schedulers.to_diffusers(config.schedule, config.sampling)["_class_name"]
    vae = "AutoencoderKL" if config.tiny is None else "AutoencoderTiny"
    index |= {
        "scheduler": ["diffusers", scheduler],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", vae],
    }
    if large:
        index |= {"force_zeros_for_empty_prompt": config.sampling.zeros_for_empty}
        return index | ({"requires_aesthetics_score": refines} if kind else {})
    empty = {"safety_checker": [None, None], "feature_extractor": [None, None]}
    return index | empty | {"requires_safety_checker": False}


def towers_of(config: StableDiffusionConfig) -> tuple[str, ...]:
    """What diffusers calls the text towers: a single one of XL is its second."""
    if config.unet.added:
        return ("text_encoder", "text_encoder_2")[-len(config.text) :]
    return ("text_encoder",)


def configurations(config: StableDiffusionConfig) -> dict[str, Json]:
    """The configuration of every part, by its folder."""
    sampling, factor = config.sampling, config.factor
    sides = [-(-side // factor) for side in (sampling.height, sampling.width)]
    unet = published_unet.to_diffusers(config.unet)
    unet |= {"sample_size": sides[0] if sides[0] == sides[1] else sides}
    if config.unet.context == 1024:
        unet["upcast_attention"] = True  # of 2.x, which overflows float16 in diffusers without it
    if config.tiny is not None:
        vae = tiny_published.to_diffusers(config.tiny)
    else:
        assert config.autoencoder is not None
        vae = published_autoencoder.to_diffusers(config.autoencoder)
        vae |= {"sample_size": max(sampling.height, sampling.width)}
    parts = {"unet": unet, "vae": vae}
    for name, tower in zip(towers_of(config), config.text, strict=True):
        parts[name] = text_encoder.to_transformers(tower)
    parts["scheduler"] = schedulers.to_diffusers(config.schedule, sampling)
    return parts


def _write(folder: Path, module: nn.Module, rules: list[Rule]) -> None:
    tensors = export(module.state_dict(), rules)
    file = folder / "diffusion_pytorch_model.safetensors"
    write_safetensors(file, tensors, {"format": "pt"})


def _write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """In the form that every version of transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs, around = tokenizer.pairs(), tokenizer.config
    assert pairs is not None and around.start is not None and around.end is not None
    vocabulary, merges = pairs
    tokenizer.save(folder)
    write_json(folder / "vocab.json", dict(sorted(vocabulary.items(), key=lambda item: item[1])))
    lines = ["#version: 0.2", *merges, ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    special = {
        "bos_token": tokenizer.name(around.start),
        "eos_token": tokenizer.name(around.end),
        "pad_token": tokenizer.name(around.pad),
        "unk_token": tokenizer.name(around.end),
    }
    write_json(folder / "special_tokens_map.json", special)
    stored = {"model_max_length": around.length, "tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "tokenizer_config.json", special | stored)


def _words(own: Mapping[str, Any]) -> list[str]:
    return [*own.get("sampling", {}), *(name for name in own if name != "sampling")]
