"""Read weights without executing anything, and say what is wrong with a file that holds none."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

MAX_HEADER = 16 << 20  # bytes; the largest published checkpoints stay far below


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, memory-mapped.

    Raises:
        ValueError: what the file is instead, and what to do about it.
    """
    if fault := diagnose(path):
        raise ValueError(f"{path}: {fault}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}. Fetch it again") from error


def diagnose(path: Path) -> str:
    """Why a file is not a whole safetensors file; empty when nothing is wrong at first sight."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
        if head.startswith(b"version https://git-lfs"):
            return "is a git-lfs pointer, not the weights. Run `git lfs pull` in its folder"
        if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
            return "is a web page, not weights: the download needs a login or another address"
        if head.startswith(b"PK\x03\x04"):
            return "is a zip archive (a .pt or .ckpt), not safetensors"
        if size < 10:
            return f"has only {size} bytes. The download broke off; fetch it again"
        length = int.from_bytes(head[:8], "little")
        if length > MAX_HEADER or not head[8:].lstrip().startswith(b"{"):
            return "does not begin like a safetensors file"
        if size < 8 + length:
            return f"has {size} bytes, its header alone needs {8 + length}: it was cut short"
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return "has a broken header. Fetch it again"
    if size != expected:
        return (
            f"has {size} bytes instead of {expected}: it was cut short or extended. Fetch it again"
        )
    return ""
