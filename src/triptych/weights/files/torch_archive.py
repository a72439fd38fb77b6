"""Tensors of `torch.save` and TorchScript files (.pt, .pth, .bin, .ckpt), executing nothing.

Both forms name their tensors in a pickle, which is only described (`pickled.py`), and keep the
numbers beside it: as members of a zip archive, or, before torch 1.6, one behind the other. The
numbers are mapped, not read: a large file is open at once, and only what is used is loaded.
"""

import io
import math
import mmap
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triptych.weights.files.pickle_reader import (
    Opaque,
    Scripted,
    StorageRef,
    TensorRef,
    read_pickle,
)

MAX_MEMBERS = 200_000


class Member(NamedTuple):
    name: str
    header: int  # where its own header begins
    size: int  # unpacked
    packed: int
    method: int  # 0: stored as it is


class Zip(NamedTuple):
    """A zip archive mapped into memory: nothing is read before it is used."""

    memory: mmap.mmap
    members: dict[str, Member]


def open_zip(path: Path) -> Zip:
    """The members of an archive. Errors do not name the file: the caller does.

    Raises:
        ValueError: the archive is cut short or damaged.
    """
    memory = mapped(path)
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, LookupError, OverflowError) as error:
        raise ValueError(
            f"is a zip archive whose directory is missing or damaged ({len(memory):,} bytes; the "
            "directory is its end): it was cut short. Fetch it again"
        ) from error
    except (OSError, NotImplementedError, struct.error, MemoryError) as error:
        raise ValueError(f"is a zip archive with a damaged directory: {error}") from error
    if len(infos) > MAX_MEMBERS:
        raise ValueError(f"is a zip archive of {len(infos):,} files; weights have fewer")
    members: dict[str, Member] = {}
    for info in infos:
        if info.filename in members:
            raise ValueError(f"is a zip archive with two files {info.filename[:200]!r}")
        if info.flag_bits & 1:
            raise ValueError("is an encrypted zip archive. Unpack it with its password first")
        members[info.filename] = Member(
            info.filename,
            info.header_offset,
            info.file_size,
            info.compress_size,
            info.compress_type,
        )
    return Zip(memory, members)


def mapped(path: Path) -> mmap.mmap:
    """The file as memory that can be written to without changing the file, as torch wants it."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def place(archive: Zip, name: str) -> tuple[int, int]:
    """Offset and size of the bytes of a member that is stored unpacked.

    Raises:
        ValueError: the member is missing, packed, or reaches beyond the file.
    """
    if name not in archive.members:
        raise ValueError(f"lacks its part {name[:200]!r}. Fetch it again")
    member = archive.members[name]
    if member.method != 0 or member.packed != member.size:
        raise ValueError(
            f"is a zip archive with compressed members, such as {name[:200]!r}, which cannot be "
            "mapped. Unpack it and pack it again without compression: `unzip FILE -d x && cd x && "
            "zip -0 -r ../new.pt .`"
        )
    start = packed_start(archive, member)
    return start, member.size


def packed_start(archive: Zip, member: Member) -> int:
    """Where a member's bytes begin: behind its own header, which has no fixed length."""
    header = archive.memory[member.header : member.header + 30] if member.header >= 0 else b""
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError(f"has no header where its part {member.name[:200]!r} should be")
    name, extra = struct.unpack("<HH", header[26:30])
    start = int(member.header + 30 + name + extra)
    if start + member.packed > len(archive.memory):
        raise ValueError(
            f"has {len(archive.memory):,} bytes, but its part {member.name[:200]!r} ends at "
            f"{start + member.packed:,}: it was cut short. Fetch it again"
        )
    return start


MAX_TENSORS = 200_000
MAX_DEPTH = 32


def named_tensors(root: Any) -> dict[str, TensorRef]:
    """The tensors of a checkpoint by their names, joined by dots where dictionaries are nested.

    Raises:
        ValueError: there are none, or an object of an unknown class stands among them.
    """
    root = _state(root)
    found: dict[str, TensorRef] = {}
    waiting: list[tuple[str, Any, int]] = [("", root, 0)]
    for _ in range(MAX_TENSORS):
        if not waiting:
            break
        name, value, depth = waiting.pop()
        if isinstance(value, TensorRef):
            if (name or "tensor") in found:
                raise ValueError(f"it has two tensors of the name {name[:200]}")
            found[name or "tensor"] = value
        elif isinstance(value, Opaque):
            raise ValueError(
                f"{name[:200] or 'it'} is an object of {value.name}, not a tensor. Where that "
                "class is at hand, save the model's state_dict() and use that file"
            )
        elif (children := _children(value)) is not None:
            if depth == MAX_DEPTH:
                raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
            below = [(_joined(name, key), child, depth + 1) for key, child in children]
            waiting += reversed(below)
            if len(waiting) > MAX_TENSORS:
                break
    if waiting:
        raise ValueError(f"it holds more than {MAX_TENSORS:,} objects")
    if not found:
        raise ValueError("it holds no tensors: it is something other than a model's weights")
    return found


def _state(root: Any) -> Any:
    """A training checkpoint's weights, without what training keeps beside them."""
    if not isinstance(root, dict):
        return root
    for key in ("state_dict", "model_state_dict"):
        if isinstance(root.get(key), dict | Scripted):
            return root[key]
    if any(isinstance(value, TensorRef) for value in root.values()):
        return root
    groups = [k for k, value in root.items() if not _is_training(k) and _holds_tensors(value)]
    if groups == ["model"]:
        return root["model"]
    return {key: root[key] for key in groups} or root


def _is_training(key: Any) -> bool:
    kept = ("optim", "lr", "sched", "scaler", "callbacks", "loops", "hyper", "args", "config")
    return isinstance(key, str) and key.startswith(kept)


def _holds_tensors(value: Any) -> bool:
    """Whether there is a tensor, or an object that may be one, in a value's first entries."""
    waiting = [value]
    for _ in range(10_000):
        if not waiting:
            return False
        value = waiting.pop()
        if isinstance(value, TensorRef):
            return True
        waiting += [child for _, child in _children(value) or ()]
    return True


def _children(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Scripted):
        return list(value.attributes.items())
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else None


def _joined(name: str, key: Any) -> str:
    if not isinstance(key, str | int) or len(name) > 500:
        raise ValueError(f"{name[:200] or 'it'} has a key that is no name")
    return f"{name}.{key}" if name else str(key)


MAX_PICKLE = 16 << 20  # bytes; Stable Diffusion with its optimizer has about one
MAX_VALUES = 1 << 42  # of one tensor
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

Numbers = Callable[[StorageRef], Tensor]


def read_archive(path: Path) -> dict[str, Tensor]:
    """The tensors of a zip archive of torch, mapped. Errors do not name the file.

    Raises:
        ValueError: it is cut short, damaged, packed, or would have to be executed.
    """
    archive = open_zip(path)
    folder = tensor_folder(archive)
    if folder is None:
        inside = ", ".join(sorted(archive.members)[:3]) or "nothing"
        raise ValueError(
            f"is a zip archive without weights of its own (it holds {inside[:200]}). Unpack it, "
            "and give the weights inside"
        )
    _require_little(archive, folder)
    start, size = place(archive, f"{folder}data.pkl")
    if size > MAX_PICKLE:
        raise ValueError(f"has a pickle of {size:,} bytes; weights need at most {MAX_PICKLE:,}")
    root = read_pickle(io.BytesIO(archive.memory[start : start + size]))

    def numbers(storage: StorageRef) -> Tensor:
        start, size = place(archive, f"{folder}data/{storage.key}")
        return _flat(archive.memory, start, size, storage)

    return _tensors(root, numbers)


def tensor_folder(archive: Zip) -> str | None:
    """The folder of the pickle that names the tensors, such as `archive/`."""
    found = [name for name in archive.members if name == "data.pkl" or name.endswith("/data.pkl")]
    found = [name for name in found if name.count("/") < 2]
    return found[0].removesuffix("data.pkl") if len(found) == 1 else None


def is_script(archive: Zip) -> bool:
    """Whether the archive carries a program beside its tensors, as OpenAI's CLIP files do."""
    folder = tensor_folder(archive)
    return folder is not None and any(n.startswith(f"{folder}code/") for n in archive.members)


def read_legacy(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch before 1.6 (`lpips`, many `.pth`), mapped.

    Five pickles come first: a number, the version, the machine, the tensors, and the keys of their
    storages; then, for each key, a count and the numbers.

    Raises:
        ValueError: it is cut short, damaged, or would have to be executed.
    """
    memory = mapped(path)
    stream = io.BytesIO(memory[: MAX_PICKLE + 1])
    if read_pickle(stream) != LEGACY_MAGIC:
        raise ValueError("is a pickle, but not one of torch. Get the weights as safetensors")
    read_pickle(stream)
    machine = read_pickle(stream)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("was written on a machine with another order of bytes")
    root = read_pickle(stream)
    keys = read_pickle(stream)
    tensors = named_tensors(root)
    sizes = {r.storage.key: _bytes(r.storage) for r in _references(root, tensors)}
    places, start = {}, stream.tell()
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in sizes:
            raise ValueError("has tensors that its pickle does not name. Fetch it again")
        places[key] = start + 8
        start += 8 + sizes[key]
    if start != len(memory):
        raise ValueError(
            f"has {len(memory):,} bytes instead of {start:,}: it was cut short or extended. "
            "Fetch it again"
        )

    def numbers(storage: StorageRef) -> Tensor:
        if storage.key not in places:
            raise ValueError(f"lacks the numbers of storage {storage.key[:200]!r}")
        at = places[storage.key]
        if int.from_bytes(memory[at - 8 : at], "little") != storage.size:
            raise ValueError(f"has another number of values at byte {at - 8:,} than announced")
        return _flat(memory, at, sizes[storage.key], storage)

    return _views(tensors, numbers)


def _references(root: Any, tensors: dict[str, TensorRef]) -> list[TensorRef]:
    """Every tensor of the file, also those beside the weights: their numbers take room too."""
    found, waiting, seen = list(tensors.values()), [root], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, TensorRef):
            found.append(value)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value
    return found


def _tensors(root: Any, numbers: Numbers) -> dict[str, Tensor]:
    return _views(named_tensors(root), numbers)


def _views(references: dict[str, TensorRef], numbers: Numbers) -> dict[str, Tensor]:
    """Tensors that share a storage in the file share it here."""
    flat: dict[tuple[str, str, int], Tensor] = {}
    tensors = {}
    for name, reference in references.items():
        storage = reference.storage
        identity = (storage.key, storage.kind, storage.size)
        if identity not in flat:
            flat[identity] = numbers(storage)
        values = flat[identity]
        if reference.dtype:
            if reference.dtype not in VIEWS:
                raise ValueError(f"has {name[:200]} of {reference.dtype[:50]}, unknown here")
            dtype = VIEWS[reference.dtype]
            if len(values) % dtype.itemsize:
                raise ValueError(f"has no whole number of values in {name[:200]}")
            values = values.view(torch.uint8).view(dtype) if len(values) else values.to(dtype)
        tensors[name] = _view(name, reference, values)
    return tensors


def _view(name: str, reference: TensorRef, values: Tensor) -> Tensor:
    shape, strides = reference.shape, reference.strides
    count = math.prod(shape)
    last = reference.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=False))
    outside = count > len(values) or (count and last >= len(values))
    if len(shape) != len(strides) or outside or math.prod(max(n, 1) for n in shape) > MAX_VALUES:
        raise ValueError(
            f"has {name[:200]} as {shape} at {reference.offset}, beyond the {len(values):,} "
            "values that are there. Fetch it again"
        )
    return values.as_strided(shape, strides, reference.offset) if count else values.new_empty(shape)


def _bytes(storage: StorageRef) -> int:
    if storage.kind not in DTYPES:
        raise ValueError(f"has numbers of the kind {storage.kind[:50]}, which is not read here")
    return storage.size * DTYPES[storage.kind].itemsize


def _flat(memory: mmap.mmap, start: int, size: int, storage: StorageRef) -> Tensor:
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


def _require_little(archive: Zip, folder: str) -> None:
    if (name := f"{folder}byteorder") in archive.members:
        start, size = place(archive, name)
        if archive.memory[start : start + min(size, 16)] != b"little":
            raise ValueError("was written on a machine with another order of bytes")
