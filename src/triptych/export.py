"""Writes a loaded model in the layout of another library.

A folder appears complete or not at all: it is written under a temporary name and renamed.
"""

from pathlib import Path
from typing import Literal

from triptych.atomic import replace_folder
from triptych.loading import load
from triptych.systems import SYSTEMS
from triptych.weights.loaded import AS_STORED, Reading, Writer

Target = Literal["transformers", "open_clip", "diffusers", "single-file", "triptych"]
FILES = ("single-file",)
"""Targets that are one file; the others are folders."""


def convert_checkpoint(
    source: str, dest: Path, to: Target, reading: Reading = AS_STORED
) -> tuple[str, ...]:
    """Write a CLIP, a SigLIP or a Stable Diffusion, trained here or published, in another layout.

    Stable Diffusion keeps the type of its weights; the others become float32. Returns notes on the
    conversion.

    Raises:
        ValueError: the source does not load, or the other library has no such architecture.
        OSError: the disk is full or the folder cannot be written; what was there before stays.
    """
    loaded = load(source, dtype="stored", reading=reading)
    kind = loaded.card.model
    writers = _find_writers(kind)
    if to not in writers:
        folders = [target for target in writers if target not in FILES]
        forms = f"converts to {', '.join(folders)}" if folders else "does not convert"
        raise ValueError(f"{source} is a {kind}, which {forms}: not to {to}")
    if to in FILES:
        return (*loaded.notes, *writers[to](loaded, dest))
    with replace_folder(dest) as folder:
        notes = writers[to](loaded, folder)
    return (*loaded.notes, *notes)


def _find_writers(kind: str) -> dict[str, Writer]:
    """The functions that write a model of this kind, by target: of its own system, or of one whose
    requests work with it.
    """
    written = [system for system in SYSTEMS.values() if system.export]
    own = [system for system in written if kind in system.kinds]
    for system in own or [system for system in written if kind in system.serves]:
        writers: dict[str, Writer] = system.module("export").WRITERS
        return writers
    return {}
