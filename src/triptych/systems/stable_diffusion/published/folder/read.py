"""A diffusers folder of Stable Diffusion: what its many small configurations say together.

`model_index.json` names a pipeline and its parts, each in a folder of its own. Which layer of a
text tower is read, and what a request leaves open, is in no file but in the pipeline's code; it is
the table here. Nothing is loaded.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from triptych import config
from triptych.systems.autoencoder import published as published_autoencoder
from triptych.systems.autoencoder import tiny_published
from triptych.systems.clip.model import TextEncoderConfig
from triptych.systems.stable_diffusion.model import StableDiffusionConfig
from triptych.systems.stable_diffusion.published import text_encoder
from triptych.systems.stable_diffusion.published import unet as published_unet
from triptych.systems.stable_diffusion.published.folder import schedulers
from triptych.weights.variants import chosen

Json = Mapping[str, Any]

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
OWN = "triptych.json"
"""What a folder that was made here says beyond diffusers' files; diffusers passes over it."""


class Pipeline(NamedTuple):
    """What a pipeline does where a request says nothing."""

    guidance: float = 7.5
    steps: int = 50


PIPELINES = {
    "StableDiffusionPipeline": Pipeline(),
    "StableDiffusionImg2ImgPipeline": Pipeline(),
    "StableDiffusionInpaintPipeline": Pipeline(),
    "StableDiffusionXLPipeline": Pipeline(5.0),
    "StableDiffusionXLImg2ImgPipeline": Pipeline(5.0),
    "StableDiffusionXLInpaintPipeline": Pipeline(),
}
OTHERS = {  # a part of a pipeline's name: what it is
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
    "LatentConsistency": "a latent consistency model, whose network is told its guidance",
    "Flux": "FLUX",
    "PixArt": "PixArt",
    "Sana": "Sana",
    "Kandinsky": "Kandinsky",
    "DDPM": "diffusion on pixels",
}
LEFT_OUT = {
    "safety_checker": "the safety checker",
    "feature_extractor": "",  # of the safety checker
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
    """What a folder says, and where its weights are."""

    config: StableDiffusionConfig
    files: Mapping[str, Path]
    """By part, in the order of `NETWORKS`; what `read_weights` takes."""
    notes: tuple[str, ...]
    """What someone should know, such as what is left out."""


def described(path: Path, variant: str = "") -> Folder:
    """The configuration of a folder, and which files hold it.

    Raises:
        ValueError: another family, by its name; a part that is missing, or a field of a
            configuration that means something not known here.
    """
    index = _object(path / "model_index.json")
    _check_pipeline(index)
    parts: dict[str, Json] = {}
    for name in (*NETWORKS, "scheduler"):
        if _declared(index, name):
            file = "scheduler_config.json" if name == "scheduler" else "config.json"
            parts[name] = _part(path, name, file)
    _check_parts(index, parts)
    built, notes = configuration(index, parts)
    own = path / OWN
    if own.is_file():
        built = completed(built, _object(own))
    files, found = {}, set()
    for name in (name for name in NETWORKS if name in parts):
        files[name], which = chosen(path / name, variant)
        found.add(which)
    if variant and variant not in found:
        raise ValueError(f"no part has weights of the variant {variant!r}")
    used = ", ".join(sorted(name or "the plain ones" for name in found))
    if found != {variant}:
        notes = (*notes, f"of the weights' variants these are read: {used}")
    return Folder(built, files, (*_left_out(index), *notes))


def configuration(
    index: Json, parts: Mapping[str, Json]
) -> tuple[StableDiffusionConfig, tuple[str, ...]]:
    """`model_index.json` and the configurations of the parts, as ours; and what should be said."""
    kind = index["_class_name"]
    large = "XL" in kind
    towers = tuple(
        _within(
            name,
            lambda name=name: text_encoder.from_transformers(  # type: ignore[misc]
                parts[name], skip=1 if large else 0, norm=not large
            ),
        )
        for name in ("text_encoder", "text_encoder_2")
        if name in parts
    )
    return assembled(index, parts["unet"], parts["vae"], towers, parts["scheduler"])


def assembled(
    index: Json, unet: Json, vae: Json, towers: tuple[TextEncoderConfig, ...], scheduler: Json
) -> tuple[StableDiffusionConfig, tuple[str, ...]]:
    """The whole from diffusers' configurations and text towers of ours; and what should be said."""
    kind = index["_class_name"]
    large = "XL" in kind
    tiny = vae.get("_class_name") == "AutoencoderTiny"
    network = _within("unet", lambda: published_unet.from_diffusers(unet))
    schedule, sampling, notes = _within("scheduler", lambda: schedulers.from_diffusers(scheduler))
    built = StableDiffusionConfig(
        unet=network,
        text=towers,
        schedule=schedule,
        autoencoder=None
        if tiny
        else _within("vae", lambda: published_autoencoder.from_diffusers(vae)),
        tiny=_within("vae", lambda: tiny_published.from_diffusers(vae)) if tiny else None,
    )
    latents = (built.autoencoder or built.tiny).latent_channels  # type: ignore[union-attr]
    if latents != network.out_channels:
        raise ValueError(
            f"the autoencoder's latents have {latents} channels, the U-Net predicts "
            f"{network.out_channels}: one of the two is of another model"
        )
    if large != bool(network.added):
        raise ValueError(f"{kind} does not fit a U-Net that is told {network.added} added numbers")
    if large and index.get("requires_aesthetics_score", False) != (built.sizes == 5):
        raise ValueError(
            f"requires_aesthetics_score does not fit a U-Net that is told {built.sizes} sizes"
        )
    height, width = _size(unet.get("sample_size") or (128 if large else 64), built.factor)
    plain = PIPELINES[kind]
    sampling = replace(
        sampling,
        steps=plain.steps,
        guidance=plain.guidance,
        height=height,
        width=width,
        zeros_for_empty=large and bool(index.get("force_zeros_for_empty_prompt", True)),
    )
    return replace(built, sampling=sampling), notes


def completed(built: StableDiffusionConfig, own: Json) -> StableDiffusionConfig:
    """With what `triptych.json` says beyond diffusers' files.

    Raises:
        ValueError: it has a field that is none of the sampling, or that is not `dropped`.
    """
    if unknown := sorted(own.keys() - {"sampling", "dropped"}):
        raise ValueError(f"{OWN} has unknown fields: {', '.join(unknown)}")
    given = own.get("sampling", {})
    if not isinstance(given, Mapping):
        raise ValueError(f"{OWN}: sampling must be an object")
    sampling = config.to_json(built.sampling) | dict(given)
    whole = config.to_json(built) | {"sampling": sampling}
    whole |= {"dropped": own.get("dropped", built.dropped)}
    return config.from_json(StableDiffusionConfig, whole, OWN)


def beyond(wanted: StableDiffusionConfig, read: StableDiffusionConfig) -> dict[str, Any]:
    """What `triptych.json` must say so that files that read as one configuration become the other.

    Raises:
        ValueError: they differ in more than what a request leaves open; names where.
    """
    own: dict[str, Any] = {}
    mine, theirs = config.to_json(wanted.sampling), config.to_json(read.sampling)
    if differs := {name: mine[name] for name in mine if mine[name] != theirs[name]}:
        own["sampling"] = differs
    if wanted.dropped != read.dropped:
        own["dropped"] = wanted.dropped
    if lost := _differences(config.to_json(wanted), config.to_json(completed(read, own))):
        raise ValueError(f"the other program's files cannot say {'; '.join(lost[:3])}")
    return own


def _differences(wanted: Any, read: Any, where: str = "") -> list[str]:
    """Where two configurations in JSON differ, in words."""
    if isinstance(wanted, Mapping) and isinstance(read, Mapping):
        deeper = f"{where}." if where else ""
        names = {**wanted, **read}
        return [
            line
            for name in names
            for line in _differences(wanted.get(name), read.get(name), f"{deeper}{name}")
        ]
    return [] if wanted == read else [f"{where} {wanted}, which would be read as {read}"]


def _check_pipeline(index: Json) -> None:
    kind = index.get("_class_name")
    if kind in PIPELINES:
        for name, value in index.items():
            if name not in READ and name not in LEFT_OUT and not name.startswith("_"):
                raise ValueError(f"model_index.json has {name} = {value!r}: a part unknown here")
        return
    what = next((what for name, what in OTHERS.items() if name in f"{kind}"), "")
    raise ValueError(
        f"is a {kind}{f' ({what})' if what else ''}; here Stable Diffusion 1.x, 2.x and XL load: "
        f"{', '.join(PIPELINES)}"
    )


def _check_parts(index: Json, parts: Mapping[str, Json]) -> None:
    for name in ("unet", "vae", "scheduler"):
        if name not in parts:
            raise ValueError(f"model_index.json names no {name}: the model is not whole without it")
    kind = parts["scheduler"].get("_class_name")
    if kind is None and isinstance(index["scheduler"], list):  # published before it was said
        parts["scheduler"] = dict(parts["scheduler"]) | {"_class_name": index["scheduler"][1]}  # type: ignore[index]


def _left_out(index: Json) -> tuple[str, ...]:
    named = [what for name, what in LEFT_OUT.items() if what and _declared(index, name)]
    return (f"left out: {' and '.join(named)}",) if named else ()


def _declared(index: Json, name: str) -> bool:
    """Whether a part is named, and not as `[null, null]`."""
    kind = index.get(name)
    return isinstance(kind, list) and len(kind) == 2 and kind[1] is not None


def _part(path: Path, name: str, file: str) -> Json:
    if not (path / name).is_dir():
        raise ValueError(
            f"its part {name} is missing: fetch the folder {name} from where the rest is"
        )
    return _object(path / name / file)


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"{path.parent.name}/{path.name} is missing: fetch it from where the rest is"
        )
    found = config.read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object. Fetch it again")
    return found


def _size(sample: Any, factor: int) -> tuple[int, int]:
    sides = sample if isinstance(sample, list | tuple) else [sample, sample]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"unet: sample_size is {sample!r}, which is no side of latents")
    return sides[0] * factor, sides[1] * factor


def _within(part: str, read: Any) -> Any:
    """What `read` gives; an error says in which part it was."""
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{part}: {error}") from error
