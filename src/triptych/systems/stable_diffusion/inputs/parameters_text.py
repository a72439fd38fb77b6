"""Read and write the text that AUTOMATIC1111 and other programs store in pictures.

```
a red cat, <lora:style:0.8>
Negative prompt: blurry
Steps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 1117431804, Size: 712x1024, Model: SD XL
```

The format is lossy: lines lose the spaces around them, a line of a prompt may look like a negative
prompt, and keys have at least two characters. The exact record of a picture is our JSON.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

from triptych.diffusion.names import SAMPLERS, SPACINGS, parse_sampler
from triptych.systems.stable_diffusion.request import TextToImage, parse_lora
from triptych.text.weighting import loras_in

MAX_TEXT = 64 * 1024  # characters
NEGATIVE = "Negative prompt:"
OURS = "Conventions"
"""Our key for the conventions of the sampler, diffusers' or AUTOMATIC1111's."""
QUOTED = re.compile(r'\s*+"(?:\\.|[^\\"])++"')
KEY_CHARACTER = re.compile(r"[\w \-/]")

INFORMATION = {  # keys that do not change the picture
    *("Model hash", "VAE hash", "VAE", "Version", "User", "Lora hashes", "TI hashes", "Hashes"),
    *("Created Date", "Civitai resources", "Civitai metadata", "Model", "Init image hash"),
}


@dataclass(frozen=True)
class Infotext:
    """A prompt, a negative prompt, and settings in their order."""

    prompt: str = ""
    negative: str = ""
    pairs: tuple[tuple[str, str], ...] = ()

    def get(self, key: str, default: str = "") -> str:
        """The value of a key, the last one where there are several."""
        return dict(self.pairs).get(key, default)


def parse_infotext(text: str) -> Infotext:
    """Read the text of any program that writes this format.

    The last line has the settings if there are at least three; otherwise it belongs to the prompt.

    Raises:
        ValueError: the text has more than 65,536 characters.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(
            f"{len(text):,} characters of parameters; at most {MAX_TEXT:,} are supported"
        )
    lines = [line.strip() for line in text.strip().split("\n")]
    pairs = parse_pairs(lines[-1])
    if len(pairs) < 3:
        pairs = []
    else:
        lines.pop()
    prompts: tuple[list[str], list[str]] = ([], [])
    negative = False
    for line in lines:
        if line.startswith(NEGATIVE):
            negative, line = True, line.removeprefix(NEGATIVE).strip()
        part = prompts[negative]
        if part or line:
            part.append(line)
    return Infotext("\n".join(prompts[0]), "\n".join(prompts[1]), tuple(pairs))


def parse_pairs(line: str) -> list[tuple[str, str]]:
    """The `Key: value` pairs of a line, in linear time; other text is skipped.

    A key is at least two letters, digits, spaces, hyphens or slashes before a colon. A value ends
    at a comma, unless it is a complete JSON string.
    """
    pairs: list[tuple[str, str]] = []
    start = 0
    while (colon := line.find(":", start)) >= 0:
        first = colon
        while first > start and KEY_CHARACTER.match(line[first - 1]):
            first -= 1
        key = line[first:colon].lstrip(" -/")
        start = colon + 1
        if len(key) < 2:
            continue
        quoted = QUOTED.match(line, start)
        end = quoted.end() if quoted else -1
        if not quoted or (end < len(line) and line[end] != ","):
            end = line.find(",", start)
            end = len(line) if end < 0 else end
        pairs.append((key, _unquote(line[start:end].strip())))
        start = end + 1
    return pairs


def _unquote(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        parsed: Any = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, str) else value


def write_infotext(info: Infotext) -> str:
    """The text for a picture's file, with settings in their order.

    Values that would otherwise be read as something else, such as those with a comma or colon, are
    written as JSON strings. A setting whose value equals its key is written as the key alone.
    """
    settings = ", ".join(k if k == v else f"{k}: {_quote(v)}" for k, v in info.pairs)
    negative = f"\n{NEGATIVE} {info.negative}" if info.negative else ""
    text = f"{info.prompt}{negative}\n{settings}".strip()
    # zeros and lone surrogates cannot be stored
    return text.replace("\0", " ").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _quote(value: str) -> str:
    plain = not re.search(r"[,\n:]", value) and not value.startswith('"') and value == value.strip()
    return value if plain else json.dumps(value, ensure_ascii=False)


class Replay(NamedTuple):
    """The request of a picture's text."""

    request: TextToImage
    notes: tuple[str, ...]
    """Settings that are ignored."""


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
    prompt, loras = loras_in(info.prompt)
    prompt = prompt.strip() if loras else prompt
    fields: dict[str, Any] = {
        "prompt": prompt,
        "negative": info.negative,
        "loras": loras,
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
    used = {"Sampler", "Schedule type", "RNG", "Size", OURS, *SETTINGS, *INFORMATION}
    notes += [f"{key}: {value[:60]} is ignored" for key, value in info.pairs if key not in used]
    return Replay(TextToImage(**fields), tuple(notes))


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
    known = {label.lower(): name for name, label in SPACINGS.items() if label}
    known |= {name: name for name in SPACINGS}
    known["uniform"] = "linspace"
    if schedule.lower() not in known:
        labels = [label for label in SPACINGS.values() if label]
        raise ValueError(
            f"the schedule type {schedule[:60]!r} is not supported; supported: Automatic, Uniform, "
            f"{', '.join(labels)}"
        )
    return sampler, known[schedule.lower()]


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
    marks = (parse_lora(lora) for lora in request.loras)
    loras = [f"<lora:{_plain_name(name)}:{weight:g}>" for name, weight in marks]
    sampler, behind = parse_sampler(request.sampler) if request.sampler else ("", "")
    spacing = request.spacing or behind
    label = "Uniform" if spacing == "linspace" else SPACINGS.get(spacing) or spacing
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
    pairs = tuple((key, str(value)) for key, value in settings.items() if value is not None)
    prompt = " ".join([request.prompt, *loras]) if loras else request.prompt
    return Infotext(prompt, request.negative, pairs)


def _plain_name(path: str) -> str:
    name = PurePath(path.replace("\\", "/")).name or path
    return re.sub(r"\.(safetensors|ckpt|pt|pth|bin)$", "", name)
