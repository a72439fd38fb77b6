"""One network's weights in a folder of diffusers, which may hold several forms of the same.

A variant is a word in the names: `diffusion_pytorch_model.fp16.safetensors`. Nothing is loaded.
"""

import re
from collections.abc import Iterable
from pathlib import Path

NAME = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<variant>[A-Za-z0-9_-]+))?\.(?P<ending>safetensors|bin)"
    r"(?P<index>\.index(?:\.(?P<late>[A-Za-z0-9_-]+))?\.json)?"
)
SHARD = re.compile(r"-\d+-of-\d+$")


def variants(folder: Path) -> dict[str, Path]:
    """Files that `read_weights` takes, by variant; the plain one is `""`.

    Of each: safetensors before pickles, and a file before the index of its shards.
    """
    names = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
    return {variant: folder / name for variant, name in named(names).items()}


def named(names: Iterable[str]) -> dict[str, str]:
    """`variants` of the names of a folder's files."""
    found: dict[str, tuple[tuple[bool, bool], str]] = {}
    for name in sorted(names):
        match = NAME.fullmatch(name)
        if match is None or SHARD.search(match["variant"] or ""):
            continue
        variant = match["late"] or match["variant"] or ""
        rank = match["ending"] == "bin", match["index"] is not None
        if variant not in found or rank < found[variant][0]:
            found[variant] = rank, name
    return {variant: name for variant, (_, name) in sorted(found.items())}


def chosen(folder: Path, variant: str = "") -> tuple[Path, str]:
    """The file of a variant, and which variant it is: where there is no such one, the only one.

    Raises:
        ValueError: there are several others, or no weights at all.
    """
    found = variants(folder)
    for name in (variant, ""):
        if name in found:
            return found[name], name
    if len(found) == 1:
        (name, path), *_ = found.items()
        return path, name
    if not found:
        raise ValueError(
            f"{folder} has no weights: diffusion_pytorch_model.safetensors, or "
            "model.safetensors of a text tower, is missing. Fetch it from where the rest is"
        )
    raise ValueError(
        f"{folder} has its weights as {', '.join(found)} alone: say which, as in --variant "
        f"{next(iter(found))}"
    )
