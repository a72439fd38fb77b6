"""LoRA files merged into a text-to-image model while pictures are sampled."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from triptych.fields import nearest
from triptych.systems.stable_diffusion.adapters.lora_updates import merge, restore
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.systems.stable_diffusion.request import LoraFile, parse_lora

if TYPE_CHECKING:
    from triptych.systems.stable_diffusion.adapters.lora_files import Lora, Target

FOLDERS = (Path("loras"), Path("."))
"""Where the NAME of `<lora:NAME:WEIGHT>` in a prompt is searched."""
ENDINGS = (".safetensors", ".pt", ".bin")
LISTED = 5


@contextmanager
def merged_loras(
    model: StableDiffusion, files: Sequence[str], marks: Sequence[str], name: str
) -> Iterator[tuple[str, ...]]:
    """Merge LoRAs into the model, and restore its weights exactly on exit.

    Yields a note about each: its rank, and how many of its layers matched. `files` are
    FILE:WEIGHT or FILE:TEXT:UNET; `marks` are the same from the prompt, where FILE is a name in
    `FOLDERS`, never a path. `name` of the model is for messages.

    Raises:
        ValueError: a file does not exist, is not a LoRA, or is for another family of models.
    """
    if not files and not marks:
        yield ()
        return
    # here, since most pictures are drawn without it
    from triptych.systems.stable_diffusion.adapters.lora_files import text_target, unet_target

    chosen = [parse_lora(file) for file in files]
    named = [parse_lora(mark) for mark in marks]
    chosen += [one._replace(name=str(installed_lora(one.name))) for one in named]
    parts: dict[str, nn.Module] = {"unet": model.unet}
    for number, tower in enumerate(model.text):
        parts["text_encoder" if number == 0 else f"text_encoder_{number + 1}"] = tower
    targets = [unet_target(model.unet)]
    targets += [text_target(tower, part) for part, tower in parts.items() if part != "unet"]
    loras = [(one, _read(one.name, targets, name)) for one in chosen]
    originals = {}
    try:
        for part, module in parts.items():
            updates = [
                (lora.updates.get(part, {}), one.unet if part == "unet" else one.text)
                for one, lora in loras
            ]
            if any(update for update, _ in updates):
                originals[part] = merge(module, *updates)
        yield tuple(_describe(one, lora) for one, lora in loras)
    finally:
        for part, weights in originals.items():
            restore(parts[part], weights)


def _read(file: str, targets: "Sequence[Target]", name: str) -> "Lora":
    from triptych.systems.stable_diffusion.adapters.lora_files import read_lora

    path = Path(file)
    if not os.path.exists(file):  # unlike Path.exists, also for names that are too long
        raise ValueError(f"no LoRA {file[:200]}: the file does not exist")
    try:
        return read_lora(path, targets)
    except ValueError as error:
        raise ValueError(f"{error}; the model is {name}") from error


def installed_lora(name: str) -> Path:
    """The file of a LoRA that a prompt names, with or without its ending.

    Only names of files in `FOLDERS` are accepted, because a prompt may come from a stranger.

    Raises:
        ValueError: there is none; names the nearest.
    """
    installed = {
        file.name.removesuffix(file.suffix): file
        for folder in reversed(FOLDERS)
        for ending in ENDINGS
        for file in sorted(folder.glob(f"*{ending}"))
    }
    installed |= {file.name: file for file in installed.values()}
    if name not in installed:
        folders = " and ".join(str(folder.resolve().name) or "." for folder in FOLDERS)
        raise ValueError(
            f"no LoRA {name[:60]!r} in the folders {folders}: put {name[:60]}.safetensors there, "
            f"or give --loras FILE:WEIGHT.{nearest(name, list(installed))}"
        )
    return installed[name]


def _describe(one: LoraFile, lora: "Lora") -> str:
    more = ""
    if lora.unmatched:
        shown = ", ".join(lora.unmatched[:LISTED])
        more = f" ({shown}{', ...' if len(lora.unmatched) > LISTED else ''})"
    weights = f"{one.unet:g}"
    if one.text != one.unet:
        weights = f"{one.text:g} (text), {one.unet:g} (U-Net)"
    return f"{Path(one.name).name} x {weights}: {lora}{more}"
