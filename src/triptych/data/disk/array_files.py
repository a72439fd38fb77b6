"""Data sets that come as a few files of arrays: MNIST's IDX, CIFAR's binary form, and `.npz`.

CIFAR's other form, the "python version", is a pickle. Reading a pickle can run any program that its
author put there, so it is refused; the binary form has the same pictures.

Dimensions: N pictures, H height, W width, C channels.
"""

import gzip
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

from triptych.data.disk.arrays import Part, array_index
from triptych.data.disk.index import Index
from triptych.data.disk.splits import canonical, split_in_name

MAX_BYTES = 8 << 30  # of one array
IDX_FILE = re.compile(r"(?P<of>.*)(?P<what>images|labels)[-.]idx\d[-.]ubyte(\.gz)?", re.I)
CIFAR_FILE = re.compile(r"(data_batch(_\d+)?|test_batch|train|test)(\.bin)?")
SPLIT = r"(?:train|training|test|val|valid|validation)"
IMAGES = re.compile(rf"({SPLIT}_)?(x|images?|data|arr_0)(_{SPLIT})?", re.I)
LABELS = re.compile(rf"({SPLIT}_)?(y|labels?|targets?|arr_1)(_{SPLIT})?", re.I)


def array_folder(folder: Path) -> Index | None:
    """A folder with MNIST's or CIFAR's files; None where it is not one of them."""
    files = {path.name: path for path in sorted(folder.iterdir()) if _inside(path, folder)}
    return idx_index(folder.name, files) or cifar_index(folder.name, files)


def idx_index(name: str, files: Mapping[str, Path]) -> Index | None:
    """MNIST's form (yann.lecun.com/exdb/mnist): files of images and labels, unpacked or `.gz`."""
    found: dict[str, dict[str, Path]] = {}
    for file, path in files.items():  # sorted: an unpacked file comes before its .gz
        if match := IDX_FILE.fullmatch(file):
            found.setdefault(match["of"], {}).setdefault(match["what"].lower(), path)
    if not found:
        return None
    parts = []
    for prefix, pair in found.items():
        if "images" not in pair:
            raise ValueError(f"{pair['labels'].name} has no file of images beside it")
        images = read_idx(pair["images"])
        if images.ndim not in (3, 4):
            raise ValueError(f"{pair['images'].name} has the shape {images.shape}: no pictures")
        labels = read_idx(pair["labels"]) if "labels" in pair else None
        images = _as_pictures(images, pair["images"].name)
        parts.append(Part(split_in_name(prefix), images, _as_labels(labels, images, prefix)))
    _one_part_a_split(name, parts)
    return array_index(name, "IDX arrays", parts)


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """An IDX file of bytes, `.gz` or not. Raises ValueError where it is damaged."""
    try:
        with cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            zeros, kind, rank = struct.unpack(">HBB", file.read(4))
            if zeros or kind != 8 or not 1 <= rank <= 4:
                raise ValueError("not an IDX file of bytes")
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            size = int(np.prod(shape, dtype=object))
            if size > MAX_BYTES:
                raise ValueError(f"it announces {size:,} bytes, more than {MAX_BYTES:,}")
            data = file.read(size + 1)
    except (OSError, EOFError, struct.error, zlib.error, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    if len(data) != size:
        held = "more" if len(data) > size else f"only {len(data):,}"
        raise ValueError(f"{path.name} announces {size:,} bytes and holds {held}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def cifar_index(name: str, files: Mapping[str, Path]) -> Index | None:
    """CIFAR-10 and CIFAR-100, binary version (www.cs.toronto.edu/~kriz/cifar.html)."""
    batches = {file: path for file, path in files.items() if CIFAR_FILE.fullmatch(file)}
    if pickled := [file for file in batches if not file.endswith(".bin")]:
        if not {"batches.meta", "meta"} & files.keys():
            return None
        raise ValueError(
            f"{name!r} is the python version of CIFAR ({pickled[0]}): pickles can run programs and "
            "are never opened. Get the binary version, with files such as data_batch_1.bin"
        )
    if not batches:
        return None
    hundred = "train.bin" in batches or "test.bin" in batches
    names = files.get("fine_label_names.txt" if hundred else "batches.meta.txt")
    classes = tuple(names.read_text("utf-8").split()) if names else ()
    found: dict[str, list[NDArray[np.uint8]]] = {}
    for file, path in batches.items():
        data = np.fromfile(path, np.uint8)
        record = 3072 + 1 + hundred  # CIFAR-100: the coarse label comes before the fine one
        if not len(data) or len(data) % record:
            raise ValueError(f"{file} has {len(data):,} bytes, no whole number of {record}")
        split = "test" if file.startswith("test") else "train"
        found.setdefault(split, []).append(data.reshape(-1, record))
    parts = []
    for split, records in found.items():
        rows = np.concatenate(records)
        pictures = rows[:, -3072:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = rows[:, -3073].astype(np.int64)
        parts.append(Part(split, np.ascontiguousarray(pictures), labels))
    return array_index(name, "CIFAR arrays", parts, classes)


def npz_index(path: Path) -> Index:
    """An `.npz` of `images` (`x`) and `labels` (`y`), with `_train` and `_test` or without."""
    try:
        with zipfile.ZipFile(path) as archive:
            largest = max((member.file_size for member in archive.infolist()), default=0)
        if largest > MAX_BYTES:
            raise ValueError(f"an array of {largest:,} bytes, more than {MAX_BYTES:,}")
        with np.load(path, allow_pickle=False) as archive:
            images = {_split_of(n): archive[n] for n in archive.files if IMAGES.fullmatch(n)}
            labels = {_split_of(n): archive[n] for n in archive.files if LABELS.fullmatch(n)}
            there = ", ".join(archive.files)
    except (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    if not images:
        raise ValueError(
            f"{path.name} holds {there or 'nothing'}: name the pictures `images` or `x`, with "
            "`_train` and `_test` where there are both, and the classes `labels` or `y`"
        )
    parts = []
    for split, array in images.items():
        pictures = _as_pictures(array, path.name)
        parts.append(Part(split, pictures, _as_labels(labels.get(split), pictures, path.name)))
    return array_index(path.stem, "npz arrays", parts)


def _split_of(name: str) -> str:
    words = name.split("_")
    return canonical(next((w for w in words if re.fullmatch(SPLIT, w, re.I)), ""))


def _as_pictures(array: NDArray[np.generic], name: str) -> UInt8[np.ndarray, "N H W C"]:
    """Bytes, or floats in [0, 1]; channels last, first, or none."""
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
            f"{name} has pictures of {array.dtype} {array.shape}: expected bytes, or floats in "
            "[0, 1], as (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels"
        )
    return array


def _as_labels(
    array: NDArray[np.generic] | None, images: UInt8[np.ndarray, "N H W C"], name: str
) -> Int64[np.ndarray, " N"] | None:
    if array is None:
        return None
    if array.size == len(images) and np.issubdtype(array.dtype, np.integer):
        return array.reshape(-1).astype(np.int64)
    raise ValueError(
        f"{name} has labels of {array.dtype} {array.shape} for {len(images):,} pictures: "
        "expected one whole number each"
    )


def _one_part_a_split(name: str, parts: list[Part]) -> None:
    splits = [part.split for part in parts]
    if len(set(splits)) < len(splits):
        raise ValueError(f"{name!r} holds several data sets: keep one a folder")


def _inside(path: Path, folder: Path) -> bool:
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())
