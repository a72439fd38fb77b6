"""`--from-parameters`: the request of a picture that carries one, or of AUTOMATIC1111's text.

Pictures and texts come from strangers: they name models and LoRAs that are here already, by plain
names, and no other file.
"""

from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from triptych.config import from_json, nearest
from triptych.systems.stable_diffusion.request import TextToImage, parse_lora

MODELS = (Path("runs"), Path("models"))
"""Folders in which a text's model is looked for."""
ENDINGS = ("", ".safetensors", ".ckpt")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")


def replayed(source: str, model: str = "") -> tuple[TextToImage, tuple[str, ...]]:
    """The request of a picture file or of a text, and what someone should know of it.

    Of our own pictures it is the exact record. `model` takes the place of the one that is named.

    Raises:
        ValueError: no such picture, none that carries a request, or one of an unknown model.
    """
    from triptych.systems.stable_diffusion.inputs.parameters_text import parse_infotext, replay

    text: str | None = source
    if _is_picture(source):
        record, text = _carried(Path(source))
        if record is not None:
            return _installed(from_json(TextToImage, record, source), model), ()
    assert text is not None
    found = replay(parse_infotext(text))
    named = "" if found.request.model == TextToImage("").model else found.request.model
    if not named and not model:
        raise ValueError("the text names no model: give one with --model")
    return _installed(found.request, model), found.notes


def _is_picture(source: str) -> bool:
    if "\n" in source or len(source) > 4096:
        return False
    path = Path(source)
    if path.is_file():
        return True
    if path.suffix.lower() in PICTURES and ":" not in source:
        raise ValueError(f"no picture {source!r}: there is no such file")
    return False


def _carried(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Our record in a picture, or another program's text."""
    from triptych.vision.images import read_parameters, read_request

    text = read_parameters(path)
    record = (read_request(path) or {}).get("request")
    if isinstance(record, dict) and "prompt" in record:
        return record, text
    if text is None:
        other = " It is a picture of a class model, which draws no prompts." if record else ""
        raise ValueError(f"{path} carries no parameters of how it was made.{other}")
    return None, text


def _installed(request: TextToImage, model: str) -> TextToImage:
    """With names in place of what they stand for here."""
    from triptych.systems.stable_diffusion.adapters.loras import installed_lora

    loras = []
    for name, weight in map(parse_lora, request.loras):
        loras.append(f"{installed_lora(_plain(name))}:{weight:g}")
    return replace(
        request,
        model=model or _installed_model(request.model),
        loras=tuple(loras),
        image=_plain(request.image),
        mask=_plain(request.mask),
    )


def _installed_model(name: str) -> str:
    """Where a model of this name lies.

    Raises:
        ValueError: nowhere here; names what looks alike.
    """
    plain = _plain(name)
    for folder in MODELS:
        for ending in ENDINGS:
            if plain.strip(".") and (folder / f"{plain}{ending}").exists():
                return str(folder / f"{plain}{ending}")
    there = [file.stem for folder in MODELS if folder.is_dir() for file in sorted(folder.iterdir())]
    raise ValueError(
        f"the model {plain[:60]!r} is not in {' or '.join(map(str, MODELS))}: name one that is "
        f"here with --model.{nearest(plain, there)}"
    )


def _plain(name: str) -> str:
    """The last part of a path of any system."""
    return PurePath(name.replace("\\", "/")).name
