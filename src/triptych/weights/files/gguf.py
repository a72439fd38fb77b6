"""GGUF files, llama.cpp's: metadata, the list of tensors, and the tensors.

Everything that a file says of itself is checked before it is used: counts and lengths against the
file's size, shapes, blocks, alignment, offsets. Errors do not name the file; the caller does.

The format: github.com/ggml-org/ggml, docs/gguf.md.
"""

import math
import mmap
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.weights.files.gguf_blocks import BLOCKS, unpack
from triptych.weights.files.shapes import MAX_TENSORS, MAX_VALUES
from triptych.weights.files.zip_archive import map_file

MAGIC = b"GGUF"
CUT = "was cut short, or is damaged. Fetch it again"
MAX_KEYS = 10_000
MAX_KEY = 65_535
"""Bytes of a key, as the format has it."""
MAX_NAME = 64
"""Bytes of a tensor's name, as llama.cpp has it."""
MAX_TEXT = 16 << 20
"""Bytes of one text; chat templates have some thousand."""
MAX_TEXTS = 1 << 20
"""Texts of all lists together: a vocabulary of 262,144, with 514,906 merges where they are
stored.
"""
MAX_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4

NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""Types of metadata by number, as `struct` calls them."""
TEXT, LIST = 8, 9
TORCH = {
    "B": torch.uint8, "b": torch.int8, "h": torch.int16, "i": torch.int32, "I": torch.int32,
    "q": torch.int64, "Q": torch.int64, "f": torch.float32, "d": torch.float64, "?": torch.bool,
    "H": torch.int16,
}  # fmt: skip

Value = int | float | bool | str | list[bytes] | Tensor
"""A list of texts is kept as bytes: a vocabulary is decoded where it is used."""


class Packed(NamedTuple):
    """The place and form of one tensor."""

    form: str
    """Such as Q8_0: a key of `BLOCKS`."""
    shape: tuple[int, ...]
    """As in torch: the last side is contiguous."""
    begin: int
    end: int


@dataclass(frozen=True)
class GgufFile:
    """An open file, consistent with its size; the tensors are mapped."""

    memory: mmap.mmap
    metadata: Mapping[str, Value]
    entries: Mapping[str, Packed]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def texts(self) -> dict[str, str]:
        """The metadata that is text."""
        return {key: value for key, value in self.metadata.items() if isinstance(value, str)}

    def read(
        self, dtype: torch.dtype | None = None, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Tensors by name, None for all. Without a dtype F32, F16 and BF16 are mapped, and blocks
        become float32.
        """
        chosen = self.entries if names is None else names
        return {n: unpack(self.packed(n), *self.entries[n][:2], dtype) for n in chosen}

    def packed(self, name: str) -> Tensor:
        """The bytes of a tensor as the file has them, mapped."""
        entry = self.entries[name]
        return torch.frombuffer(
            self.memory, dtype=torch.uint8, count=entry.end - entry.begin, offset=entry.begin
        )


def read_gguf(path: Path) -> GgufFile:
    """Read the metadata and the list of tensors; no tensor is read.

    Raises:
        ValueError: the file is cut short or damaged, or has a form that is not read here.
    """
    memory = map_file(path)
    try:
        return _read(_Reader(memory))
    except (struct.error, UnicodeDecodeError):
        raise ValueError(CUT) from None


def _read(reader: "_Reader") -> GgufFile:
    version = reader.number("I")
    if version in (1 << 24, 2 << 24, 3 << 24):
        raise ValueError("is a GGUF file for machines of the other byte order (big-endian)")
    if version not in (2, 3):
        raise ValueError(f"is a GGUF file of version {version}; versions 2 and 3 are read")
    tensors, keys = reader.number("Q"), reader.number("Q")
    # of a tensor at least: length of the name, a letter, dimensions, one side, type, offset
    reader.require(tensors, 33, MAX_TENSORS, "tensors")
    reader.require(keys, 14, MAX_KEYS, "keys")
    metadata: dict[str, Value] = {}
    for _ in range(keys):
        key = reader.text(MAX_KEY).decode()
        if not key or key in metadata:
            raise ValueError(f"has the key {key[:100]!r} twice, or an empty one. Fetch it again")
        metadata[key] = reader.value(reader.number("I"))
    listed = [reader.tensor() for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment % 8:
        raise ValueError(f"aligns its tensors to {str(alignment)[:100]} bytes. Fetch it again")
    start = reader.place + -reader.place % alignment
    entries: dict[str, Packed] = {}
    for name, form, shape, offset, size in listed:
        if name in entries:
            raise ValueError(f"has two tensors {name!r}. Fetch it again")
        if offset % alignment or start + offset + size > len(reader.memory):
            raise ValueError(
                f"has {len(reader.memory):,} bytes, and says that {name!r} is in {size:,} bytes "
                f"from {start + offset:,} on: it was cut short, or is damaged. Fetch it again"
            )
        entries[name] = Packed(form, shape, start + offset, start + offset + size)
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin < end:
            raise ValueError(f"has tensors that overlap, such as {name!r}. Fetch it again")
        end = entry.end
    return GgufFile(reader.memory, metadata, entries)


class _Reader:
    """Reads the header in order. Reading beyond the end of the file raises `struct.error`."""

    def __init__(self, memory: mmap.mmap):
        self.memory, self.place = memory, len(MAGIC)
        self.texts = 0

    def number(self, kind: str) -> int:
        (value,) = struct.unpack_from(f"<{kind}", self.memory, self.place)
        self.place += struct.calcsize(f"<{kind}")
        return int(value)

    def require(self, count: int, size: int, most: int, what: str) -> None:
        """Refuse more things of at least `size` bytes than the rest of the file has room for."""
        if count > most or count * size > len(self.memory) - self.place:
            raise ValueError(
                f"says that it has {count:,} {what}, for which it has no room, or more than a "
                f"model has ({most:,}): it was cut short, or is damaged. Fetch it again"
            )

    def text(self, most: int) -> bytes:
        length = self.number("Q")
        self.require(length, 1, most, "bytes of one text")
        self.place += length
        return self.memory[self.place - length : self.place]

    def value(self, kind: int) -> Value:
        if kind == TEXT:
            return self.text(MAX_TEXT).decode()
        if kind == LIST:
            return self._list()
        if kind not in NUMBERS:
            raise ValueError(f"has metadata of the type {kind}, which does not exist")
        (value,) = struct.unpack_from(f"<{NUMBERS[kind]}", self.memory, self.place)
        self.place += struct.calcsize(f"<{NUMBERS[kind]}")
        found: int | float | bool = value
        return found

    def _list(self) -> Value:
        kind, count = self.number("I"), self.number("Q")
        if kind == TEXT:
            self.texts += count
            self.require(count, 8, MAX_TEXTS, "texts")
            if self.texts > MAX_TEXTS:
                raise ValueError(f"has lists of more than {MAX_TEXTS:,} texts. Fetch it again")
            return self._texts(count)
        if kind not in NUMBERS:
            raise ValueError("has a list of lists, or of an unknown type. Fetch it again")
        size = struct.calcsize(NUMBERS[kind])
        self.require(count, size, len(self.memory), "numbers")
        begin, self.place = self.place, self.place + count * size
        if not count:
            return torch.empty(0)
        data = bytearray(self.memory[begin : self.place])
        return torch.frombuffer(data, dtype=TORCH[NUMBERS[kind]])

    def _texts(self, count: int) -> list[bytes]:
        """As `text`, many times: the vocabulary is most of what is read before the first token."""
        memory, place, texts = self.memory, self.place, []
        length_of = struct.Struct("<Q").unpack_from
        for _ in range(count):
            begin = place + 8
            (length,) = length_of(memory, place)
            if length > MAX_TEXT:
                raise ValueError(CUT)
            place = begin + length
            texts.append(memory[begin:place])
        if place > len(memory):
            raise ValueError(CUT)
        self.place = place
        return texts

    def tensor(self) -> tuple[str, str, tuple[int, ...], int, int]:
        """Name, form, shape, offset and bytes of the next tensor of the list."""
        name = self.text(MAX_NAME).decode()
        dimensions = self.number("I")
        if not name or not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"has the tensor {name!r} of {dimensions} dimensions. Fetch it again")
        sides = [self.number("Q") for _ in range(dimensions)]
        count = math.prod(sides)
        if min(sides) < 1 or count > MAX_VALUES:
            raise ValueError(f"has the tensor {name!r} of the shape {sides}. Fetch it again")
        number, offset = self.number("I"), self.number("Q")
        form = next((form for form, block in BLOCKS.items() if block.number == number), None)
        if form is None:
            raise ValueError(
                f"packs {name!r} in a form that is not read (type {number}); those that are: "
                f"{', '.join(BLOCKS)}. Get the model in one of them"
            )
        block = BLOCKS[form]
        if sides[0] % block.values:
            raise ValueError(
                f"packs {name!r} as {form} in blocks of {block.values}, which do not divide its "
                f"rows of {sides[0]}. Fetch it again"
            )
        size = count // block.values * block.bytes
        return name, form, tuple(reversed(sides)), offset, size
