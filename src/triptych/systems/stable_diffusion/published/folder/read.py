"""The configuration of a diffusers folder of Stable Diffusion; no weights are read.

`model_index.json` names a pipeline and its parts, each in a subfolder. Defaults that are only in
the pipeline's code, such as which layer of a text tower is read, are in a table here.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from triptych.config import errors_in, read_object, settings_of_others
from triptych.fields import from_json, to_json
from triptych.systems.autoencoder import published as published_autoencoder
from triptych.systems.autoencoder import tiny_published
from triptych.systems.stable_diffusion.model import StableDiffusionConfig
from triptych.systems.stable_diffusion.published import text_encoder
from triptych.systems.stable_diffusion.published import unet as published_unet
from triptych.systems.stable_diffusion.published.folder import schedulers
from triptych.weights.variants import choose_variant

Json = Mapping[str, Any]

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
OWN_FILE = "triptych.json"
"""Settings that diffusers' files cannot express, in folders written here; diffusers ignores it."""


PIPELINES = {  # guidance by default; all have 50 steps
    "StableDiffusionPipeline": 7.5,
    "StableDiffusionImg2ImgPipeline": 7.5,
    "StableDiffusionInpaintPipeline": 7.5,
    "StableDiffusionXLPipeline": 5.0,
    "StableDiffusionXLImg2ImgPipeline": 5.0,
    "StableDiffusionXLInpaintPipeline": 7.5,
}
OTHERS = {  # part of the name of an unsupported pipeline: what it is
    "ControlNet": "a ControlNet beside a Stable Diffusion",
    "Adapter": "an adapter beside a Stable Diffusion",
    "StableDiffusion3": "Stable Diffusion 3",
    "StableVideo": "Stable Video Diffusion",
    "StableCascade": "Stable Cascade",
    "Wuerstchen": "Stable Cascade",
    "UnCLIP": "unCLIP, which reads picture embeddings",
    "Depth2Img": "a Stable Diffusion that reads a depth map",
    "InstructPix2Pix": "a Stable Diffusion that edits by instruction",
    "LatentUpscale": "a latent upscaler",
    "Upscale": "the x4 upscaler, which enlarges a picture",
    "AnimateDiff": "AnimateDiff",
    "LatentConsistency": "a latent consistency model, whose U-Net takes guidance as input",
    "Flux": "FLUX",
    "PixArt": "PixArt",
    "Sana": "Sana",
    "Kandinsky": "Kandinsky",
    "DDPM": "diffusion on pixels",
}
LEFT_OUT = {
    "safety_checker": "the safety checker",
    "feature_extractor": "",  # part of the safety checker
    "image_encoder": "the image encoder (for picture prompts)",
    "watermarker": "the watermarker",
    "add_watermarker": "",
}
READ = {
    *("tokenizer", "tokenizer_2", "scheduler", "requires_safety_checker"),
    *("force_zeros_for_empty_prompt", "requires_aesthetics_score"),
    *NETWORKS,
}


class Folder(NamedTuple):
    """The configuration of a folder, and the files with its weights."""

    config: StableDiffusionConfig
    files: Mapping[str, Path]
    """By part, in the order of `NETWORKS`."""
    notes: tuple[str, ...]
    """For the user, such as which parts are left out."""


def read_folder(path: Path, variant: str = "") -> Folder:
    """Read the configuration of a folder and find the files with weights of this variant.

    Raises:
        ValueError: the folder is of another family, which is named; a part is missing; or a field
            of a configuration is not supported.
    """
    index = _read_object(path / "model_index.json")
    with settings_of_others(path / "model_index.json"):
        _check_pipeline(index)
    parts: dict[str, Json] = {}
    for name in (*NETWORKS, "scheduler"):
        if _has_part(index, name):
            file = "scheduler_config.json" if name == "scheduler" else "config.json"
            parts[name] = _read_part(path, name, file)
    _check_parts(index, parts)
    with settings_of_others(path):
        config, notes = parse_configs(index, parts)
    own = path / OWN_FILE
    if own.is_file():
        with settings_of_others(own):
            config = add_own_settings(config, _read_object(own))
    files, variants = {}, set()
    for name in (name for name in NETWORKS if name in parts):
        files[name], used = choose_variant(path / name, variant)
        variants.add(used)
    if variant and variant not in variants:
        raise ValueError(f"no part has weights of the variant {variant!r}")
    if variants != {variant}:
        listed = ", ".join(sorted(name or "no variant" for name in variants))
        notes = (*notes, f"variants of the weights that are used: {listed}")
    return Folder(config, files, (*_left_out_notes(index), *notes))


def parse_configs(
    index: Json, parts: Mapping[str, Json]
) -> tuple[StableDiffusionConfig, tuple[str, ...]]:
    """Our configuration from `model_index.json` and the configurations of the parts; and notes."""
    kind, unet, vae = index["_class_name"], parts["unet"], parts["vae"]
    large = "XL" in kind
    towers = []
    for name in ("text_encoder", "text_encoder_2"):
        if name in parts:
            with errors_in(name):
                towers.append(
                    text_encoder.from_transformers(
                        parts[name], skip=1 if large else 0, norm=not large
                    )
                )
    with errors_in("unet"):
        network = published_unet.from_diffusers(unet)
    with errors_in("scheduler"):
        schedule, sampling, notes = schedulers.from_diffusers(parts["scheduler"])
    autoencoder = tiny = None
    with errors_in("vae"):
        if vae.get("_class_name") == "AutoencoderTiny":
            tiny = tiny_published.from_diffusers(vae)
        else:
            autoencoder = published_autoencoder.from_diffusers(vae)
    config = StableDiffusionConfig(
        network, tuple(towers), schedule, autoencoder=autoencoder, tiny=tiny
    )
    latents = (autoencoder or tiny).latent_channels  # type: ignore[union-attr]
    if latents != network.out_channels:
        raise ValueError(
            f"the autoencoder has {latents} latent channels and the U-Net predicts "
            f"{network.out_channels}: they belong to different models"
        )
    if large != bool(network.added):
        raise ValueError(
            f"{kind} does not fit a U-Net with projection_class_embeddings_input_dim "
            f"{network.added}"
        )
    if large and index.get("requires_aesthetics_score", False) != (config.sizes == 5):
        raise ValueError(
            f"requires_aesthetics_score does not fit a U-Net that reads {config.sizes} sizes"
        )
    height, width = _size(unet.get("sample_size") or (128 if large else 64), config.factor)
    sampling = replace(
        sampling,
        guidance=PIPELINES[kind],
        height=height,
        width=width,
        zeros_for_empty=large and bool(index.get("force_zeros_for_empty_prompt", True)),
    )
    return replace(config, sampling=sampling), notes


def add_own_settings(config: StableDiffusionConfig, own: Json) -> StableDiffusionConfig:
    """The configuration with the settings of `triptych.json`.

    Raises:
        ValueError: it has other fields than `sampling` and `dropped`.
    """
    if unknown := sorted(own.keys() - {"sampling", "dropped"}):
        raise ValueError(f"{OWN_FILE} has unknown fields: {', '.join(unknown)}")
    settings = own.get("sampling", {})
    if not isinstance(settings, Mapping):
        raise ValueError(f"{OWN_FILE}: sampling must be an object")
    stored = to_json(config) | {
        "sampling": to_json(config.sampling) | dict(settings),
        "dropped": own.get("dropped", config.dropped),
    }
    return from_json(StableDiffusionConfig, stored, OWN_FILE)


def own_settings(config: StableDiffusionConfig, read: StableDiffusionConfig) -> dict[str, Any]:
    """The content of `triptych.json` for a model with `config`, where the other files of the folder
    are read as `read`.

    Raises:
        ValueError: they differ in fields that `triptych.json` does not have.
    """
    own: dict[str, Any] = {}
    ours, theirs = to_json(config.sampling), to_json(read.sampling)
    if differs := {name: ours[name] for name in ours if ours[name] != theirs[name]}:
        own["sampling"] = differs
    if config.dropped != read.dropped:
        own["dropped"] = config.dropped
    if lost := _differences(to_json(config), to_json(add_own_settings(read, own))):
        raise ValueError(f"the other program's files cannot express {'; '.join(lost[:3])}")
    return own


def _differences(ours: Any, read: Any, where: str = "") -> list[str]:
    """Where two configurations in JSON differ, in words."""
    if isinstance(ours, Mapping) and isinstance(read, Mapping):
        prefix = f"{where}." if where else ""
        return [
            line
            for name in {**ours, **read}
            for line in _differences(ours.get(name), read.get(name), f"{prefix}{name}")
        ]
    return [] if ours == read else [f"{where} {ours}, which would be read as {read}"]


def _check_pipeline(index: Json) -> None:
    kind = index.get("_class_name")
    if kind in PIPELINES:
        for name, value in index.items():
            if name not in READ and name not in LEFT_OUT and not name.startswith("_"):
                raise ValueError(f"model_index.json has {name} = {value!r}, which is not supported")
        return
    what = next((what for name, what in OTHERS.items() if name in f"{kind}"), "")
    raise ValueError(
        f"is a {kind}{f' ({what})' if what else ''}; supported: {', '.join(PIPELINES)}"
    )


def _check_parts(index: Json, parts: Mapping[str, Json]) -> None:
    for name in ("unet", "vae", "scheduler"):
        if name not in parts:
            raise ValueError(f"model_index.json names no {name}, so the model is incomplete")
    kind = parts["scheduler"].get("_class_name")
    if kind is None and isinstance(index["scheduler"], list):  # early files do not have it
        parts["scheduler"] = dict(parts["scheduler"]) | {"_class_name": index["scheduler"][1]}  # type: ignore[index]


def _left_out_notes(index: Json) -> tuple[str, ...]:
    parts = [what for name, what in LEFT_OUT.items() if what and _has_part(index, name)]
    return (f"left out: {' and '.join(parts)}",) if parts else ()


def _has_part(index: Json, name: str) -> bool:
    """Whether a part is named, and not as `[null, null]`."""
    kind = index.get(name)
    return isinstance(kind, list) and len(kind) == 2 and kind[1] is not None


def _read_part(path: Path, name: str, file: str) -> Json:
    if not (path / name).is_dir():
        raise ValueError(f"its folder {name} is missing: download it from where you got the others")
    return _read_object(path / name / file)


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"{path.parent.name}/{path.name} is missing: download it from where you got the others"
        )
    return read_object(path)


def _size(sample: Any, factor: int) -> tuple[int, int]:
    sides = sample if isinstance(sample, list | tuple) else [sample, sample]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"unet: sample_size must be one or two positive integers, not {sample!r}")
    return sides[0] * factor, sides[1] * factor
