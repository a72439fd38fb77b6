"""What a checkpoint of Stable Diffusion is as a whole: for `weights inspect` and `doctor`.

Only headers and small configurations are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from triptych.systems.stable_diffusion.published.folder.read import NETWORKS, described
from triptych.systems.stable_diffusion.published.single_file.read import UNET, describe_single_file
from triptych.systems.stable_diffusion.published.tokenizers import NAMES
from triptych.weights.files.read import read_header
from triptych.weights.layouts import Layout


@dataclass(frozen=True)
class Summary:
    """A checkpoint in a few words."""

    family: str
    predicts: str
    """noise, velocity, ...; empty where nothing says."""
    parts: tuple[str, ...]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What someone should know; where the checkpoint does not load, why."""

    def __str__(self) -> str:
        predicts = f", predicts {self.predicts}" if self.predicts else ""
        return f"{self.family}{predicts}: {', '.join(self.parts)}"


def summary(found: Layout) -> Summary | None:
    """Of a layout that is a whole Stable Diffusion, or was meant to be one; else None."""
    if found.form == "diffusers" and found.declared.startswith("StableDiffusion"):
        return _folder(found)
    if found.form == "file":
        try:
            shapes = read_header(found.path).shapes
        except ValueError:
            return None  # which is said of the file itself
        if any(name.startswith(UNET) for name in shapes):
            return _file(found.path, shapes)
    return None


def _folder(found: Layout) -> Summary:
    parts = tuple(name for name in NETWORKS if (found.path / name).is_dir())
    wanted = [name.replace("text_encoder", "tokenizer") for name in parts if "text" in name]
    missing = [
        name for name in wanted if not any((found.path / name / file).is_file() for file in NAMES)
    ]
    try:
        read = described(found.path)
    except ValueError as error:
        return Summary(found.declared, "", parts, tuple(missing), (f"does not load: {error}",))
    predicts = read.config.schedule.predicts
    return Summary(found.declared, predicts, parts, tuple(missing), read.notes)


def _file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Summary:
    try:
        read = describe_single_file(path)
    except ValueError as error:
        why = str(error).removeprefix(f"{path}: ")
        return Summary("a U-Net under LDM's names", "", ("unet",), (), (why,))
    notes = tuple(line for line in read.notes if "has no" not in line)
    return Summary(read.family, read.predicts, tuple(read.parts), read.missing, notes)
