"""From AUTOMATIC1111's settings to the request that draws a picture again, and back."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from triptych.diffusion.names import SAMPLERS, SPACINGS, parse_sampler, parse_spacing
from triptych.systems.stable_diffusion.inputs.parameters_text import Infotext
from triptych.systems.stable_diffusion.request import (
    TextToImage,
    parse_lora,
    write_number,
)
from triptych.text.tags import read_tags

OURS = "Conventions"
"""Our key for the conventions of the sampler, diffusers' or AUTOMATIC1111's."""

INFORMATION = {  # keys that do not change the picture
    *("Model hash", "Version", "User", "Created Date", "Civitai metadata", "Model"),
    *("Init image hash", "Template", "Negative Template"),
}
RESOURCES = {"Civitai resources", "Lora hashes", "TI hashes", "Hashes", "VAE", "VAE hash"}
"""Keys that name files beside the model."""
SHOWN = 60  # characters of a name in a note


class Replay(NamedTuple):
    """The request of a picture's text."""

    request: TextToImage
    notes: tuple[str, ...]
    """What of the text is not followed."""


def replay(info: Infotext) -> Replay:
    """The request that draws a picture again.

    By default the noise is that of a CUDA device (`philox`), and the spacing is what AUTOMATIC1111
    chooses for the sampler.

    Raises:
        ValueError: there are no settings, a sampler is unknown (names the nearest), or a value has
            the wrong type.
    """
    if not info.pairs:
        raise ValueError(
            "the text has no settings, such as `Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: "
            "1, Size: 512x512`"
        )
    notes: list[str] = []
    sampler, spacing = _sampler(info, notes)
    tagged = read_tags(info.prompt)
    prompt = "\n".join(line.strip() for line in tagged.prompt.strip().split("\n"))
    files = [parse_lora(lora) for lora in tagged.loras]
    notes += [*tagged.notes, *_unread_resources(info, [file.name for file in files])]
    fields: dict[str, Any] = {
        "prompt": prompt,
        "negative": info.negative,
        "loras": tuple(str(file._replace(name=_plain_name(file.name))) for file in files),
        "sampler": sampler,
        "spacing": spacing,
        "noise_source": _noise_source(info, notes),
        "conventions": _conventions(info),
        "size": info.get("Size").replace(" ", "").lower(),
    }
    for key, (field, parse) in SETTINGS.items():
        if (value := info.get(key)) and (parsed := _parse_value(key, value, parse)) is not None:
            fields[field] = parsed
    if not fields.get("variation_strength"):  # without it the variation seed has no effect
        fields.pop("variation_seed", None)
    if name := info.get("Model"):
        fields["model"] = name
    used = {"Sampler", "Schedule type", "RNG", "Size", OURS, *SETTINGS, *INFORMATION, *RESOURCES}
    notes += [f"{key}: {value[:SHOWN]} is ignored" for key, value in info.pairs if key not in used]
    notes += [
        f"{key} has several values: {last[:SHOWN]} is used"
        for key, last in dict(info.pairs).items()
        if key in used and any(value != last for other, value in info.pairs if other == key)
    ]
    return Replay(TextToImage(**fields), tuple(notes))


def _unread_resources(info: Infotext, loras: Sequence[str]) -> Iterator[str]:
    """For the user: files beside the model that the text names and the request does not."""
    for key in ("VAE", "VAE hash"):
        if (name := info.get(key)) and name.lower() not in ("none", "automatic"):
            yield f"{key}: {name[:SHOWN]} is not used: the model's own autoencoder decodes pictures"
            break
    used = {_plain_name(name).lower() for name in loras}
    for name in _named_files(info, "Lora hashes", "lora"):
        if name.lower() not in used:
            yield (
                f"the LoRA {name[:SHOWN]!r} stands only in the settings, and is not used: give "
                "--loras FILE:WEIGHT"
            )
    words = f"{info.prompt}\n{info.negative}".lower()
    for name in _named_files(info, "TI hashes", "embed"):
        shown = name[:SHOWN]
        if name.lower() in words:
            yield f"the embedding {shown!r} is used if embeddings/{shown}.safetensors exists"
        else:
            yield f"the embedding {shown!r} is not in the prompts, and is not used"
    if resources := info.get("Civitai resources"):
        yield from _civitai_notes(resources)


def _named_files(info: Infotext, key: str, kind: str) -> list[str]:
    """The names in `NAME: HASH, NAME: HASH`, and those of this kind in the JSON of `Hashes`."""
    names = [name for part in info.get(key).split(",") if (name := part.split(":")[0].strip())]
    hashes = _json(info.get("Hashes"))
    if isinstance(hashes, dict):
        names += [name[len(kind) + 1 :] for name in hashes if name.startswith(f"{kind}:")]
    return list(dict.fromkeys(names))


def _civitai_notes(text: str) -> Iterator[str]:
    resources = _json(text)
    if not isinstance(resources, list) or not all(isinstance(one, dict) for one in resources):
        yield f"Civitai resources: {text[:SHOWN]} cannot be read, and is ignored"
        return
    for one in resources:
        kind = str(one.get("type", "file"))[:SHOWN]
        names = [one.get(key) for key in ("modelName", "modelVersionName", "air")]
        name = " ".join(str(name) for name in names if name) or "without a name"
        version = one.get("modelVersionId", "unknown")
        what = f"{name[:SHOWN]} (version {version!s:.20}"
        if "weight" in one:
            what += f", weight {one['weight']!s:.20}"
        if kind == "checkpoint":
            yield f"Civitai resources: made with the model {what})"
        else:
            yield (
                f"Civitai resources: {kind} {what}) is used only if the prompt names its file: "
                "download it, and give a LoRA as --loras FILE:WEIGHT, an embedding as a word"
            )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _seed(value: str) -> int | None:
    return int(value) if int(value) >= 0 else None  # -1 means random


SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "Steps": ("steps", int),
    "CFG scale": ("guidance", float),
    "Seed": ("seed", _seed),
    "Clip skip": ("clip_skip", int),
    "Variation seed": ("variation_seed", _seed),
    "Variation seed strength": ("variation_strength", float),
    "Tiling": ("tiling", lambda value: value.lower() == "true"),
    "CFG rescale": ("rescale", float),
}


def _parse_value(key: str, value: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(value)
    except ValueError:
        raise ValueError(f"{key} is {value[:60]!r}, which is not a number") from None


def _sampler(info: Infotext, notes: list[str]) -> tuple[str, str]:
    """Our names of the sampler and the spacing, which is a suffix or in `Schedule type`."""
    written = info.get("Sampler")
    if not written:
        return "", ""
    schedule = info.get("Schedule type", "Automatic")
    sampler, spacing = parse_sampler(written)
    if schedule.lower() in ("automatic", ""):
        if not spacing and "Schedule type" not in dict(info.pairs):
            spacing = _automatic(sampler)
            if spacing in ("karras", "exponential"):
                notes.append(
                    f"no Schedule type: Automatic is assumed, which is {spacing} for {written}; "
                    "before version 1.9 it was Uniform (linspace)"
                )
        return sampler, spacing or _automatic(sampler)
    try:
        return sampler, parse_spacing(schedule)
    except ValueError:
        labels = [label for label in SPACINGS.values() if label]
        raise ValueError(
            f"the schedule type {schedule[:60]!r} is not supported; supported: Automatic, Normal, "
            f"{', '.join(labels)}"
        ) from None


def _automatic(sampler: str) -> str:
    """The spacing of the schedule type Automatic; empty for a sampler that AUTOMATIC1111 lacks."""
    record = SAMPLERS.get(sampler)
    return record.automatic1111.spacing if record and record.automatic1111 else ""


def _noise_source(info: Infotext, notes: list[str]) -> str:
    source = info.get("RNG", "GPU").upper()
    if source == "CPU":
        return "cpu"
    if source not in ("GPU", "NV"):
        notes.append(f"RNG: {source[:60]} is unknown; GPU is assumed")
    return "philox"


def _conventions(info: Infotext) -> str:
    """AUTOMATIC1111's, unless the text has our key."""
    named = info.get(OURS, "automatic1111")
    if named not in ("automatic1111", "diffusers"):
        raise ValueError(f"{OURS} must be automatic1111 or diffusers, not {named[:60]!r}")
    return named


def infotext_of(
    request: TextToImage,
    *,
    seed: int,
    size: tuple[int, int],
    version: str = "",
) -> Infotext:
    """The settings of one picture in AUTOMATIC1111's order.

    `seed` is the seed of this picture, `size` its width and height. Fields of the request that are
    not set are left out, so fill in the model's defaults first. Files are named without folders.
    """
    files = [parse_lora(lora) for lora in request.loras]
    loras = [f"<lora:{file._replace(name=_plain_name(file.name))}>" for file in files]
    sampler, behind = parse_sampler(request.sampler) if request.sampler else ("", "")
    spacing = request.spacing or behind
    label = SPACINGS.get(spacing) or spacing
    if spacing and label == spacing == _automatic(sampler):  # it has no name for DDIM's spacing
        label = "Automatic"
    varied = request.variation_strength > 0
    settings: dict[str, Any] = {
        "Steps": request.steps or None,
        "Sampler": SAMPLERS[sampler].aliases[0] if sampler else None,
        "Schedule type": label or None,
        "CFG scale": request.guidance,
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": _plain_name(request.model),
        "Variation seed": request.variation_seed if varied else None,
        "Variation seed strength": request.variation_strength if varied else None,
        "Denoising strength": request.strength,
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "RNG": "CPU" if request.noise_source == "cpu" else None,
        "Tiling": True if request.tiling else None,
        "CFG rescale": request.rescale or None,
        OURS: request.conventions if request.conventions != "automatic1111" else None,
        "Version": version or None,
    }
    pairs = tuple(
        (key, write_number(value) if isinstance(value, float) else str(value))
        for key, value in settings.items()
        if value is not None
    )
    ((prompt, negative),) = request.pairs  # of one picture
    return Infotext(" ".join([prompt, *loras]), negative, pairs)


def _plain_name(path: str) -> str:
    name = PurePath(path.replace("\\", "/")).name or path
    return re.sub(r"(?<=.)(\.(safetensors|ckpt|pt|pth|bin))++$", "", name)
