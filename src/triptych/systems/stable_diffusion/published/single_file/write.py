"""Write a text-to-image model as one file, with the names of LDM and Stability AI.

Such a file has no configuration, and other programs know only the published sizes, so only those
are written. The prediction type and the defaults of sampling go into the metadata of the header.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from triptych.atomic import make_parents
from triptych.systems.stable_diffusion.model import CLIP_L, StableDiffusion, StableDiffusionConfig
from triptych.systems.stable_diffusion.published.folder.read import own_settings
from triptych.systems.stable_diffusion.published.folder.write import part_states, trim_towers
from triptych.systems.stable_diffusion.published.load import file_rules
from triptych.systems.stable_diffusion.published.single_file.configs import UNETS, Family
from triptych.systems.stable_diffusion.published.single_file.read import (
    NOTE,
    describe_header,
    family_parts,
)
from triptych.systems.stable_diffusion.published.text_encoder import (
    OPENCLIP_H,
)
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.files.weight_file import Header
from triptych.weights.keymap import export

ARCHITECTURES: dict[Family, str] = {  # Stability AI's `modelspec.architecture`
    "Stable Diffusion 1.x": "stable-diffusion-v1",
    "Stable Diffusion 2.x": "stable-diffusion-v2-512",
    "Stable Diffusion XL": "stable-diffusion-xl-v1-base",
    "Stable Diffusion XL refiner": "stable-diffusion-xl-v1-refiner",
}
ADVICE = "write a folder, --to diffusers or --to triptych, which carries the configuration"


def write_single_file(model: StableDiffusion, path: Path) -> tuple[str, ...]:
    """Write all parts to one safetensors file, weights in the dtype of the model.

    Returns notes for the user, such as layers that are left out.

    Raises:
        ValueError: the model has no published size, or settings that such a file cannot express.
        OSError: the disk is full or the file cannot be written; an older file is kept.
    """
    family = published_family(model.config)
    config = model.config
    notes: tuple[str, ...] = ()
    if not config.unet.added and config.text[0] not in (CLIP_L, OPENCLIP_H):
        config, notes = trim_towers(config)
    tensors, metadata = _tensors(model, config, family), _metadata(config, family)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    read = describe_header(Header(shapes, metadata), path).config
    if own := own_settings(config, read):
        metadata[NOTE] = json.dumps(own)
    with make_parents(path):
        write_safetensors(path, tensors, metadata)
    return notes


def published_family(config: StableDiffusionConfig) -> Family:
    """The family of a model.

    Raises:
        ValueError: it has no published size, so that no program could read it.
    """
    if config.autoencoder is None:
        raise ValueError(
            f"a single file contains a KL autoencoder, which this model does not have: {ADVICE}"
        )
    for family, unet in UNETS.items():
        if replace(unet, in_channels=config.unet.in_channels) == config.unet:
            return family
    raise ValueError(
        f"a single file has no configuration, so it must have a published size; this model's U-Net "
        f"has {config.unet.widths[0]} channels and a context of width {config.unet.context}: "
        f"{ADVICE}"
    )


def _tensors(
    model: StableDiffusion, config: StableDiffusionConfig, family: Family
) -> dict[str, Tensor]:
    parts = family_parts(family, {})
    towers = [name for name in parts if name.startswith("text")]
    if len(towers) != len(config.text):
        raise ValueError(f"{family} has {len(towers)} text towers, this model {len(config.text)}")
    tensors: dict[str, Tensor] = {}
    for name, state in part_states(model, config, towers).items():
        exported = export(state, file_rules(config, name, parts[name]))
        tensors |= {parts[name].prefix + key: tensor for key, tensor in exported.items()}
    if "XL" in family and config.schedule.predicts == "velocity":
        tensors["v_pred"] = torch.empty(0)  # other programs look for these markers
    if config.schedule.zero_terminal_snr:
        tensors["ztsnr"] = torch.empty(0)
    return tensors


def _metadata(config: StableDiffusionConfig, family: Family) -> dict[str, str]:
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
