"""Files of weights, opened once: what a file is, its header, and its tensors.

Nothing in a file is executed. Tensors are memory-mapped where possible, so opening a large file
takes no memory, and a file must not change while its tensors are in use.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.config import BadFile, errors_about, missing_file
from triptych.weights.files.gguf import GgufFile, read_gguf
from triptych.weights.files.npz import read_npz
from triptych.weights.files.safetensors import SafetensorsHeader, cast, read_header
from triptych.weights.files.shards import missing_shards, shards
from triptych.weights.files.sniff import KIND_NAMES, Kind, detect_kind
from triptych.weights.files.torch_archive import TorchTensors, read_archive, read_legacy
from triptych.weights.files.zip_archive import Zip, open_zip


class Header(NamedTuple):
    """Names and shapes of the tensors of a file, and its metadata."""

    shapes: dict[str, tuple[int, ...]]
    notes: dict[str, str]
    """The metadata of safetensors, and the texts of GGUF's; other kinds have none."""


class Shard(NamedTuple):
    """One file of several, and the tensors that the index expects in it."""

    file: "WeightFile"
    names: list[str]


Contents = SafetensorsHeader | GgufFile | list[Shard] | TorchTensors | dict[str, Tensor]
"""What a file holds, by its kind; the last is NumPy's."""


@dataclass(frozen=True, eq=False)
class WeightFile:
    """An open file of weights, or the index of several. `open_weights` makes one.

    Its header or pickle is interpreted when it is first needed, and then kept.
    """

    path: Path
    kind: Kind
    archive: Zip | None = None
    """Of the kinds that are zip archives."""

    @cached_property
    def header(self) -> Header:
        """Read without reading tensors.

        Raises:
            BadFile: the file is damaged, and what to do.
        """
        contents = self._contents
        if isinstance(contents, SafetensorsHeader):
            return Header(contents.shapes, contents.notes)
        if isinstance(contents, GgufFile):
            return Header(contents.shapes, contents.texts)
        if isinstance(contents, TorchTensors):
            return Header(contents.shapes, {})
        if isinstance(contents, dict):
            return Header({name: tuple(x.shape) for name, x in contents.items()}, {})
        shapes = {name: file.header.shapes[name] for file, names in contents for name in names}
        return Header(shapes, {})

    def read(
        self, dtype: torch.dtype | None = None, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """The tensors by their names in the file.

        With `dtype`, floating-point tensors are cast to it; those of safetensors are read one at a
        time, so that memory holds the result and one tensor more. Without, they are mapped.
        `names` are those to read; None reads all.

        Raises:
            BadFile: the file is damaged, or lacks one of `names`.
        """
        contents = self._contents
        with _errors_about(self.path):
            if names is not None and (absent := [n for n in names if n not in self.header.shapes]):
                raise ValueError(f"lacks {absent[0][:200]}")
            if isinstance(contents, SafetensorsHeader):
                return contents.map(names) if dtype is None else contents.read(dtype, names)
            if isinstance(contents, GgufFile):
                return contents.read(dtype, names)
            if isinstance(contents, list):
                return self._read_shards(contents, dtype, names)
            tensors = contents.map(names) if isinstance(contents, TorchTensors) else contents
            return {n: cast(tensors[n], dtype) for n in (tensors if names is None else names)}

    def read_mapped(self, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """As `read`, but mapped where all have that type already: a large model loads at once, and
        the file must not change while it is used.

        Raises:
            BadFile: as `read`.
        """
        if self.kind in ("safetensors", "shards"):
            mapped = self.read()
            if all(x.dtype == dtype for x in mapped.values() if x.is_floating_point()):
                return mapped
        return self.read(dtype)

    @property
    def gguf(self) -> GgufFile:
        """The metadata and the packed tensors of a GGUF file.

        Raises:
            BadFile: the file is damaged, or of another kind.
        """
        contents = self._contents
        if not isinstance(contents, GgufFile):
            raise BadFile(self.path, f"is {KIND_NAMES[self.kind]}, not a GGUF file")
        return contents

    @cached_property
    def _contents(self) -> Contents:
        with _errors_about(self.path):
            if self.kind == "safetensors":
                return read_header(self.path)
            if self.kind == "gguf":
                return read_gguf(self.path)
            if self.kind == "shards":
                return _open_shards(self.path)
            if self.kind == "torch-legacy":
                return read_legacy(self.path)
            archive = self.archive or open_zip(self.path)
            return read_npz(archive) if self.kind == "npz" else read_archive(archive)

    def _read_shards(
        self, parts: list[Shard], dtype: torch.dtype | None, names: Collection[str] | None
    ) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        wanted = None if names is None else set(names)
        for file, there in parts:
            chosen = there if wanted is None else [name for name in there if name in wanted]
            with _in_shard(self.path):
                tensors |= file.read(dtype, chosen)
        return tensors


def open_weights(path: Path) -> WeightFile:
    """Open any file of weights.

    These are safetensors; `model.safetensors.index.json` and the shards beside it; `torch.save`
    and TorchScript files, whose programs never run; NumPy's `.npz`; and llama.cpp's GGUF. The
    content decides, never the name.

    Raises:
        BadFile: what is wrong with the file, or what it is instead, and what to do about it.
    """
    if not path.exists():
        raise missing_file(path)
    with _errors_about(path):
        kind, archive = detect_kind(path)
    return WeightFile(path, kind, archive)


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a file of weights, mapped.

    Raises:
        BadFile: as `open_weights`, or the file is damaged.
    """
    return open_weights(path).read()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped.

    Raises:
        BadFile: what the file is instead, and what to do about it.
    """
    file = open_weights(path)
    if file.kind != "safetensors":
        raise BadFile(
            path,
            f"is {KIND_NAMES[file.kind]}, not safetensors. `triptych weights convert {path.name} "
            "model.safetensors --to safetensors` makes one of it",
        )
    return file.read()


def _open_shards(index: Path) -> list[Shard]:
    names_of = shards(index)
    if missing := missing_shards(index):
        raise ValueError(
            f"lacks {len(missing)} of its {len(names_of)} shards: {', '.join(missing[:20])}. Fetch "
            "them into the same folder"
        )
    parts = []
    for name, tensors in names_of.items():
        with _in_shard(index):
            file = open_weights(index.parent / name)
            if file.kind == "shards":
                raise BadFile(file.path, "is an index itself. Fetch it again")
            shapes = file.header.shapes
        if absent := [tensor for tensor in tensors if tensor not in shapes]:
            raise ValueError(f"its shard {name} lacks {absent[0][:200]}: it is of another model")
        parts.append(Shard(file, tensors))
    return parts


@contextmanager
def _in_shard(index: Path) -> Iterator[None]:
    try:
        yield
    except BadFile as error:
        raise BadFile(index, f"its shard {error.path.name} {error.reason}") from error


@contextmanager
def _errors_about(path: Path) -> Iterator[None]:
    try:
        with errors_about(path):
            yield
    except OSError as error:
        raise BadFile(path, f"cannot be opened: {error.strerror or error}") from error
