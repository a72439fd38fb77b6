"""What a model's files say of it, read without loading it: its kind, its classes, and what it draws
with where a request leaves that open. No torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.config import BadFile, read_json
from triptych.text.known_words import read_known_words
from triptych.weights.bundled_models import has_card

PUBLISHED = {
    "clip": "clip", "siglip": "siglip", "siglip2": "siglip", "gemma": "gemma", "gemma2": "gemma",
    "gemma3": "gemma", "gemma3_text": "gemma", "paligemma": "paligemma",
    "t5": "pali",
}  # fmt: skip
"""Kinds by `model_type` of transformers."""
IDEAS = 6
PLAIN = re.compile(r"[a-z]+(?: [a-z]+){0,2}")
SAMPLING = ("steps", "guidance", "sampler", "spacing")
"""Fields of a configuration that are defaults of a request, too."""


@dataclass(frozen=True)
class Description:
    """What is known of a model before it is loaded."""

    kind: str = ""
    """As in config.json, such as `cvae`; empty where only loading tells."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of its request, such as `steps` and `size`; none where the files do not say."""
    classes: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    """Names of the numbers of a continuous condition."""
    ideas: tuple[str, ...] = ()
    """Some of what a text-to-image model can be asked for, where its captions were names."""


def describe_model(path: Path) -> Description:
    """The description of a folder or file; an empty one of what is no model, or is damaged."""
    if path.is_file():
        return Description("gemma" if path.suffix == ".gguf" else "")
    if (path / "model_index.json").exists():
        pipeline = _read_object(path / "model_index.json").get("_class_name")
        return Description("unclip" if "UnCLIP" in str(pipeline) else "stable-diffusion")
    if (path / "open_clip_config.json").exists():
        return Description("clip")
    card = _read_object(path / "config.json")
    if not isinstance(card.get("model"), str):
        return Description(PUBLISHED.get(str(card.get("model_type")), ""))
    defaults, ideas = _read_defaults(card.get("config")), _read_ideas(path)
    names = [_read_names(card.get(key)) for key in ("classes", "attributes", "vector")]
    return Description(card["model"], defaults, names[0], names[1], names[2], ideas)


def find_kind(path: Path) -> str:
    """The kind of a model; empty if it cannot be told without loading."""
    return describe_model(path).kind


def require_weights(folder: Path, name: str) -> None:
    """Refuse a folder that is not, or not yet, a run with its model.

    Raises:
        ValueError: it is no run, its training has not come that far, or a file is missing.
    """
    missing = [f for f in ("config.json", "model.safetensors") if not (folder / f).exists()]
    if not missing:
        return
    if missing[0] == "config.json" and not (folder / "run.json").exists():
        raise ValueError(
            f"{name} is no model: the folder has neither the config.json of a run nor the "
            "files of a published checkpoint"
        )
    if has_card(folder):
        raise ValueError(f"{name} lacks its {missing[0]}: install it again, or copy it again")
    parts = sorted(part.parent.name for part in folder.glob("*/run.json"))
    if parts:  # a chain of trainings, whose model is written in the end
        raise ValueError(
            f"{name} has no {missing[0]} yet, only the parts {', '.join(parts)}: `triptych train "
            f"--resume --run {name}` trains what is missing and puts them together"
        )
    raise ValueError(f"{name} has no {missing[0]} yet: train until its first checkpoint")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (BadFile, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_names(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _read_ideas(path: Path) -> tuple[str, ...]:
    """Short names of the list of a model, from all over it."""
    try:
        known = read_known_words(path)
    except (BadFile, OSError):
        return ()
    names = [name for name in known.names if PLAIN.fullmatch(name)] if known else []
    some = names[len(names) // (2 * IDEAS) :: len(names) // IDEAS or 1][:IDEAS]
    return tuple(sorted(some, key=lambda name: name.count(" ")))


def _read_defaults(config: Any) -> dict[str, Any]:
    """The sampling of a configuration, which a class-conditional model has beside its sizes and a
    text-to-image model in `sampling`; that of a DALL-E 2 is its decoder's.
    """
    config = config if isinstance(config, dict) else {}
    place = next((config[key] for key in ("sampling", "decoder") if key in config), config)
    if not isinstance(place, dict) or "steps" not in place:
        return {}
    found = {name: place[name] for name in SAMPLING if name in place}
    if isinstance(config.get("prior"), dict):
        found |= {f"prior_{name}": config["prior"].get(name) for name in ("steps", "guidance")}
    if "sampling" in config and {"height", "width"} <= set(place):
        found["size"] = f"{place['width']}x{place['height']}"
    return found
