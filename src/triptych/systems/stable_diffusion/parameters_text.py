"""The text that AUTOMATIC1111 and many after it write into pictures, read and written.

```
a red cat, <lora:style:0.8>
Negative prompt: blurry
Steps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 1117431804, Size: 712x1024, Model: SD XL
```

The form is lossy: lines lose the spaces around them, a prompt's line may look like a negative
prompt, and keys have at least two characters. The exact record of a picture is our JSON beside it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

from triptych.diffusion.names import SAMPLERS, SPACINGS, parse_sampler
from triptych.systems.stable_diffusion.request import TextToImage, parse_lora

MAX_TEXT = 64 * 1024  # characters
NEGATIVE = "Negative prompt:"
OURS = "Conventions"
"""A key of our own: whose reading of a sampler the picture was drawn with."""
QUOTED = re.compile(r'"(?:\\.|[^\\"])++"')
SPACE = re.compile(r"\s*")
KEY_CHARACTER = re.compile(r"[\w \-/]")
LORA = re.compile(r"<lora:([^<>:]+)(?::([^<>:]*))?>")

NO_SETTINGS = {  # keys that tell something and change nothing
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
    """Read the text of any program that writes this form.

    The last line holds settings if there are at least three in it; otherwise it belongs to the
    prompt.

    Raises:
        ValueError: more than 64 KiB.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(
            f"{len(text):,} characters of parameters; at most {MAX_TEXT:,} are read: is it a "
            "picture's own text?"
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
    """The `Key: value` pairs of a line, whatever stands between them; linear in its length.

    A key is letters, digits, spaces, hyphens and slashes, at least two characters before a colon. A
    value ends at a comma, unless it is a whole JSON string.
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
        value_at = _after_space(line, start)
        quoted = QUOTED.match(line, value_at)
        end = quoted.end() if quoted else -1
        if not quoted or (end < len(line) and line[end] != ","):
            end = line.find(",", value_at)
            end = len(line) if end < 0 else end
        pairs.append((key, _unquoted(line[value_at:end].strip())))
        start = end + 1
    return pairs


def _after_space(line: str, place: int) -> int:
    match = SPACE.match(line, place)
    return match.end() if match else place


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        found: Any = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, str) else value


def write_infotext(info: Infotext) -> str:
    """The text of settings in their order, for a picture's file.

    Values with a comma, colon or line end, and those that would be read as another value, are
    JSON strings. A setting that is called like its value is written once, as there.
    """
    settings = ", ".join(k if k == v else f"{k}: {_quoted(v)}" for k, v in info.pairs)
    negative = f"\n{NEGATIVE} {info.negative}" if info.negative else ""
    text = f"{info.prompt}{negative}\n{settings}".strip()
    # neither zeros nor halves of surrogate pairs can stand in a file
    return text.replace("\0", " ").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _quoted(value: str) -> str:
    plain = not re.search(r"[,\n:]", value) and not value.startswith('"') and value == value.strip()
    return value if plain else json.dumps(value, ensure_ascii=False)


def loras_in(prompt: str) -> tuple[str, tuple[str, ...]]:
    """A prompt without its `<lora:NAME:WEIGHT>` marks, and those as `NAME:WEIGHT`.

    AUTOMATIC1111 keeps its low-rank updates inside the prompt; without a weight they count once.
    """
    loras = tuple(f"{name.strip()}:{weight or 1}" for name, weight in LORA.findall(prompt))
    return (LORA.sub("", prompt).strip(), loras) if loras else (prompt, ())


class Replay(NamedTuple):
    """What a picture's text asks for, with AUTOMATIC1111's conventions."""

    request: TextToImage
    model_hash: str  # the first ten digits of the checkpoint's SHA-256, or of an older digest
    notes: tuple[str, ...]  # settings that are not followed, one sentence each


def replay(info: Infotext, model: str = "") -> Replay:
    """The request that draws the picture again; `model` stands in for the one that it names.

    Where the text is silent the noise is a CUDA device's (`philox`) and the schedule is
    AUTOMATIC1111's own for the sampler.

    Raises:
        ValueError: no settings, an unknown sampler (names the nearest), or a value of another kind.
    """
    if not info.pairs:
        raise ValueError(
            "there are no settings in it, such as `Steps: 20, Sampler: Euler a, CFG scale: 7, "
            "Seed: 1, Size: 512x512`"
        )
    notes: list[str] = []
    sampler, spacing = _sampler(info, notes)
    prompt, loras = loras_in(info.prompt)
    fields: dict[str, Any] = {
        "prompt": prompt,
        "negative": info.negative,
        "loras": loras,
        "sampler": sampler,
        "spacing": spacing,
        "noise_source": _noise(info, notes),
        "conventions": _conventions(info),
        "size": info.get("Size").replace(" ", "").lower(),
    }
    followed = {"Sampler", "Schedule type", "RNG", "Size", OURS} | NO_SETTINGS
    for key, (field, read) in SETTINGS.items():
        followed.add(key)
        if (value := info.get(key)) and (number := _read(key, value, read)) is not None:
            fields[field] = number
    if not fields.get("variation_strength"):  # a seed without it changes nothing
        fields.pop("variation_seed", None)
    if name := model or info.get("Model"):
        fields["model"] = name
    notes += [f"{k}: {v[:60]} is not followed" for k, v in info.pairs if k not in followed]
    return Replay(TextToImage(**fields), info.get("Model hash"), tuple(notes))


def _seed(value: str) -> int | None:
    return int(value) if int(value) >= 0 else None  # -1 draws one


SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "Steps": ("steps", int),
    "CFG scale": ("guidance", float),
    "Seed": ("seed", _seed),
    "Clip skip": ("clip_skip", int),
    "Variation seed": ("variation_seed", _seed),
    "Variation seed strength": ("variation_strength", float),
    "Tiling": ("tiling", lambda value: value.lower() == "true"),
}


def _read(key: str, value: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(value)
    except ValueError:
        raise ValueError(f"{key} is {value[:60]!r}, which is no number") from None


def _sampler(info: Infotext, notes: list[str]) -> tuple[str, str]:
    """Our names of the sampler and of the spacing, which stands behind it or apart."""
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
                    f"no Schedule type: read as Automatic, which is {spacing} for {written}; "
                    "before version 1.9 it was Uniform: linspace"
                )
        return sampler, spacing or _automatic(sampler)
    known = {label.lower(): name for name, label in SPACINGS.items() if label}
    known |= {name: name for name in SPACINGS}
    known["uniform"] = "linspace"
    if schedule.lower() not in known:
        labels = [label for label in SPACINGS.values() if label]
        raise ValueError(
            f"no schedule {schedule[:60]!r} here; there are: Automatic, Uniform, "
            f"{', '.join(labels)}"
        )
    return sampler, known[schedule.lower()]


def _automatic(sampler: str) -> str:
    """The spacing of the schedule type Automatic; empty for a sampler that AUTOMATIC1111 lacks."""
    record = SAMPLERS.get(sampler)
    return record.automatic1111.spacing if record and record.automatic1111 else ""


def _noise(info: Infotext, notes: list[str]) -> str:
    source = info.get("RNG", "GPU").upper()
    if source == "CPU":
        return "cpu"
    if source not in ("GPU", "NV"):
        notes.append(f"RNG: {source[:60]} is unknown; noise is drawn as a CUDA device draws it")
    return "philox"


def _conventions(info: Infotext) -> str:
    """AUTOMATIC1111's, unless we wrote the text and say otherwise."""
    named = info.get(OURS, "automatic1111")
    if named not in ("automatic1111", "diffusers"):
        raise ValueError(f"{OURS} are automatic1111 or diffusers, not {named[:60]!r}")
    return named


def infotext_of(
    request: TextToImage,
    *,
    seed: int,
    size: tuple[int, int],
    model_hash: str = "",
    version: str = "",
) -> Infotext:
    """The settings of one picture in the order that AUTOMATIC1111 writes them.

    `seed` is this picture's own, `size` its width and height. What the request leaves to the model
    (steps, sampler, guidance) should be filled in before; what is still open is left out. Files
    are named without their folders.
    """
    marks = (parse_lora(lora) for lora in request.loras)
    loras = [f"<lora:{_plain_name(name)}:{weight:g}>" for name, weight in marks]
    sampler, behind = parse_sampler(request.sampler) if request.sampler else ("", "")
    spacing = request.spacing or behind
    label = "Uniform" if spacing == "linspace" else SPACINGS.get(spacing) or spacing
    if spacing and label == spacing == _automatic(sampler):  # it has no name for DDIM's own
        label = "Automatic"
    varied = request.variation_strength > 0
    settings: dict[str, Any] = {
        "Steps": request.steps or None,
        "Sampler": SAMPLERS[sampler].aliases[0] if sampler else None,
        "Schedule type": label or None,
        "CFG scale": request.guidance,
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": model_hash or None,
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
