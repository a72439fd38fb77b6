"""Data sets in a few files of arrays: MNIST's IDX, CIFAR's binary version, and `.npz`.

CIFAR's "python version" is a pickle. Loading a pickle can run code, so it is refused; the binary
version has the same pictures.

Dimensions: N pictures, H height, W width, C channels.
"""

import gzip
import math
import re
import struct
import tokenize
import zipfile
import zlib
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
NPZ_ERRORS = (
    OSError, EOFError, ValueError, KeyError, SyntaxError, MemoryError,
    zlib.error, zipfile.BadZipFile, tokenize.TokenError,
)  # fmt: skip
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
    except (OSError, EOFError, struct.error, zlib.error, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
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
    classes = tuple(names.read_text("utf-8").split()) if names else ()
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
    """An `.npz` of `images` (`x`) and `labels` (`y`), with or without `_train` and `_test`."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is a single array, not an archive of named arrays")
        with archive:
            names = archive.files
            images = {_split_of(n): _read_npy(archive, n) for n in names if IMAGES.fullmatch(n)}
            labels = {_split_of(n): _read_npy(archive, n) for n in names if LABELS.fullmatch(n)}
    except NPZ_ERRORS as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
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


def _read_npy(archive: Any, name: str) -> NDArray[Any]:
    """One array of an opened `.npz`, its size checked in its header before memory is reserved.

    NumPy alone would reserve whatever a damaged header announces.
    """
    member = name if name in archive.zip.namelist() else f"{name}.npy"
    with archive.zip.open(member) as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
        present = archive.zip.getinfo(member).file_size - file.tell()
    size = math.prod(shape) * dtype.itemsize
    if size > min(present, MAX_BYTES):
        raise ValueError(
            f"the header of {name!r} announces {size:,} bytes, the file has {present:,} (at most "
            f"{MAX_BYTES:,} are read)"
        )
    array: NDArray[Any] = archive[name]
    return array


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
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3):
        raise ValueError(
            f"{name} has pictures of type {array.dtype} and shape {array.shape}: expected uint8, "
            "or floats in [0, 1], of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 "
            "channels"
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
