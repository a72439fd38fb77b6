"""Tensors of `torch.save` and TorchScript files (.pt, .pth, .bin, .ckpt), without executing them.

Both name their tensors in a pickle, which `pickle_reader.py` interprets safely, and keep the
numbers outside it: as members of a zip archive, or, before torch 1.6, one after another at the end.
The numbers are memory-mapped. Errors in this module do not name the file; the caller does.
"""

import io
import math
import mmap
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.weights.files.checkpoint_tensors import named_tensors
from triptych.weights.files.pickle_reader import StorageRef, TensorRef, read_pickle
from triptych.weights.files.shapes import MAX_HEADER
from triptych.weights.files.zip_archive import Zip, locate, map_file

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_MARK = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # that number as a pickle of any protocol

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
VIEWS = {
    name: getattr(torch, name)
    for name in ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")
    if hasattr(torch, name)
} | {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


@dataclass(frozen=True)
class TorchTensors:
    """The tensors that a file of torch names, and where their numbers are in it."""

    path: Path
    views: dict[str, TensorRef]
    """By name."""
    places: dict[str, tuple[int, int]]
    """Offset and size in bytes of each storage, by its key."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: view.shape for name, view in self.views.items()}

    def map(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Tensors over a new mapping of the file; None maps all of them.

        Tensors that share a storage in the file share memory here.

        Raises:
            ValueError: a tensor has an unknown type, or reaches past the end of its storage.
        """
        memory = map_file(self.path)
        storages: dict[tuple[str, str, int], Tensor] = {}
        tensors = {}
        for name in self.views if names is None else names:
            view = self.views[name]
            storage = view.storage
            identity = (storage.key, storage.kind, storage.size)
            if identity not in storages:
                storages[identity] = _map_storage(memory, storage, *self.places[storage.key])
            tensors[name] = _view(name, view, _reinterpret(name, view.dtype, storages[identity]))
        return tensors


def read_archive(archive: Zip) -> TorchTensors:
    """The tensors of a zip archive of torch. Its pickle is interpreted once, here.

    Raises:
        ValueError: it is truncated, damaged, compressed, or would have to be executed.
    """
    folder = tensor_folder(archive)
    if folder is None:
        inside = ", ".join(sorted(archive.members)[:3]) or "nothing"
        raise ValueError(
            f"is a zip archive without weights of its own (it holds {inside[:200]}). Unpack it, "
            "and give the weights inside"
        )
    _require_little_endian(archive, folder)
    start, size = locate(archive, f"{folder}data.pkl")
    if size > MAX_HEADER:
        raise ValueError(f"has a pickle of {size:,} bytes; weights need at most {MAX_HEADER:,}")
    views = named_tensors(read_pickle(io.BytesIO(archive.memory[start : start + size])))
    keys = dict.fromkeys(view.storage.key for view in views.values())
    places = {key: locate(archive, f"{folder}data/{key}") for key in keys}
    tensors = TorchTensors(archive.path, views, places)
    tensors.map()  # checks that every tensor is within its storage
    return tensors


def tensor_folder(archive: Zip) -> str | None:
    """The folder of the pickle that names the tensors, such as `archive/`."""
    pickles = [name for name in archive.members if name == "data.pkl" or name.endswith("/data.pkl")]
    pickles = [name for name in pickles if name.count("/") < 2]
    return pickles[0].removesuffix("data.pkl") if len(pickles) == 1 else None


def is_script(archive: Zip) -> bool:
    """Whether the archive has a program beside its tensors, as OpenAI's CLIP files do."""
    folder = tensor_folder(archive)
    return folder is not None and any(n.startswith(f"{folder}code/") for n in archive.members)


def read_legacy(path: Path) -> TorchTensors:
    """The tensors of a file of torch before 1.6 (`lpips`, many `.pth`).

    Five pickles come first: a number, the version, the machine, the tensors, and the keys of their
    storages; then, for each key, a count and the numbers.

    Raises:
        ValueError: it is truncated, damaged, or would have to be executed.
    """
    memory = map_file(path)
    stream = io.BytesIO(memory[: MAX_HEADER + 1])
    if read_pickle(stream) != LEGACY_MAGIC:
        raise ValueError("is a pickle, but not one of torch. Get the weights as safetensors")
    read_pickle(stream)
    machine = read_pickle(stream)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("was written on a machine with another order of bytes")
    root = read_pickle(stream)
    keys = read_pickle(stream)
    views = named_tensors(root)
    places = _place_storages(keys, _storage_sizes(root, views), stream.tell(), len(memory))
    for view in views.values():
        storage = view.storage
        if storage.key not in places:
            raise ValueError(f"lacks the numbers of storage {storage.key[:200]!r}")
        start, _ = places[storage.key]
        if int.from_bytes(memory[start - 8 : start], "little") != storage.size:
            raise ValueError(f"has another number of values at byte {start - 8:,} than announced")
    tensors = TorchTensors(path, views, places)
    tensors.map()  # checks that every tensor is within its storage
    return tensors


def _storage_sizes(root: Any, views: dict[str, TensorRef]) -> dict[str, int]:
    """Bytes of each storage by its key, also of tensors that are no weights (an optimizer's)."""
    references, waiting, seen = list(views.values()), [root], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, TensorRef):
            references.append(value)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value
    return {r.storage.key: _bytes(r.storage) for r in references}


def _place_storages(
    keys: Any, sizes: dict[str, int], start: int, length: int
) -> dict[str, tuple[int, int]]:
    """Offset and size of each storage: they follow one another, each after a count of 8 bytes."""
    places = {}
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in sizes:
            raise ValueError("has tensors that its pickle does not name. Fetch it again")
        places[key] = start + 8, sizes[key]
        start += 8 + sizes[key]
    if start != length:
        raise ValueError(
            f"has {length:,} bytes instead of {start:,}: it was cut short or extended. "
            "Fetch it again"
        )
    return places


def _map_storage(memory: mmap.mmap, storage: StorageRef, start: int, size: int) -> Tensor:
    needed = _bytes(storage)
    if size < needed:
        raise ValueError(
            f"has {size:,} bytes in storage {storage.key[:200]!r} instead of {needed:,}. "
            "Fetch it again"
        )
    dtype = DTYPES[storage.kind]
    if not storage.size:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=storage.size, offset=start)


def _bytes(storage: StorageRef) -> int:
    if storage.kind not in DTYPES:
        raise ValueError(f"has numbers of the kind {storage.kind[:50]}, which is not read here")
    return storage.size * DTYPES[storage.kind].itemsize


def _reinterpret(name: str, dtype: str, values: Tensor) -> Tensor:
    """The values of a storage in the type that a tensor declares; "" keeps the storage's."""
    if not dtype:
        return values
    if dtype not in VIEWS:
        raise ValueError(f"has {name[:200]} of {dtype[:50]}, unknown here")
    kind = VIEWS[dtype]
    if len(values) % kind.itemsize:
        raise ValueError(f"has no whole number of values in {name[:200]}")
    return values.view(torch.uint8).view(kind) if len(values) else values.to(kind)


def _view(name: str, reference: TensorRef, values: Tensor) -> Tensor:
    shape, strides = reference.shape, reference.strides
    count = math.prod(shape)
    last = reference.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=False))
    outside = count > len(values) or (count and last >= len(values))
    if len(shape) != len(strides) or outside:
        raise ValueError(
            f"has {name[:200]} as {shape} at {reference.offset}, beyond the {len(values):,} "
            "values that are there. Fetch it again"
        )
    return values.as_strided(shape, strides, reference.offset) if count else values.new_empty(shape)


def _require_little_endian(archive: Zip, folder: str) -> None:
    if (name := f"{folder}byteorder") in archive.members:
        start, size = locate(archive, name)
        if archive.memory[start : start + min(size, 16)] != b"little":
            raise ValueError("was written on a machine with another order of bytes")
