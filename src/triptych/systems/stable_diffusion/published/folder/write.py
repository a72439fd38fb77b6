"""Write a text-to-image model as a folder that diffusers loads.

The configuration is read back before anything is written. What diffusers cannot express is an
error, or, where it is only a default of sampling, goes into `triptych.json`, which diffusers
ignores.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from triptych.config import write_json
from triptych.systems.autoencoder import published as published_autoencoder
from triptych.systems.autoencoder import tiny_published
from triptych.systems.clip.model import TextEncoderConfig
from triptych.systems.stable_diffusion.model import StableDiffusion, StableDiffusionConfig
from triptych.systems.stable_diffusion.published import text_encoder
from triptych.systems.stable_diffusion.published import unet as published_unet
from triptych.systems.stable_diffusion.published.folder import schedulers
from triptych.systems.stable_diffusion.published.folder.read import (
    OWN_FILE,
    own_settings,
    parse_configs,
)
from triptych.systems.stable_diffusion.published.load import folder_rules, parts_of_model
from triptych.text.tokenizer import Tokenizer
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.keymap import export

Json = dict[str, Any]

VERSION = "0.30.0"
"""The version of diffusers whose format is written; its inpainting pipeline requires one."""


def write_diffusers(
    model: StableDiffusion, tokenizers: tuple[Tokenizer, ...], folder: Path
) -> tuple[str, ...]:
    """Write every part to a subfolder, weights in the dtype of the model.

    Returns notes for the user, such as layers that are left out.

    Raises:
        ValueError: diffusers cannot express the model; names what it lacks.
        OSError: the disk is full or the folder cannot be written.
    """
    config, notes = trim_towers(model.config)
    parts = part_configs(config)
    index = pipeline_index(config, parts)
    own = own_settings(config, parse_configs(index, parts)[0])
    for tokenizer in tokenizers:
        if tokenizer.pairs() is None:
            raise ValueError(
                "the pipelines of diffusers need a byte-pair vocabulary like CLIP's, which this "
                "model does not have"
            )
    names = [name for name in parts if name.startswith("text")]
    for name, tokenizer in zip(names, tokenizers, strict=True):
        _write_tokenizer(tokenizer, folder / name.replace("text_encoder", "tokenizer"))
    for name, stored in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        write_json(folder / name / file, stored)
    for name, state in part_states(model, config, names).items():
        file = "model.safetensors" if name in names else "diffusion_pytorch_model.safetensors"
        tensors = export(state, folder_rules(config, name, names))
        write_safetensors(folder / name / file, tensors, {"format": "pt"})
    if own:
        write_json(folder / OWN_FILE, own)
        listed = [*own.get("sampling", {}), *(name for name in own if name != "sampling")]
        notes = (
            *notes,
            f"settings that diffusers does not have are in {OWN_FILE}: {', '.join(listed)}",
        )
    write_json(folder / "model_index.json", index)
    return notes


def trim_towers(config: StableDiffusionConfig) -> tuple[StableDiffusionConfig, tuple[str, ...]]:
    """The configuration without the text layers that are never read, which published folders do not
    have either; and notes.

    Raises:
        ValueError: no pipeline of diffusers has such text towers, or pixels as latents.
    """
    if config.patch:
        raise ValueError(
            "pipelines of diffusers need an autoencoder; this model's latents are patches of pixels"
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
                    "diffusers' XL skips the last block of its text towers and reads without a "
                    f"norm; this model skips {tower.skip}, with{'' if tower.norm else 'out'} a norm"
                )
        return config, ()
    (tower,) = config.text
    if not tower.norm:
        raise ValueError("diffusers normalises the states of its text tower; this model does not")
    removed = ["projection"] * (tower.dim is not None)
    removed += [f"last {tower.skip} blocks" if tower.skip > 1 else "last block"] * bool(tower.skip)
    notes = (f"left out of the text tower, because never read: {' and '.join(removed)}",)
    text = replace(tower.text, layers=tower.text.layers - tower.skip)
    trimmed = replace(config, text=(TextEncoderConfig(text),))
    return trimmed, notes if removed else ()


def part_states(
    model: StableDiffusion, config: StableDiffusionConfig, towers: list[str]
) -> dict[str, dict[str, Tensor]]:
    """The tensors of the parts of a model that its trimmed configuration has; `towers` are the
    names of the text parts.
    """
    states = {name: part.state_dict() for name, part in parts_of_model(model, towers).items()}
    kept = {name: _trim(states[name], t) for name, t in zip(towers, config.text, strict=True)}
    return states | kept


def _trim(state: dict[str, Tensor], tower: TextEncoderConfig) -> dict[str, Tensor]:
    kept = {}
    for name, tensor in state.items():
        words = name.split(".")
        if words[0] == "projection" and tower.dim is None:
            continue
        if words[:2] == ["transformer", "blocks"] and int(words[2]) >= tower.text.layers:
            continue
        kept[name] = tensor
    return kept


def pipeline_index(config: StableDiffusionConfig, parts: Mapping[str, Json]) -> Json:
    """The `model_index.json` of a model, from the configurations of its parts.

    Raises:
        ValueError: no pipeline of diffusers has a U-Net with such inputs.
    """
    unet, large = config.unet, bool(config.unet.added)
    extra = unet.in_channels - unet.out_channels
    kinds = {0: "", unet.out_channels + 1: "Inpaint"}
    if unet.labels or extra not in kinds:
        raise ValueError(
            f"no supported pipeline of diffusers has a U-Net with {unet.in_channels} input "
            f"channels, {unet.out_channels} output channels and {unet.labels} labels"
        )
    kind = kinds[extra]
    if large and config.sizes not in (5, 6):
        raise ValueError(f"the U-Net of diffusers' XL reads 5 or 6 sizes, not {config.sizes}")
    refines = large and config.sizes == 5
    kind = "Img2Img" if refines and not kind else kind
    index: Json = {
        "_class_name": f"StableDiffusion{'XL' * large}{kind}Pipeline",
        "_diffusers_version": VERSION,
    }
    names = tower_names(config)
    for name in names:
        index[name] = ["transformers", *parts[name]["architectures"]]
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if large and len(names) == 1:
        index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    for name in ("scheduler", "unet", "vae"):
        index[name] = ["diffusers", parts[name]["_class_name"]]
    if large:
        index |= {"force_zeros_for_empty_prompt": config.sampling.zeros_for_empty}
        return index | ({"requires_aesthetics_score": refines} if kind else {})
    empty = {"safety_checker": [None, None], "feature_extractor": [None, None]}
    return index | empty | {"requires_safety_checker": False}


def tower_names(config: StableDiffusionConfig) -> tuple[str, ...]:
    """Diffusers' names of the text towers; if XL has only one, it is the second."""
    if config.unet.added:
        return ("text_encoder", "text_encoder_2")[-len(config.text) :]
    return ("text_encoder",)


def part_configs(config: StableDiffusionConfig) -> dict[str, Json]:
    """The configuration of every part, by the name of its folder."""
    sampling, factor = config.sampling, config.factor
    sides = [-(-side // factor) for side in (sampling.height, sampling.width)]
    unet = published_unet.to_diffusers(config.unet)
    unet |= {"sample_size": sides[0] if sides[0] == sides[1] else sides}
    if config.unet.context == 1024:
        unet["upcast_attention"] = True  # 2.x overflows float16 in diffusers without it
    if config.tiny is not None:
        vae = tiny_published.to_diffusers(config.tiny)
    else:
        assert config.autoencoder is not None
        vae = published_autoencoder.to_diffusers(config.autoencoder)
        vae |= {"sample_size": max(sampling.height, sampling.width)}
    parts = {"unet": unet, "vae": vae}
    for name, tower in zip(tower_names(config), config.text, strict=True):
        parts[name] = text_encoder.to_transformers(tower)
    parts["scheduler"] = schedulers.to_diffusers(config.schedule, sampling)
    return parts


def _write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that all versions of transformers read."""
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
