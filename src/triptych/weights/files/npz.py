"""Tensors of NumPy's `.npz`, such as big_vision publishes for SigLIP, without unpickling.

Arrays keep their names, with slashes. NumPy has no bfloat16: JAX saves it as two bytes of no type
(`V2`), which is read as bfloat16 here. `numpy.load` is not used, because it maps single `.npy`
files only: the members of an archive it reads into memory.
"""

import io
import math
import zlib
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipInfo

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from triptych.weights.files.shapes import MAX_TENSORS, read_shape
from triptych.weights.files.zip_archive import Zip, find_data

MAX_HEADER = 10_000  # bytes, NumPy's own limit
UNPACKED = 1 << 30  # bytes that compressed arrays may unpack to, or
RATIO = 20  # times the size of the file, whichever is more


def is_npz(archive: Zip) -> bool:
    """Whether a zip archive holds arrays and nothing else."""
    return bool(archive.members) and all(name.endswith(".npy") for name in archive.members)


def read_npz(archive: Zip) -> dict[str, Tensor]:
    """The arrays of an archive, mapped where they are uncompressed. Errors do not name the file.

    Raises:
        ValueError: it is damaged, or it has arrays of Python objects or of text.
    """
    if not archive.members:
        raise ValueError("is an archive without arrays")
    if len(archive.members) > MAX_TENSORS:
        raise ValueError(
            f"has {len(archive.members):,} arrays; weights have at most {MAX_TENSORS:,}"
        )
    room = max(UNPACKED, RATIO * len(archive.memory))
    packed = sum(m.file_size for m in archive.members.values() if m.compress_type != ZIP_STORED)
    if packed > room:
        raise ValueError(
            f"announces {packed:,} unpacked bytes in {len(archive.memory):,}: refused. Save it "
            "again with numpy.savez, which does not compress"
        )
    tensors = {}
    for name, member in archive.members.items():
        try:
            tensors[name.removesuffix(".npy")] = _tensor(archive, member)
        except ValueError as error:
            raise ValueError(f"array {name[:200]}: {error}") from error
    return tensors


def _tensor(archive: Zip, member: ZipInfo) -> Tensor:
    start, memory = find_data(archive, member), archive.memory
    unpacked: bytearray | None = None
    if member.compress_type == ZIP_DEFLATED:
        unpacked = _unpack(memory[start : start + member.compress_size], member.file_size)
        head, start = bytes(unpacked[: MAX_HEADER + 12]), 0
    elif member.compress_type == ZIP_STORED and member.file_size == member.compress_size:
        head = memory[start : start + min(member.file_size, MAX_HEADER + 12)]
    else:
        raise ValueError("is packed in an unknown way. Save it again with numpy.savez")
    shape, fortran, dtype, skip = _header(head)
    count = math.prod(shape)
    if skip + count * dtype.itemsize != member.file_size:
        raise ValueError(
            f"has {member.file_size - skip:,} bytes instead of {count * dtype.itemsize:,} for "
            f"{shape}. Fetch it again"
        )
    source: Any = memory if unpacked is None else unpacked  # a mapped array is a view of the file
    array = np.frombuffer(source, dtype, count, start + skip) if count else np.empty(0, dtype)
    if dtype.kind == "V":
        flat = _torch(array.view(np.int16)).view(torch.bfloat16)
    elif dtype.byteorder == ">":
        flat = _torch(array.astype(dtype.newbyteorder("=")))
    else:
        flat = _torch(array)
    if fortran:
        return flat.reshape(shape[::-1]).permute(*reversed(range(len(shape))))
    return flat.reshape(shape)


def _torch(array: "np.ndarray[Any, Any]") -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _header(head: bytes) -> tuple[tuple[int, ...], bool, "np.dtype[Any]", int]:
    stream = io.BytesIO(head)
    try:
        version = npy.read_magic(stream)
        if version == (1, 0):
            header = npy.read_array_header_1_0(stream, MAX_HEADER)
        else:
            header = npy.read_array_header_2_0(stream, MAX_HEADER)
    except Exception as error:  # of many kinds, since the header is a Python literal
        raise ValueError("has a damaged header. Fetch it again") from error
    shape, fortran, dtype = header
    bfloat16 = dtype.kind == "V" and dtype.itemsize == 2 and not dtype.names and not dtype.shape
    if dtype.hasobject:
        raise ValueError(
            "holds Python objects, and unpickling them would execute code: never done here"
        )
    if not bfloat16 and (dtype.kind not in "biufc" or dtype.itemsize > 16 or dtype.names):
        raise ValueError(f"holds {str(dtype)[:50]}, which is no tensor")
    if str(dtype) in ("float128", "complex256", "longdouble") or dtype.itemsize > 16:
        raise ValueError(f"holds {dtype}, which torch has no type for")
    return read_shape(shape), fortran, dtype, stream.tell()


def _unpack(data: bytes, size: int) -> bytearray:
    engine = zlib.decompressobj(-15)
    try:
        unpacked = bytearray(engine.decompress(data, size + 1))
    except (zlib.error, MemoryError) as error:
        raise ValueError(f"cannot be unpacked: {error}. Fetch it again") from error
    if len(unpacked) != size:
        raise ValueError(f"unpacks to {len(unpacked):,} bytes instead of {size:,}")
    return unpacked
