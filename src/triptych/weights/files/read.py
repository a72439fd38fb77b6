"""Read weights without executing anything, and say what is wrong with a file that holds none.

Whatever the container, tensors come under the names that the file gives them, mapped where that is
possible: opening a large file takes no memory, and a file must not change while its tensors are in
use.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from triptych import atomic
from triptych.config import nearest
from triptych.weights.files.npz import read_npz
from triptych.weights.files.shards import missing_shards, shards
from triptych.weights.files.sniff import WORDS, Container, container
from triptych.weights.files.torch_archive import read_archive, read_legacy


def weights_digest(module: nn.Module) -> str:
    """A name for all weights of a module, to the last bit."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        whole = tensor.detach().to("cpu").contiguous().flatten()
        found.update(whole.view(torch.uint8).numpy().data)
    return found.hexdigest()


MAX_HEADER = 100_000_000  # bytes, the format's own limit
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Types that `read_cast` reads by itself; a file with others is mapped."""


class Header(NamedTuple):
    """What a file of weights says before its numbers."""

    shapes: dict[str, tuple[int, ...]]
    notes: dict[str, str]  # the metadata of safetensors


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of any file of weights, by their names in it.

    Read are safetensors; `model.safetensors.index.json` and the shards beside it; `torch.save` and
    TorchScript files, whose tensors are read and whose programs never run; and NumPy's `.npz`.
    Which of them a file is, its content decides.

    Raises:
        ValueError: what is wrong with the file, or what it is instead, and what to do about it.
    """
    try:
        return _read(path, container(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be opened: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}{_similar(path)}") from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, memory-mapped.

    Raises:
        ValueError: what the file is instead, and what to do about it.
    """
    try:
        found = container(path)
        if found != "safetensors":
            raise ValueError(
                f"is {WORDS[found]}, not safetensors. `triptych weights convert {path.name} "
                "model.safetensors --to safetensors` makes one of it"
            )
        return _read(path, found)
    except OSError as error:
        raise ValueError(f"{path} cannot be opened: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_cast(
    path: Path, dtype: torch.dtype | None, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Tensors of any file of weights, numbers with a fraction in `dtype`; None keeps their own and
    maps them as `read_weights` does.

    A map that was read counts as memory beside what it became. Tensors of safetensors are therefore
    read one by one, and loading takes the memory of the result and of one tensor more. `names`
    are those to read, all of which the file must have; None reads all.

    Raises:
        ValueError: as `read_weights`.
    """
    if dtype is not None:
        try:
            kind = container(path)
            if kind in ("safetensors", "shards"):
                return _cast_parts(path, kind, dtype, names)
        except OSError as error:
            raise ValueError(f"{path} cannot be opened: {error.strerror or error}") from error
        except (LookupError, TypeError) as error:
            raise ValueError(f"{path}: has a broken header. Fetch it again") from error
        except ValueError as error:
            about = "" if str(error).startswith(f"{path}") else f"{path}: "
            raise ValueError(f"{about}{error}{_similar(path)}") from error
    found = read_weights(path)
    return {name: _as(found[name], dtype) for name in (found if names is None else names)}


def read_header(path: Path) -> Header:
    """Names and shapes of the tensors of any file of weights, and its notes; no tensor is read.

    Raises:
        ValueError: what is wrong with the file, or what it is instead, and what to do about it.
    """
    try:
        if container(path) != "safetensors":  # mapped: their numbers stay on the disk
            return Header({name: tuple(x.shape) for name, x in read_weights(path).items()}, {})
        header = _safetensors_header(path)
        notes = header.pop("__metadata__", {})
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in header.items()}
        return Header(shapes, dict(notes) if isinstance(notes, dict) else {})
    except OSError as error:
        raise ValueError(f"{path} cannot be opened: {error.strerror or error}") from error
    except (LookupError, TypeError) as error:
        raise ValueError(f"{path}: has a broken header. Fetch it again") from error
    except ValueError as error:
        about = "" if str(error).startswith(f"{path}") else f"{path}: "
        raise ValueError(f"{about}{error}") from error


def diagnose(path: Path) -> str:
    """Why no weights can be read from a file; empty when they can.

    The places and shapes of all tensors are checked; their values are not looked at.
    """
    try:
        read_weights(path)
    except ValueError as error:
        return str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")
    return ""


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
    """A synced safetensors file, under its own name at once: for folders that are renamed whole.

    Tensors that share memory become separate ones: the format has no other way.

    Raises:
        ValueError: a tensor is of a type that the format does not have.
        OSError: the disk is full or the folder cannot be written.
    """
    apart: dict[str, Tensor] = {}
    used: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        memory = whole.untyped_storage().data_ptr()
        apart[name] = whole.clone() if memory in used else whole
        used.add(memory)
    if odd := [name for name, t in apart.items() if t.dtype == torch.complex128]:
        raise ValueError(f"{odd[0]} is of complex128, for which safetensors has no type")
    path.touch()
    mode = path.stat().st_mode  # the user's umask: the library would make a private file
    try:
        save_file(apart, path, dict(metadata) if metadata else None)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    path.chmod(mode)
    atomic.sync(path)


def _read(path: Path, found: Container) -> dict[str, Tensor]:
    if found == "safetensors":
        return _read_safetensors(path)
    if found == "shards":
        return _read_shards(path)
    if found == "npz":
        return read_npz(path)
    return read_legacy(path) if found == "torch-legacy" else read_archive(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    _safetensors_header(path)
    try:
        return load_file(path)
    except (SafetensorError, KeyError) as error:  # a type that this version does not know
        raise ValueError(f"is damaged: {error}. Fetch it again") from error


def _safetensors_header(path: Path) -> dict[str, Any]:
    """The header, once it agrees with the bytes that are there."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError("does not begin like a safetensors file")
        if size < 8 + length:
            raise ValueError(
                f"has {size} bytes, its header alone needs {8 + length}: it was cut short"
            )
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
            expected = int(8 + length + max(ends, default=0))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ValueError("has a broken header. Fetch it again") from None
    if size != expected:
        raise ValueError(
            f"has {size} bytes instead of {expected}: it was cut short or extended. Fetch it again"
        )
    return header


def _read_shards(index: Path) -> dict[str, Tensor]:
    wanted = shards(index)
    if missing := missing_shards(index):
        raise ValueError(
            f"lacks {len(missing)} of its {len(wanted)} shards: {', '.join(missing[:20])}. Fetch "
            "them into the same folder"
        )
    tensors: dict[str, Tensor] = {}
    for file, names in wanted.items():
        try:
            kind = container(index.parent / file)
            if kind == "shards":
                raise ValueError("is an index itself. Fetch it again")
            found = _read(index.parent / file, kind)
        except ValueError as error:
            raise ValueError(f"its shard {file} {error}") from error
        if absent := [name for name in names if name not in found]:
            raise ValueError(f"its shard {file} lacks {absent[0][:200]}: it is of another model")
        tensors |= {name: found[name] for name in names}
    return tensors


def _cast_parts(
    path: Path, kind: Container, dtype: torch.dtype, names: Collection[str] | None
) -> dict[str, Tensor]:
    """The tensors of one file, or of all shards of an index."""
    if kind == "safetensors":
        return _cast_safetensors(path, dtype, names)
    _read_shards(path)  # maps them: whether all are there and hold what the index says
    tensors: dict[str, Tensor] = {}
    for file, there in shards(path).items():
        wanted = there if names is None else [name for name in there if name in names]
        tensors |= read_cast(path.parent / file, dtype, wanted)
    return tensors


def _cast_safetensors(
    path: Path, dtype: torch.dtype, names: Collection[str] | None
) -> dict[str, Tensor]:
    header = _safetensors_header(path)
    header.pop("__metadata__", None)
    wanted = list(header) if names is None else list(names)
    if any(header[name]["dtype"] not in TYPES for name in wanted):
        found = _read_safetensors(path)
        return {name: _as(found[name], dtype) for name in wanted}
    tensors: dict[str, Tensor] = {}
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        for name in sorted(wanted, key=lambda name: header[name]["data_offsets"][0]):
            begin, end = header[name]["data_offsets"]
            shape, kind = header[name]["shape"], TYPES[header[name]["dtype"]]
            if begin < 0 or min(shape, default=0) < 0:
                raise ValueError("has a broken header. Fetch it again")
            if end - begin != math.prod(shape) * kind.itemsize:
                raise ValueError(
                    f"says that {name[:200]} of shape {shape} has {end - begin} bytes. Fetch it "
                    "again"
                )
            raw = torch.empty(end - begin, dtype=torch.uint8)
            file.seek(start + begin)
            if file.readinto(raw.numpy().data) != end - begin:
                raise ValueError("was cut short while it was read. Fetch it again")
            tensors[name] = _as(raw.view(kind).reshape(shape), dtype)
    return tensors


def _as(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def _similar(path: Path) -> str:
    """The nearest name in the folder of a file that does not exist."""
    if path.exists() or not path.parent.is_dir():
        return ""
    near = nearest(path.name, [other.name for other in path.parent.iterdir()])
    return f".{near}" if near else ""
