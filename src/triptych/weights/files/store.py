"""Rows of tensors in a folder of numbered safetensors files, with notes on the rows of each file.

A file is complete or absent and never changed, so a process that fills a store may be killed at any
moment, and the next one writes what is missing. A damaged file counts as missing.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.files.weight_file import read_safetensors


class Shard(NamedTuple):
    """One file of a store."""

    path: Path
    tensors: dict[str, Tensor]  # memory-mapped
    notes: Any  # as JSON has it


@dataclass(frozen=True)
class Store:
    """The files `PREFIX000000.safetensors`, `PREFIX000001.safetensors`, ... of a folder."""

    folder: Path
    prefix: str
    notes: str
    """The tensor of each file that holds its notes, as the bytes of JSON."""

    def path(self, number: int) -> Path:
        return self.folder / f"{self.prefix}{number:06d}.safetensors"

    def numbers(self) -> list[int]:
        """The numbers of all files, damaged ones included, in ascending order."""
        name = re.compile(rf"{re.escape(self.prefix)}(\d{{6,}})\.safetensors")
        names = (name.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def read(self, number: int) -> Shard | None:
        """One file; None where it is missing or damaged."""
        path = self.path(number)
        if not path.exists():
            return None
        try:
            tensors = dict(read_safetensors(path))
            notes = json.loads(bytes(tensors.pop(self.notes).numpy()))
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
        return Shard(path, tensors, notes)

    def write(self, number: int, tensors: Mapping[str, Tensor], notes: Any) -> None:
        """Write one file; a reader sees all of it or nothing.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        data = torch.frombuffer(bytearray(json.dumps(notes).encode()), dtype=torch.uint8)
        write_safetensors(self.path(number), {**tensors, self.notes: data})
