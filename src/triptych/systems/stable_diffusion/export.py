"""A text-to-image model written as a folder of diffusers, a single file, or a run folder."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from triptych.config import write_json
from triptych.fields import to_json
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.systems.stable_diffusion.published.folder.write import write_diffusers
from triptych.systems.stable_diffusion.published.single_file.write import write_single_file
from triptych.systems.stable_diffusion.published.tokenizers import NAMES
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.loaded import Loaded, Writer


def write_folder(loaded: Loaded, folder: Path) -> tuple[str, ...]:
    return write_diffusers(_whole(loaded), loaded.tokenizers, folder)


def write_file(loaded: Loaded, path: Path) -> tuple[str, ...]:
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} should end in .safetensors: a single file is one")
    notes = write_single_file(_whole(loaded), path)
    if not any((path.parent / name).exists() for name in NAMES):
        loaded.tokenizers[0].save(path.parent)
        notes = (*notes, "tokenizer.json beside it is its vocabulary, which such files do not hold")
    return notes


def write_run(loaded: Loaded, folder: Path) -> tuple[str, ...]:
    """A run folder of a text-to-image model."""
    first = loaded.tokenizers[0]
    if any(other.pairs() != first.pairs() for other in loaded.tokenizers):
        raise ValueError("its text towers have different vocabularies; a run folder has one")
    write_json(folder / "config.json", to_json(replace(loaded.card, triptych=version("triptych"))))
    write_safetensors(folder / "model.safetensors", loaded.model.state_dict())
    first.save(folder)
    return ()


def _whole(loaded: Loaded) -> StableDiffusion:
    assert isinstance(loaded.model, StableDiffusion)
    return loaded.model


WRITERS: dict[str, Writer] = {
    "diffusers": write_folder,
    "triptych": write_run,
    "single-file": write_file,
}
