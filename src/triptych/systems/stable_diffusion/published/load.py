"""Load a published Stable Diffusion: a diffusers folder or a single file.

Both become a configuration, a model whose parameters are mapped from the files, and a tokenizer for
each text tower. A `Reading` chooses between readings that a checkpoint allows; nothing is guessed,
executed or downloaded.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from triptych.config import errors_about
from triptych.systems.autoencoder import published as published_autoencoder
from triptych.systems.autoencoder import tiny_published
from triptych.systems.stable_diffusion.model import StableDiffusion, StableDiffusionConfig
from triptych.systems.stable_diffusion.published import unet as published_unet
from triptych.systems.stable_diffusion.published.folder.read import (
    NETWORKS,
    add_own_settings,
    read_folder,
)
from triptych.systems.stable_diffusion.published.single_file.read import (
    Part,
    describe_single_file,
    split_names,
)
from triptych.systems.stable_diffusion.published.text_encoder import (
    OPENCLIP_RULES,
    PREFIX,
    transformers_rules,
)
from triptych.systems.stable_diffusion.published.tokenizers import (
    file_tokenizers,
    folder_tokenizers,
)
from triptych.weights.files.weight_file import WeightFile, open_weights
from triptych.weights.keymap import Rule, convert, fill
from triptych.weights.layouts import Layout
from triptych.weights.loaded import AS_STORED, Published, Reading
from triptych.weights.skeleton import skeleton

UNCLIP = ("UnCLIPPipeline", "UnCLIPImageVariationPipeline")
"""Pipelines of diffusers that are of another system."""
ADVICE = "get a complete file, or the publisher's folder with model_index.json"


def recognise(layout: Layout) -> bool:
    """Whether a checkpoint may be a complete text-to-image model."""
    return layout.form in ("diffusers", "file") and layout.declared not in UNCLIP


def load_published(
    layout: Layout, dtype: torch.dtype | None = None, reading: Reading = AS_STORED
) -> Published:
    """Load a folder with `model_index.json`, or a `.safetensors` or `.ckpt` with all parts.

    Weights are cast to `dtype`; None keeps the dtype in which each is stored. There is never a
    second copy of them in memory.

    Raises:
        ValueError: the checkpoint is of another family, which is named; a part or a vocabulary is
            missing; tensors do not fit; or the prediction type is unknown.
    """
    with errors_about(layout.path):
        if layout.file is None:
            return _folder(layout.path, dtype, reading)
        return _file(layout.file, dtype, reading)


def _folder(path: Path, dtype: torch.dtype | None, reading: Reading) -> Published:
    if reading.weights != "raw":
        raise ValueError(
            "averaged weights of a diffusers folder are a variant: leave out --weights ema"
        )
    folder = read_folder(path, reading.variant)
    config = folder.config
    if reading.predicts is not None:
        config = replace(config, schedule=replace(config.schedule, predicts=reading.predicts))
    names = [name for name in NETWORKS if name.startswith("text") and name in folder.files]
    towers = {
        name.replace("text_encoder", "tokenizer"): tower
        for name, tower in zip(names, config.text, strict=True)
    }
    tokenizers = folder_tokenizers(path, towers)
    model = skeleton(lambda: StableDiffusion(config))
    for name, module in parts_of_model(model, names).items():
        state = open_weights(folder.files[name]).read(dtype)
        rules = folder_rules(config, name, names, state)
        with errors_about(folder.files[name]):
            fill(module, convert(state, rules))
    return Published("stable-diffusion", config, model, tokenizers=tokenizers, notes=folder.notes)


def folder_rules(
    config: StableDiffusionConfig, part: str, towers: list[str], names: Iterable[str] = (PREFIX,)
) -> list[Rule]:
    """The key map of a part of a folder; `towers` are the names of the text parts. `names` are the
    tensors of the file to read; the default is the published form.
    """
    if part == "unet":
        return published_unet.diffusers_rules(config.unet)
    if part == "vae" and config.tiny is not None:
        return tiny_published.diffusers_rules(config.tiny)
    if part == "vae":
        return published_autoencoder.diffusers_rules(names)
    return transformers_rules(config.text[towers.index(part)], names)


def _file(weights: WeightFile, dtype: torch.dtype | None, reading: Reading) -> Published:
    if reading.variant:
        raise ValueError("a single file has no variants: leave out --variant")
    file = describe_single_file(weights, predicts=reading.predicts, weights=reading.weights)
    if file.missing:
        raise ValueError(f"has no {' and no '.join(file.missing)}: {ADVICE}")
    config = add_own_settings(file.config, file.own)
    towers = [name for name in file.parts if name.startswith("text")]
    pads = [
        tower.text.end if file.parts[name].names == "transformers" else 0
        for name, tower in zip(towers, config.text, strict=True)
    ]
    tokenizers = file_tokenizers(weights.path, config.text, pads)
    model = skeleton(lambda: StableDiffusion(config))
    names = split_names(weights.header.shapes, file)
    for name, module in parts_of_model(model, towers).items():
        stored = names[name]
        tensors = weights.read(dtype, list(stored.values()))
        state = {short: tensors[full] for short, full in stored.items()}
        rules = file_rules(config, name, file.parts[name], state)
        try:
            fill(module, convert(state, rules))
        except ValueError as error:
            raise ValueError(f"{file.parts[name].prefix}*: {error}") from error
    return Published("stable-diffusion", config, model, tokenizers=tokenizers, notes=file.notes)


def file_rules(
    config: StableDiffusionConfig, name: str, part: Part, names: Iterable[str] = (PREFIX,)
) -> list[Rule]:
    """The key map of a part of a single file; `names` are its tensors without the prefix, by
    default of the published form.
    """
    if name == "unet":
        return published_unet.ldm_rules(config.unet)
    if name == "vae":
        assert config.autoencoder is not None
        return published_autoencoder.ldm_rules(len(config.autoencoder.widths))
    if part.tower is None or part.names == "openclip":
        return OPENCLIP_RULES
    return transformers_rules(part.tower, names)


def parts_of_model(model: StableDiffusion, towers: list[str]) -> dict[str, nn.Module]:
    """The parts of the model by diffusers' names, the largest first."""
    texts = dict(zip(towers, model.text, strict=True))
    return {"unet": model.unet, **texts, "vae": model.autoencoder}
