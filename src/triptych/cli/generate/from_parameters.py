"""`--from-parameters`: the request stored in a picture, or in a text of AUTOMATIC1111.

Pictures and texts are untrusted: they can name models and LoRAs that are installed already, by file
name without a folder, and no other file.
"""

import os
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from triptych.fields import from_json, nearest
from triptych.systems.stable_diffusion.request import TextToImage, parse_lora
from triptych.weights.bundled_models import bundled_folder, bundled_names

MODELS = (Path("runs"), Path("models"))
"""Folders that are searched for the model of a text."""
ENDINGS = ("", ".safetensors", ".ckpt")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")


def read_parameters(source: str, model: str = "") -> tuple[TextToImage, tuple[str, ...]]:
    """The request of a picture file or a text, and notes on its translation.

    A picture of Triptych has the exact request. `model` replaces the one that is named.

    Raises:
        ValueError: there is no such picture or model, or the picture has no request.
    """
    from triptych.systems.stable_diffusion.inputs.parameters_text import parse_infotext
    from triptych.systems.stable_diffusion.inputs.replay import replay

    text: str | None = source
    if _is_picture(source):
        record, text = _read_picture(Path(source))
        if record is not None:
            return _find_files(from_json(TextToImage, record, source), model), ()
    assert text is not None
    info = parse_infotext(text)
    replayed = replay(info)
    if not model and not info.get("Model"):
        raise ValueError("the text names no model: give one with --model")
    return _find_files(replayed.request, model), replayed.notes


def _is_picture(source: str) -> bool:
    if "\n" in source or len(source) > 4096:
        return False
    path = Path(source)
    if os.path.isfile(source):  # unlike Path.is_file, also of what is no name of a file
        return True
    if path.suffix.lower() in PICTURES and ":" not in source:
        raise ValueError(f"no picture {source!r}: there is no such file")
    return False


def _read_picture(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The request of Triptych in a picture, or the text of another program."""
    from triptych.vision import images

    text = images.read_parameters(path)
    record = (images.read_request(path) or {}).get("request")
    if isinstance(record, dict) and "prompt" in record:
        return record, text
    if text is None:
        other = " It is of a class-conditional model, which takes no prompts." if record else ""
        raise ValueError(f"{path} carries no parameters of how it was made.{other}")
    return None, text


def _find_files(request: TextToImage, model: str) -> TextToImage:
    """The request with the paths of its model and LoRAs on this machine."""
    from triptych.systems.stable_diffusion.adapters.loras import installed_lora

    files = [parse_lora(lora) for lora in request.loras]
    loras = [str(file._replace(name=str(installed_lora(_file_name(file.name))))) for file in files]
    return replace(
        request,
        model=model or _find_model(request.model),
        loras=tuple(loras),
        image=_file_name(str(request.image)),
        mask=_file_name(str(request.mask)),
        latents=_file_name(str(request.latents)),
    )


def _find_model(name: str) -> str:
    """The path of a model of this name.

    Raises:
        ValueError: there is none; suggests the closest name.
    """
    name = _file_name(name)
    for folder in MODELS:
        for ending in ENDINGS:
            if name.strip(".") and os.path.exists(folder / f"{name}{ending}"):
                return str(folder / f"{name}{ending}")
    if name in bundled_names():
        return str(bundled_folder(name))
    names = [file.stem for folder in MODELS if folder.is_dir() for file in sorted(folder.iterdir())]
    names += bundled_names()
    raise ValueError(
        f"the model {name[:60]!r} is not in {' or '.join(map(str, MODELS))}: name one that is "
        f"there with --model.{nearest(name, names)}"
    )


def _file_name(name: str) -> str:
    """The last part of a path of Unix or Windows."""
    return PurePath(name.replace("\\", "/")).name
