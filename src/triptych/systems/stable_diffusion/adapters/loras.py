"""LoRA files merged into a text-to-image model while pictures are sampled."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from triptych.config import nearest
from triptych.systems.stable_diffusion.adapters.lora_files import (
    Lora,
    Target,
    read_lora,
    text_target,
    unet_target,
)
from triptych.systems.stable_diffusion.adapters.lora_updates import merge, restore
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.systems.stable_diffusion.request import parse_lora

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
    FILE:WEIGHT; `marks` are NAME:WEIGHT from the prompt, where NAME is a file in `FOLDERS` without
    its ending, never a path. `name` of the model is for messages.

    Raises:
        ValueError: a file does not exist, is not a LoRA, or is for another family of models.
    """
    paths = [parse_lora(file) for file in files]
    paths += [(str(installed_lora(mark)), weight) for mark, weight in map(parse_lora, marks)]
    parts: dict[str, nn.Module] = {"unet": model.unet}
    for number, tower in enumerate(model.text):
        parts["text_encoder" if number == 0 else f"text_encoder_{number + 1}"] = tower
    targets = [unet_target(model.unet)]
    targets += [text_target(tower, part) for part, tower in parts.items() if part != "unet"]
    loras = [(file, _read(file, targets, name), weight) for file, weight in paths]
    originals = {}
    try:
        for part, module in parts.items():
            updates = [(lora.updates.get(part, {}), weight) for _, lora, weight in loras]
            if any(update for update, _ in updates):
                originals[part] = merge(module, *updates)
        yield tuple(_describe(file, lora, weight) for file, lora, weight in loras)
    finally:
        for part, weights in originals.items():
            restore(parts[part], weights)


def _read(file: str, targets: Sequence[Target], name: str) -> Lora:
    path = Path(file)
    if not path.exists():
        raise ValueError(f"no LoRA {file}: the file does not exist")
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


def _describe(file: str, lora: Lora, weight: float) -> str:
    more = ""
    if lora.unmatched:
        shown = ", ".join(lora.unmatched[:LISTED])
        more = f" ({shown}{', ...' if len(lora.unmatched) > LISTED else ''})"
    return f"{Path(file).name} x {weight:g}: {lora}{more}"
