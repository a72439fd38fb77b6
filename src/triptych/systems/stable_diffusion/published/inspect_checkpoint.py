"""Family, parts and missing parts of a Stable Diffusion checkpoint, for `weights inspect` and
`weights doctor`. Only headers and configurations are read.
"""

from dataclasses import dataclass

from triptych.config import BadFile
from triptych.systems.stable_diffusion.published.folder.read import NETWORKS, read_folder
from triptych.systems.stable_diffusion.published.single_file.read import UNET, describe_single_file
from triptych.systems.stable_diffusion.published.tokenizers import NAMES
from triptych.weights.files.weight_file import WeightFile
from triptych.weights.layouts import Layout


@dataclass(frozen=True)
class Summary:
    """What a checkpoint is."""

    family: str
    predicts: str
    """noise, velocity, ...; empty where unknown."""
    parts: tuple[str, ...]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """For the user; if the checkpoint does not load, the reason."""

    def __str__(self) -> str:
        predicts = f", predicts {self.predicts}" if self.predicts else ""
        return f"{self.family}{predicts}: {', '.join(self.parts)}"


def summary(layout: Layout) -> Summary | None:
    """The summary of a complete Stable Diffusion, or of one that was meant to be; else None."""
    if layout.form == "diffusers" and layout.declared.startswith("StableDiffusion"):
        return _inspect_folder(layout)
    if layout.form == "file" and layout.file is not None:
        try:
            shapes = layout.file.header.shapes
        except BadFile:
            return None  # reported as an error of the file itself
        if any(name.startswith(UNET) for name in shapes):
            return _inspect_file(layout.file)
    return None


def _inspect_folder(layout: Layout) -> Summary:
    parts = tuple(name for name in NETWORKS if (layout.path / name).is_dir())
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in parts if "text" in name]
    missing = tuple(
        name
        for name in tokenizers
        if not any((layout.path / name / file).is_file() for file in NAMES)
    )
    try:
        folder = read_folder(layout.path)
    except ValueError as error:
        return Summary(layout.declared, "", parts, missing, (f"does not load: {error}",))
    predicts = folder.config.schedule.predicts
    return Summary(layout.declared, predicts, parts, missing, folder.notes)


def _inspect_file(weights: WeightFile) -> Summary:
    try:
        file = describe_single_file(weights)
    except BadFile as error:
        return Summary("a U-Net under LDM's names", "", ("unet",), (), (error.reason,))
    notes = tuple(line for line in file.notes if "has no" not in line)
    predicts = file.config.schedule.predicts
    return Summary(file.family, predicts, tuple(file.parts), file.missing, notes)
