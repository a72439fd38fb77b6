"""Pictures for one pass, each in its own size: files, folders, or a labelled source.

Pictures are decoded as the pass reaches them. Those that cannot be read are named and left out.

Dimensions: N pictures, H height, W width, C channels.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from triptych.data.disk.files import is_picture, list_files, reason
from triptych.given import InMemory, is_lost
from triptych.vision.images import open_picture
from triptych.vision.pixels import read_picture

WAITING = 1 << 28  # bytes of decoded pictures after which a batch is full
ENDLESS = 1000  # pictures that are taken of an endless source by default


class Picture(NamedTuple):
    """A picture that is not decoded yet."""

    name: str
    open: Callable[[], UInt8[np.ndarray, "H W 3"]]
    label: int = -1  # an index into the gallery's classes


class Gallery(NamedTuple):
    """Pictures for one pass."""

    pictures: Sequence[Picture]
    classes: tuple[str, ...]  # empty without labels
    skipped: dict[str, str]  # files that cannot be used: name to reason


class Decoded(NamedTuple):
    """The next pictures of a gallery, decoded."""

    sources: Sequence[Picture]
    pictures: Sequence[UInt8[np.ndarray, "H W 3"]]
    skipped: dict[str, str]
    done: float  # the share of the gallery so far, 0 to 1


def list_pictures(paths: Sequence[str], limit: int = 0) -> Gallery:
    """Picture files by path, all those below a folder, and pictures in memory; at most `limit`, 0
    for all.
    """
    pictures: list[Picture] = []
    skipped: dict[str, str] = {}
    for path in paths:
        in_memory = isinstance(path, InMemory) or is_lost(path)
        if not in_memory and not os.path.exists(path):
            skipped[path] = "No such file or directory"
            continue
        if in_memory or not os.path.isdir(path):
            pictures.append(Picture(path, partial(read_picture, "pictures", path, channels=3)))
            continue
        listing = list_files(Path(path))
        skipped |= {f"{path}/{name}": why for name, why in listing.skipped.items()}
        for name, place in listing.files.items():
            if is_picture(name):
                where = str(Path(path) / name)
                pictures.append(Picture(where, partial(open_picture, Path(place.path), channels=3)))
    return Gallery(pictures[: limit or None], (), skipped)


def open_labelled(name: str, split: str = "", limit: int = 0) -> Gallery:
    """The pictures of a source as `data.sources` names them, with their classes.

    An empty `split` is the test split where the data has one, else everything. With `limit` 0 an
    endless source gives a thousand pictures.

    Raises:
        ValueError: there is no such source or split, or it has no classes.
    """
    from triptych.data.disk.splits import holds_out, rows_of
    from triptych.data.names import SCENES
    from triptych.data.sources import open_index, open_source

    if name in SCENES:
        source = open_source(name, split=split or "test")
        _require(source.info.classes, name)
        pictures = []
        for row in range(limit or ENDLESS):
            columns = source.read([row])
            picture = partial(np.asarray, columns["image"][0])
            pictures.append(Picture(f"{name}/{row}", picture, int(columns["label"][0])))
        return Gallery(pictures, source.info.classes, {})
    index = open_index(name)
    labels = index.annotations.labels
    _require(index.annotations.classes, name)
    assert labels is not None  # classes are what labels number
    rows: Sequence[int] = range(len(index))
    if split or holds_out(index.splits):
        rows = rows_of(split or "test", index.names, index.splits).tolist()
    rows = _spread(rows, limit)
    pictures = [
        Picture(index.names[row], partial(index.stored.load, row, 3, None), int(labels[row]))
        for row in rows
    ]
    return Gallery(pictures, index.annotations.classes, dict(index.skipped))


def decode(gallery: Gallery, batch: int) -> Iterator[Decoded]:
    """Decode a gallery in batches of at most this many pictures, fewer if they are large.

    As many threads decode files as torch uses.
    """
    threads = min(torch.get_num_threads(), batch)
    waiting: list[tuple[Picture, UInt8[np.ndarray, "H W 3"]]] = []
    skipped: dict[str, str] = {}
    total = len(gallery.pictures)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, total, threads):
            chunk = gallery.pictures[start : start + threads]
            for source, result in zip(chunk, pool.map(_decode_or_reason, chunk), strict=True):
                if isinstance(result, str):
                    skipped[source.name] = result
                else:
                    waiting.append((source, result))
            end = start + len(chunk)
            size = sum(picture.nbytes for _, picture in waiting)
            if len(waiting) + threads > batch or size > WAITING or end == total:
                yield Decoded(
                    [source for source, _ in waiting], [p for _, p in waiting], skipped, end / total
                )
                waiting, skipped = [], {}


def _decode_or_reason(picture: Picture) -> UInt8[np.ndarray, "H W 3"] | str:
    """The pixels, or why they cannot be read."""
    try:
        return picture.open()
    except (ValueError, OSError) as error:
        return reason(error)


def _spread(rows: Sequence[int], limit: int) -> Sequence[int]:
    """At most `limit` rows, evenly spread: sources are often sorted by class."""
    if not 0 < limit < len(rows):
        return rows
    return [rows[number * len(rows) // limit] for number in range(limit)]


def _require(classes: Sequence[str], name: str) -> None:
    if not classes:
        raise ValueError(
            f"{name!r} has no classes: use a folder whose sub-folders are classes or another "
            "labelled source, or give the classes with --labels"
        )
