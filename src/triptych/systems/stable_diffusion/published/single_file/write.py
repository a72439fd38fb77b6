"""A text-to-image model as one file, in the names of LDM and Stability AI.

Such a file has no configuration, so other programs know the published sizes alone; only those are
written. What the network predicts, and what a request leaves open, stands in notes of the header.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from triptych.systems.autoencoder.published import ldm_rules as autoencoder_rules
from triptych.systems.stable_diffusion.model import StableDiffusion, StableDiffusionConfig
from triptych.systems.stable_diffusion.published.folder.read import beyond
from triptych.systems.stable_diffusion.published.folder.write import read_part, readable
from triptych.systems.stable_diffusion.published.load import file_config
from triptych.systems.stable_diffusion.published.single_file import configs
from triptych.systems.stable_diffusion.published.single_file.configs import Family
from triptych.systems.stable_diffusion.published.single_file.read import (
    NOTE,
    UNET,
    VAE,
    described,
    parts_of,
)
from triptych.systems.stable_diffusion.published.text_encoder import (
    CLIP_L,
    OPENCLIP_H,
    OPENCLIP_RULES,
    transformers_rules,
)
from triptych.systems.stable_diffusion.published.unet import from_diffusers, ldm_rules
from triptych.weights.files.read import Header, write_safetensors
from triptych.weights.keymap import export

ARCHITECTURES: dict[Family, str] = {  # in Stability AI's standard of such notes
    "Stable Diffusion 1.x": "stable-diffusion-v1",
    "Stable Diffusion 2.x": "stable-diffusion-v2-512",
    "Stable Diffusion XL": "stable-diffusion-xl-v1-base",
    "Stable Diffusion XL refiner": "stable-diffusion-xl-v1-refiner",
}
ELSE = "write a folder, --to diffusers or --to triptych, which carries the configuration"


def write_single_file(model: StableDiffusion, path: Path) -> tuple[str, ...]:
    """All parts in one safetensors file, weights in the type that they have here.

    Returns what someone should know, such as layers that are left out.

    Raises:
        ValueError: the model is of no published size, or has what such a file cannot say.
        OSError: the disk is full or the file cannot be written; what was there before stays.
    """
    family = published(model.config)
    config = model.config
    notes: tuple[str, ...] = ()
    if not config.unet.added and config.text[0] not in (CLIP_L, OPENCLIP_H):
        config, notes = readable(config)
    tensors, metadata = _tensors(model, config, family), _notes(config, family)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    read, _ = file_config(described(Header(shapes, metadata), path))
    if own := beyond(config, read):
        metadata[NOTE] = json.dumps(own)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, tensors, metadata)
    return notes


def published(config: StableDiffusionConfig) -> Family:
    """The family that a model is of.

    Raises:
        ValueError: of none, so that no program would know its sizes.
    """
    if config.autoencoder is None:
        raise ValueError(
            f"a single file has a KL autoencoder inside, which this model has not: {ELSE}"
        )
    for family, unet in configs.UNETS.items():
        if from_diffusers(unet | {"in_channels": config.unet.in_channels}) == config.unet:
            return family
    raise ValueError(
        f"a single file has no configuration, and programs know those of the published sizes "
        f"alone; this model's U-Net has {config.unet.widths[0]} channels and attends to vectors of "
        f"{config.unet.context} numbers: {ELSE}"
    )


def _tensors(
    model: StableDiffusion, config: StableDiffusionConfig, family: Family
) -> dict[str, Tensor]:
    unet = export(model.unet.state_dict(), ldm_rules(config.unet))
    tensors = {UNET + name: tensor for name, tensor in unet.items()}
    assert config.autoencoder is not None
    rules = autoencoder_rules(len(config.autoencoder.widths))
    vae = export(model.autoencoder.state_dict(), rules)
    tensors |= {VAE + name: tensor for name, tensor in vae.items()}
    parts = [part for name, part in parts_of(family, {}, {}).items() if name.startswith("text")]
    if len(parts) != len(config.text):
        raise ValueError(f"{family} has {len(parts)} text towers, this model {len(config.text)}")
    for part, module, tower in zip(parts, model.text, config.text, strict=True):
        rules = OPENCLIP_RULES if part.names == "openclip" else transformers_rules(tower)
        own = export(read_part(module, tower), rules)
        tensors |= {part.prefix + name: tensor for name, tensor in own.items()}
    if "XL" in family and config.schedule.predicts == "velocity":
        tensors["v_pred"] = torch.empty(0)  # the marks by which other programs know such models
    if config.schedule.zero_terminal_snr:
        tensors["ztsnr"] = torch.empty(0)
    return tensors


def _notes(config: StableDiffusionConfig, family: Family) -> dict[str, str]:
    velocity = config.schedule.predicts == "velocity"
    kind = ARCHITECTURES[family]
    if family == "Stable Diffusion 2.x" and velocity:
        kind = "stable-diffusion-v2-768-v"
    return {
        "format": "pt",
        "modelspec.architecture": kind,
        "modelspec.prediction_type": "v" if velocity else "epsilon",
        "modelspec.sai_model_spec": "1.0.0",
    }
