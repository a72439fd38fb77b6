"""Published Stable Diffusion checkpoints as a whole: a diffusers folder, or a single file.

Both become one configuration, one model whose parameters are the file's, and a tokenizer for each
text tower. What they leave open is a `Reading`; nothing else is guessed, executed or fetched.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from triptych.systems.autoencoder import published as published_autoencoder
from triptych.systems.autoencoder import tiny_published
from triptych.systems.clip.model import TextEncoderConfig
from triptych.systems.stable_diffusion.model import StableDiffusion, StableDiffusionConfig
from triptych.systems.stable_diffusion.published import unet as published_unet
from triptych.systems.stable_diffusion.published.folder.read import (
    NETWORKS,
    assembled,
    completed,
    described,
)
from triptych.systems.stable_diffusion.published.single_file.read import (
    Part,
    Predicts,
    SingleFile,
    describe_single_file,
    split_names,
)
from triptych.systems.stable_diffusion.published.text_encoder import (
    OPENCLIP_RULES,
    transformers_rules,
)
from triptych.systems.stable_diffusion.published.tokenizers import (
    file_tokenizers,
    folder_tokenizers,
)
from triptych.text.tokenizer import Tokenizer
from triptych.weights.files.read import read_cast, read_header
from triptych.weights.keymap import Rule, convert, fill
from triptych.weights.layouts import Layout
from triptych.weights.loaded import AS_STORED, Published, Reading
from triptych.weights.skeleton import skeleton

ADVICE = (
    "get the whole file, or the folder of its publisher that has model_index.json, whose parts are "
    "complete"
)


class Whole(NamedTuple):
    """A text-to-image model with what reads its prompts."""

    config: StableDiffusionConfig
    model: StableDiffusion
    tokenizers: tuple[Tokenizer, ...]
    notes: tuple[str, ...]
    """What someone should know, such as what was left out."""


def recognise(found: Layout) -> bool:
    """Whether a checkpoint may be a text-to-image model as a whole."""
    return found.form in ("diffusers", "file")


def load_published(
    found: Layout, dtype: torch.dtype | None = None, reading: Reading = AS_STORED
) -> Published:
    """A checkpoint that `recognise` accepts; see `load_stable_diffusion`."""
    whole = load_stable_diffusion(found.path, dtype, reading)
    return Published(
        "stable-diffusion",
        whole.config,
        whole.model,
        tokenizers=whole.tokenizers,
        notes=whole.notes,
    )


def load_stable_diffusion(
    path: Path, dtype: torch.dtype | None = None, reading: Reading = AS_STORED
) -> Whole:
    """A folder with `model_index.json`, or a `.safetensors` or `.ckpt` with all parts.

    Weights come in `dtype`; None maps them in the type that each is stored in. There are never two
    copies of them.

    Raises:
        ValueError: it is something else, by its name; a part or a vocabulary is missing; tensors
            do not fit; or what must be known is not said.
    """
    try:
        return (_folder if path.is_dir() else _file)(path, dtype, reading)
    except ValueError as error:
        about = "" if str(error).startswith(f"{path}") else f"{path}: "
        raise ValueError(f"{about}{error}") from error


def _folder(path: Path, dtype: torch.dtype | None, reading: Reading) -> Whole:
    if reading.weights != "raw":
        raise ValueError(
            "a diffusers folder has its averaged weights as a variant, if at all: leave out "
            "--weights ema"
        )
    found = described(path, reading.variant)
    config = _predicting(found.config, reading.predicts)
    names = [name for name in NETWORKS if name.startswith("text") and name in found.files]
    towers = {
        name.replace("text_encoder", "tokenizer"): tower
        for name, tower in zip(names, config.text, strict=True)
    }
    tokenizers = folder_tokenizers(path, towers)
    model = skeleton(lambda: StableDiffusion(config))
    for name, module in _modules(model, names).items():
        state = read_cast(found.files[name], dtype)
        rules = folder_rules(config, name, names, state)
        _fill(module, state, rules, f"{found.files[name]}")
    return Whole(config, model, tokenizers, found.notes)


def folder_rules(
    config: StableDiffusionConfig, part: str, towers: list[str], names: Mapping[str, Any]
) -> list[Rule]:
    """The table for a part of a folder; `names` are those of the file, `towers` the text parts."""
    if part == "unet":
        return published_unet.diffusers_rules(config.unet)
    if part == "vae" and config.tiny is not None:
        return tiny_published.diffusers_rules(config.tiny)
    if part == "vae":
        return published_autoencoder.diffusers_rules(names)
    return transformers_rules(config.text[towers.index(part)], names)


def _file(path: Path, dtype: torch.dtype | None, reading: Reading) -> Whole:
    if reading.variant:
        raise ValueError("a single file has no variants: leave out --variant")
    found = describe_single_file(path, predicts=reading.predicts, weights=reading.weights)
    if found.missing:
        raise ValueError(f"has no {' and no '.join(found.missing)}: {ADVICE}")
    config, notes = file_config(found)
    towers = [name for name in found.parts if name.startswith("text")]
    pads = [
        tower.text.end if found.parts[name].names == "transformers" else 0
        for name, tower in zip(towers, config.text, strict=True)
    ]
    tokenizers = file_tokenizers(path, config.text, pads)
    model = skeleton(lambda: StableDiffusion(config))
    names = split_names(read_header(path).shapes, found)
    for name, module in _modules(model, towers).items():
        own = names[name]
        tensors = read_cast(path, dtype, set(own.values()))
        state = {ours: tensors[theirs] for ours, theirs in own.items()}
        rules = file_rules(config, name, found.parts[name], state)
        _fill(module, state, rules, f"{found.parts[name].prefix}*")
    return Whole(config, model, tokenizers, (*found.notes, *notes))


def file_config(found: SingleFile) -> tuple[StableDiffusionConfig, tuple[str, ...]]:
    """The configuration of a single file whose parts are all there; and what should be said."""
    towers = tuple(
        part.config for part in found.parts.values() if isinstance(part.config, TextEncoderConfig)
    )
    unet, vae = found.parts["unet"].config, found.parts["vae"].config
    assert isinstance(unet, Mapping) and isinstance(vae, Mapping)
    config, notes = assembled(index_of(found), unet, vae, towers, found.scheduler)
    return completed(config, found.own), notes


def index_of(found: SingleFile) -> dict[str, Any]:
    """The `model_index.json` of the published folder, as far as it says how pictures are drawn."""
    large, refines = "XL" in found.family, "refiner" in found.family
    kind = "Inpaint" if found.inpaints else "Img2Img" if refines else ""
    index = {"_class_name": f"StableDiffusion{'XL' * large}{kind}Pipeline"}
    if large:
        return index | {
            "force_zeros_for_empty_prompt": not refines,
            "requires_aesthetics_score": refines,
        }
    return index


def file_rules(
    config: StableDiffusionConfig, name: str, part: Part, names: Mapping[str, Any]
) -> list[Rule]:
    """The table for a part of a single file; `names` are those below its prefix."""
    if name == "unet":
        return published_unet.ldm_rules(config.unet)
    if name == "vae":
        assert config.autoencoder is not None
        return published_autoencoder.ldm_rules(len(config.autoencoder.widths))
    if part.names == "openclip":
        return OPENCLIP_RULES
    assert isinstance(part.config, TextEncoderConfig)
    return transformers_rules(part.config, names)


def _predicting(config: StableDiffusionConfig, predicts: Predicts | None) -> StableDiffusionConfig:
    if predicts is None or predicts == config.schedule.predicts:
        return config
    return replace(config, schedule=replace(config.schedule, predicts=predicts))


def _modules(model: StableDiffusion, towers: list[str]) -> dict[str, nn.Module]:
    """The parts by diffusers' names, the largest first."""
    texts = dict(zip(towers, model.text, strict=True))
    return {"unet": model.unet, **texts, "vae": model.autoencoder}


def _fill(module: nn.Module, state: dict[str, Tensor], rules: list[Rule], where: str) -> None:
    try:
        fill(module, convert(state, rules))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
