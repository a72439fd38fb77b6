"""Data sets in a few files of arrays: MNIST's IDX, CIFAR's binary version, and `.npz`.

CIFAR's "python version" is a pickle. Loading a pickle can run code, so it is refused; the binary
version has the same pictures.

Dimensions: N pictures, H height, W width, C channels.
"""

import gzip
import math
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.lib import format as npy
from numpy.typing import NDArray

from triptych.data.disk.arrays import Part, array_index
from triptych.data.disk.index import Index
from triptych.data.disk.splits import canonical, split_in_name

MAX_BYTES = 8 << 30  # of one array
IDX_FILE = re.compile(r"(?P<prefix>.*)(?P<content>images|labels)[-.]idx\d[-.]ubyte(\.gz)?", re.I)
CIFAR_FILE = re.compile(r"(data_batch(_\d+)?|test_batch|train|test)(\.bin)?")
SPLIT = r"(?:train|training|test|val|valid|validation)"
IMAGES = re.compile(rf"({SPLIT}_)?(x|images?|data|arr_0)(_{SPLIT})?", re.I)
LABELS = re.compile(rf"({SPLIT}_)?(y|labels?|targets?|arr_1)(_{SPLIT})?", re.I)


def array_folder(folder: Path) -> Index | None:
    """The index of a folder with MNIST's or CIFAR's files; None for any other folder."""
    files = {path.name: path for path in sorted(folder.iterdir()) if _inside(path, folder)}
    return idx_index(folder.name, files) or cifar_index(folder.name, files)


def idx_index(name: str, files: Mapping[str, Path]) -> Index | None:
    """MNIST's format (yann.lecun.com/exdb/mnist): files of images and of labels, plain or `.gz`."""
    pairs: dict[str, dict[str, Path]] = {}
    for file, path in files.items():  # sorted: a plain file comes before its .gz
        if match := IDX_FILE.fullmatch(file):
            pairs.setdefault(match["prefix"], {}).setdefault(match["content"].lower(), path)
    if not pairs:
        return None
    parts = []
    for prefix, pair in pairs.items():
        if "images" not in pair:
            raise ValueError(f"{pair['labels'].name} has no file of images beside it")
        images = read_idx(pair["images"])
        if images.ndim not in (3, 4):
            raise ValueError(
                f"{pair['images'].name} has the shape {images.shape}, which is not that of pictures"
            )
        labels = read_idx(pair["labels"]) if "labels" in pair else None
        images = _to_pictures(images, pair["images"].name)
        parts.append(Part(split_in_name(prefix), images, _to_labels(labels, images, prefix)))
    _require_distinct_splits(name, parts)
    return array_index(name, "IDX arrays", parts)


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """The array of an IDX file of bytes, plain or `.gz`. ValueError if it is damaged."""
    try:
        with cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            zeros, kind, rank = struct.unpack(">HBB", file.read(4))
            if zeros or kind != 8 or not 1 <= rank <= 4:
                raise ValueError("not an IDX file of bytes")
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            size = int(np.prod(shape, dtype=object))
            if size > MAX_BYTES:
                raise ValueError(f"its header announces {size:,} bytes, more than {MAX_BYTES:,}")
            data = file.read(size + 1)
    except Exception as error:  # from gzip, zlib and struct too
        raise ValueError(f"{path.name} cannot be read: {_reason(error)}") from None
    if len(data) != size:
        present = "more" if len(data) > size else f"only {len(data):,}"
        raise ValueError(
            f"the header of {path.name} announces {size:,} bytes, the file has {present}: "
            "download it again"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def cifar_index(name: str, files: Mapping[str, Path]) -> Index | None:
    """CIFAR-10 and CIFAR-100, binary version (www.cs.toronto.edu/~kriz/cifar.html)."""
    batches = {file: path for file, path in files.items() if CIFAR_FILE.fullmatch(file)}
    if pickled := [file for file in batches if not file.endswith(".bin")]:
        if not {"batches.meta", "meta"} & files.keys():
            return None
        raise ValueError(
            f"{name!r} is the python version of CIFAR ({pickled[0]}): pickles can run code and are "
            "never opened. Download the binary version, with files such as data_batch_1.bin"
        )
    if not batches:
        return None
    hundred = "train.bin" in batches or "test.bin" in batches
    names = files.get("fine_label_names.txt" if hundred else "batches.meta.txt")
    try:
        classes = tuple(names.read_text("utf-8").split()) if names else ()
    except UnicodeDecodeError:
        raise ValueError(f"the names of the classes of {name!r} are not UTF-8") from None
    records: dict[str, list[NDArray[np.uint8]]] = {}
    for file, path in batches.items():
        data = np.fromfile(path, np.uint8)
        record = 3072 + 1 + hundred  # CIFAR-100: the coarse label comes before the fine one
        if not len(data) or len(data) % record:
            raise ValueError(
                f"{file} has {len(data):,} bytes, not a multiple of {record}: download it again"
            )
        split = "test" if file.startswith("test") else "train"
        records.setdefault(split, []).append(data.reshape(-1, record))
    parts = []
    for split, arrays in records.items():
        rows = np.concatenate(arrays)
        pictures = rows[:, -3072:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = rows[:, -3073].astype(np.int64)
        parts.append(Part(split, np.ascontiguousarray(pictures), labels))
    return array_index(name, "CIFAR arrays", parts, classes)


def npz_index(path: Path) -> Index:
    """An `.npz` of `images` (`x`) and `labels` (`y`), with or without `_train` and `_test`.

    Raises:
        ValueError: it is damaged, has no pictures, or two arrays of them for one split.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                raise ValueError("it is a single array, not an archive of named arrays")
            with zipfile.ZipFile(file) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                images = _arrays_by_split(archive, IMAGES)
                labels = _arrays_by_split(archive, LABELS)
    except Exception as error:  # a dozen kinds, from zipfile, zlib and NumPy
        raise ValueError(f"{path.name} cannot be read: {_reason(error)}") from None
    if not images:
        raise ValueError(
            f"{path.name} has no array of pictures, only {', '.join(names) or 'an empty list'}: "
            "call the pictures `images` or `x` and their classes `labels` or `y`, with `_train` "
            "and `_test` appended where it has two splits"
        )
    parts = []
    for split, array in images.items():
        pictures = _to_pictures(array, path.name)
        parts.append(Part(split, pictures, _to_labels(labels.get(split), pictures, path.name)))
    return array_index(path.stem, "npz arrays", parts)


def _arrays_by_split(archive: zipfile.ZipFile, pattern: re.Pattern[str]) -> dict[str, NDArray[Any]]:
    """The arrays whose names fit the pattern."""
    found: dict[str, NDArray[Any]] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if pattern.fullmatch(name):
            if _split_of(name) in found:
                raise ValueError(f"{name!r} is the second such array of one split: leave out one")
            found[_split_of(name)] = _read_npy(archive, member, name)
    return found


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> NDArray[Any]:
    """One array, its size checked in its header before memory is reserved.

    NumPy alone would reserve whatever a damaged header announces.
    """
    with archive.open(member) as file:
        try:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if dtype.hasobject or any(type(side) is not int or side < 0 for side in shape):
                raise ValueError
        except Exception:  # also from Python's own parser
            raise ValueError(f"{name!r} is not an array in NumPy's format") from None
        present = member.file_size - file.tell()
        size = math.prod(shape) * dtype.itemsize
        if size > min(present, MAX_BYTES) or not size:
            raise ValueError(
                f"the header of {name!r} announces {size:,} bytes, the file has {present:,} (at "
                f"most {MAX_BYTES:,} are read)"
            )
        data = file.read(size)
    if len(data) < size:
        raise ValueError(f"{name!r} has {len(data):,} bytes instead of {size:,}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _reason(error: Exception) -> str:
    """Why a file of arrays cannot be read, as one phrase."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    text = " ".join(str(error).split())[:200]
    if type(error) is ValueError and text:
        return text
    return f"damaged ({text or type(error).__name__})"


def _split_of(name: str) -> str:
    words = name.split("_")
    return canonical(next((w for w in words if re.fullmatch(SPLIT, w, re.I)), ""))


def _to_pictures(array: NDArray[np.generic], name: str) -> UInt8[np.ndarray, "N H W C"]:
    """Pictures from bytes or from floats in [0, 1]; channels last, first, or none."""
    if array.dtype == bool or (
        np.issubdtype(array.dtype, np.floating)
        and array.size
        and float(np.min(array)) >= 0  # type: ignore[arg-type]
        and float(np.max(array)) <= 1  # type: ignore[arg-type]
    ):
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    pixels = array.ndim == 4 and array.shape[3] in (1, 3) and min(array.shape[1:3]) > 0
    if array.dtype != np.uint8 or not pixels:
        raise ValueError(
            f"{name} has pictures of type {array.dtype} and shape {array.shape}: expected uint8, "
            "or floats in [0, 1], of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 "
            "channels and at least one pixel"
        )
    return array


def _to_labels(
    array: NDArray[np.generic] | None, images: UInt8[np.ndarray, "N H W C"], name: str
) -> Int64[np.ndarray, " N"] | None:
    if array is None:
        return None
    if array.size == len(images) and np.issubdtype(array.dtype, np.integer):
        return array.reshape(-1).astype(np.int64)
    raise ValueError(
        f"{name} has labels of type {array.dtype} and shape {array.shape} for {len(images):,} "
        "pictures: expected one whole number for each picture"
    )


def _require_distinct_splits(name: str, parts: list[Part]) -> None:
    splits = [part.split for part in parts]
    if len(set(splits)) < len(splits):
        raise ValueError(f"{name!r} contains several data sets: keep each in its own folder")


def _inside(path: Path, folder: Path) -> bool:
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())
