"""Safetensors files: the header, the tensors, and writing them.

Errors about the content of a file do not name it; the caller does.
"""

import json
import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych import atomic
from triptych.weights.files.shapes import MAX_HEADER, MAX_TENSORS, read_shape

BROKEN = "has a broken header. Fetch it again"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Types that are read one tensor at a time; a file with others is mapped."""
SIZES = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {
    "U16": 2, "U32": 4, "U64": 8, "C64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
"""Bytes of a number of each type."""


class Entry(NamedTuple):
    """The header's entry of one tensor; bytes are counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """The header of a file, consistent with the size of the file."""

    path: Path
    length: int
    """Bytes before the first tensor."""
    entries: dict[str, Entry]
    notes: dict[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    def map(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Tensors over a mapping of the file; None maps all of them.

        Raises:
            ValueError: the header contradicts itself.
        """
        try:
            tensors = load_file(self.path)
        except (SafetensorError, KeyError) as error:  # a type that this version does not know
            raise ValueError(f"is damaged: {error}. Fetch it again") from error
        return tensors if names is None else {name: tensors[name] for name in names}

    def read(self, dtype: torch.dtype, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Tensors in memory, floating-point ones in `dtype`, in the order of the file.

        Raises:
            ValueError: the file was cut short meanwhile.
        """
        chosen = list(self.entries) if names is None else list(names)
        if any(self.entries[name].dtype not in DTYPES for name in chosen):
            return {name: cast(x, dtype) for name, x in self.map(chosen).items()}
        tensors: dict[str, Tensor] = {}
        with self.path.open("rb") as file:
            for name in sorted(chosen, key=lambda name: self.entries[name].begin):
                kind, shape, begin, end = self.entries[name]
                raw = torch.empty(end - begin, dtype=torch.uint8)
                file.seek(self.length + begin)
                if file.readinto(raw.numpy().data) != end - begin:
                    raise ValueError("was cut short while it was read. Fetch it again")
                tensors[name] = cast(raw.view(DTYPES[kind]).reshape(shape), dtype)
        return tensors


def read_header(path: Path) -> SafetensorsHeader:
    """Read the header of a file and compare it with the file's size; no tensor is read.

    Raises:
        ValueError: the file is truncated, or the header is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError(
                f"does not begin like a safetensors file: its header would have {length:,} bytes, "
                f"and weights need at most {MAX_HEADER:,}"
            )
        if size < 8 + length:
            raise ValueError(
                f"has {size} bytes, its header alone needs {8 + length}: it was cut short"
            )
        text = file.read(length)
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(BROKEN) from None
    if not isinstance(stored, dict):
        raise ValueError(BROKEN)
    notes = stored.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ValueError(BROKEN)
    if len(stored) > MAX_TENSORS:
        raise ValueError(f"names {len(stored):,} tensors; weights have at most {MAX_TENSORS:,}")
    entries = {name: _read_entry(name, entry) for name, entry in stored.items()}
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:  # a gap or an overlap, which the format forbids
            raise ValueError(BROKEN)
        end = entry.end
    expected = 8 + length + end
    if size != expected:
        raise ValueError(
            f"has {size} bytes instead of {expected}: it was cut short or extended. Fetch it again"
        )
    return SafetensorsHeader(path, 8 + length, entries, notes)


def _read_entry(name: str, stored: Any) -> Entry:
    try:
        dtype, shape, (begin, end) = stored["dtype"], stored["shape"], stored["data_offsets"]
    except (ValueError, LookupError, TypeError):
        raise ValueError(BROKEN) from None
    if not isinstance(dtype, str) or type(begin) is not int or type(end) is not int:
        raise ValueError(BROKEN)
    shape = read_shape(shape)
    needed = math.prod(shape) * SIZES[dtype] if dtype in SIZES else end - begin
    if not 0 <= begin <= end or end - begin != needed:
        raise ValueError(
            f"says that {name[:200]} of shape {list(shape)} has {end - begin} bytes. Fetch it again"
        )
    return Entry(dtype, shape, begin, end)


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A floating-point tensor in `dtype`; other tensors, and all for None, stay as they are."""
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file of tensors: a reader sees the old file or the new one, never half of it.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there before stays.
    """
    with atomic.replace_file(path) as temporary:
        write_tensors(temporary, tensors, metadata)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write and sync a file in place, for folders that are renamed as a unit.

    Tensors that share memory are written separately; the format cannot share.

    Raises:
        ValueError: a tensor has a type that the format does not have.
        OSError: the disk is full or the folder cannot be written.
    """
    apart: dict[str, Tensor] = {}
    used: set[int] = set()
    for name, tensor in tensors.items():
        dense = tensor.detach().cpu().contiguous()
        memory = dense.untyped_storage().data_ptr()
        apart[name] = dense.clone() if memory in used else dense
        used.add(memory)
    if odd := [name for name, t in apart.items() if t.dtype == torch.complex128]:
        raise ValueError(f"{odd[0]} is of complex128, for which safetensors has no type")
    path.touch()
    mode = path.stat().st_mode  # the user's umask: the library would make a private file
    try:
        save_file(apart, path, dict(metadata) if metadata else None)
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", f"{error}")
        if code is None:
            raise OSError(f"{path}: {error}") from error
        raise OSError(int(code[1]), os.strerror(int(code[1])), f"{path}") from error
    path.chmod(mode)
    atomic.sync(path)
