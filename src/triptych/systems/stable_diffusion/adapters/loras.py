"""LoRA files in the weights of a text-to-image model, for as long as pictures are drawn."""

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
"""Where `<lora:NAME:WEIGHT>` in a prompt looks for NAME."""
ENDINGS = (".safetensors", ".pt", ".bin")
LISTED = 5


@contextmanager
def merged(
    model: StableDiffusion, files: Sequence[str], marks: Sequence[str], name: str
) -> Iterator[tuple[str, ...]]:
    """Inside, the model's weights have these LoRAs in them; after it they are as before, to the
    bit. Gives a sentence about each: its rank, and how many of its layers matched.

    `files` are FILE:WEIGHT; `marks` NAME:WEIGHT as they stand in prompts, which name a file of
    `FOLDERS` without its ending and never a path.

    Raises:
        ValueError: a file that is not there or no LoRA, or one for another family of models.
    """
    wanted = [parse_lora(file) for file in files]
    wanted += [(str(installed_lora(mark)), weight) for mark, weight in map(parse_lora, marks)]
    parts: dict[str, nn.Module] = {"unet": model.unet}
    for number, tower in enumerate(model.text):
        parts["text_encoder" if number == 0 else f"text_encoder_{number + 1}"] = tower
    targets = [unet_target(model.unet)]
    targets += [text_target(tower, part) for part, tower in parts.items() if part != "unet"]
    found = [(file, _read(file, targets, name), weight) for file, weight in wanted]
    originals = {}
    try:
        for part, module in parts.items():
            updates = [(lora.updates.get(part, {}), weight) for _, lora, weight in found]
            if any(update for update, _ in updates):
                originals[part] = merge(module, *updates)
        yield tuple(_said(file, lora, weight) for file, lora, weight in found)
    finally:
        for part, weights in originals.items():
            restore(parts[part], weights)


def _read(file: str, targets: Sequence[Target], name: str) -> Lora:
    path = Path(file)
    if not path.exists():
        raise ValueError(f"no LoRA {file}: there is no such file")
    try:
        return read_lora(path, targets)
    except ValueError as error:
        raise ValueError(f"{error}; the model is {name}") from error


def installed_lora(name: str) -> Path:
    """The file in `FOLDERS` of a name in a prompt, which a stranger may have written: a plain name,
    with its ending or without.

    Raises:
        ValueError: there is none; offers the nearest.
    """
    there = {
        file.name.removesuffix(file.suffix): file
        for folder in reversed(FOLDERS)
        for ending in ENDINGS
        for file in sorted(folder.glob(f"*{ending}"))
    }
    there |= {file.name: file for file in there.values()}
    if name not in there:
        looked = " and ".join(str(folder.resolve().name) or "." for folder in FOLDERS)
        raise ValueError(
            f"no LoRA {name[:60]!r} in the folders {looked}: put {name[:60]}.safetensors there, or "
            f"give --loras FILE:WEIGHT.{nearest(name, list(there))}"
        )
    return there[name]


def _said(file: str, lora: Lora, weight: float) -> str:
    more = ""
    if lora.unmatched:
        shown = ", ".join(lora.unmatched[:LISTED])
        more = f" ({shown}{', ...' if len(lora.unmatched) > LISTED else ''})"
    return f"{Path(file).name} x {weight:g}: {lora}{more}"
