"""Variants of one network's weights in a diffusers folder, such as fp16 beside the plain ones.

A variant is part of the file name: `diffusion_pytorch_model.fp16.safetensors`. Nothing is loaded.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from triptych.config import BadFile

NAME = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<variant>[A-Za-z0-9_-]+))?\.(?P<ending>safetensors|bin)"
    r"(?P<index>\.index(?:\.(?P<late>[A-Za-z0-9_-]+))?\.json)?"
)
SHARD = re.compile(r"-\d+-of-\d+$")


def variants(folder: Path) -> dict[str, Path]:
    """Files that `open_weights` takes, by variant; the plain one is `""`.

    Safetensors are preferred to pickles, and a single file to the index of shards.
    """
    names = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
    return {variant: folder / name for variant, name in group_by_variant(names).items()}


def group_by_variant(names: Iterable[str]) -> dict[str, str]:
    """`variants` on file names alone."""
    best: dict[str, tuple[tuple[bool, bool], str]] = {}
    for name in sorted(names):
        match = NAME.fullmatch(name)
        if match is None or SHARD.search(match["variant"] or ""):
            continue
        variant = match["late"] or match["variant"] or ""
        rank = match["ending"] == "bin", match["index"] is not None
        if variant not in best or rank < best[variant][0]:
            best[variant] = rank, name
    return {variant: name for variant, (_, name) in sorted(best.items())}


def choose_variant(folder: Path, variant: str = "") -> tuple[Path, str]:
    """The file of a variant, and its variant: the plain one, or the only one, where it is missing.

    Raises:
        BadFile: there are several others, or no weights at all.
    """
    files = variants(folder)
    for name in (variant, ""):
        if name in files:
            return files[name], name
    if len(files) == 1:
        (name, path), *_ = files.items()
        return path, name
    if not files:
        raise BadFile(
            folder,
            "has no weights: diffusion_pytorch_model.safetensors, or model.safetensors of a text "
            "tower, is missing. Fetch it from where the rest is",
        )
    raise BadFile(
        folder,
        f"has its weights only as {', '.join(files)}: choose one, as in --variant "
        f"{next(iter(files))}",
    )
