"""Pictures that are looked at once, each in its own size: files, folders, or a labelled source.

Nothing is decoded before its turn. What cannot be read is named and left out.

Dimensions: N pictures, H height, W width, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from triptych.data.disk.files import is_picture, walk
from triptych.vision.images import open_picture

WAITING = 1 << 28  # bytes of decoded pictures that may wait for a batch to fill
ENDLESS = 1000  # pictures that are taken of a source without an end


class Unread(NamedTuple):
    """A picture that has not been decoded yet."""

    name: str
    open: Callable[[], UInt8[np.ndarray, "H W 3"]]
    label: int = -1  # an index into the gallery's classes


class Gallery(NamedTuple):
    """Pictures to look at."""

    pictures: Sequence[Unread]
    classes: tuple[str, ...]  # empty where nothing is said of the pictures
    skipped: dict[str, str]  # files that are no pictures one can read, with the reason


class Opened(NamedTuple):
    """The next pictures of a gallery, decoded."""

    unread: Sequence[Unread]
    pictures: Sequence[UInt8[np.ndarray, "H W 3"]]
    skipped: dict[str, str]
    done: float  # the share of the gallery that was looked at


def files(paths: Sequence[str], limit: int = 0) -> Gallery:
    """Picture files by their paths; a folder stands for all below it. `limit` 0 is all of them."""
    pictures: list[Unread] = []
    skipped: dict[str, str] = {}
    for path in paths:
        if not Path(path).is_dir():
            pictures.append(Unread(path, partial(open_picture, Path(path), channels=3)))
            continue
        listing = walk(Path(path))
        skipped |= {f"{path}/{name}": why for name, why in listing.skipped.items()}
        for name, place in listing.files.items():
            if is_picture(name):
                where = str(Path(path) / name)
                opened = partial(open_picture, Path(place.path), channels=3)
                pictures.append(Unread(where, opened))
    return Gallery(pictures[: limit or None], (), skipped)


def labelled(name: str, split: str = "", limit: int = 0) -> Gallery:
    """The pictures of a source as `data.sources` names them, with their classes.

    An empty `split` is `test` where the source sets one aside, else everything. Of an endless
    source the first thousand are taken where `limit` says nothing.

    Raises:
        ValueError: there is no such source or split, or it has no classes.
    """
    from triptych.data.disk.splits import holds_out, rows_of
    from triptych.data.sources import SCENES, open_index, open_source

    if name in SCENES:
        source = open_source(name, split=split or "test")
        _require(source.info.classes, name)
        found = []
        for row in range(limit or ENDLESS):
            columns = source.read([row])
            opened = partial(np.asarray, columns["image"][0])
            found.append(Unread(f"{name}/{row}", opened, int(columns["label"][0])))
        return Gallery(found, source.info.classes, {})
    index = open_index(name)
    labels = index.annotations.labels
    _require(index.annotations.classes, name)
    assert labels is not None  # classes are what labels number
    rows: Sequence[int] = range(len(index))
    if split or holds_out(index.splits):
        rows = rows_of(split or "test", index.names, index.splits).tolist()
    rows = _spread(rows, limit)
    pictures = [
        Unread(index.names[row], partial(index.stored.load, row, 3, None), int(labels[row]))
        for row in rows
    ]
    return Gallery(pictures, index.annotations.classes, dict(index.skipped))


def opened(gallery: Gallery, batch: int) -> Iterator[Opened]:
    """Decode a gallery in about as many pictures at a time, fewer where they are large.

    Files are decoded in as many threads as torch has.
    """
    threads = min(torch.get_num_threads(), batch)
    waiting: list[tuple[Unread, UInt8[np.ndarray, "H W 3"]]] = []
    skipped: dict[str, str] = {}
    total = len(gallery.pictures)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, total, threads):
            chunk = gallery.pictures[start : start + threads]
            for unread, got in zip(chunk, pool.map(_attempt, chunk), strict=True):
                if isinstance(got, str):
                    skipped[unread.name] = got
                else:
                    waiting.append((unread, got))
            end = start + len(chunk)
            size = sum(picture.nbytes for _, picture in waiting)
            if len(waiting) + threads > batch or size > WAITING or end == total:
                yield Opened(
                    [unread for unread, _ in waiting], [p for _, p in waiting], skipped, end / total
                )
                waiting, skipped = [], {}


def _attempt(unread: Unread) -> UInt8[np.ndarray, "H W 3"] | str:
    """The picture, or why there is none."""
    try:
        return unread.open()
    except ValueError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _spread(rows: Sequence[int], limit: int) -> Sequence[int]:
    """So many of the rows, evenly over all of them: sources are often sorted by class."""
    if not 0 < limit < len(rows):
        return rows
    return [rows[number * len(rows) // limit] for number in range(limit)]


def _require(classes: Sequence[str], name: str) -> None:
    if not classes:
        raise ValueError(
            f"{name!r} has no classes: give a folder whose sub-folders are classes, or another "
            "labelled source, or say with --labels what the pictures may show"
        )
