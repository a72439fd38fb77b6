"""One split of an `Index` at one picture size: a source to train on.

Dimensions: B pictures, N pictures of the split, H height, W width, C channels.
"""

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from triptych.data.disk.arrays import InMemory
from triptych.data.disk.files import reason
from triptych.data.disk.index import Index, Stored, refuse_unusable
from triptych.data.disk.splits import rows_of
from triptych.data.source import Columns, Source, SourceInfo
from triptych.vision.images import resize_crop


def first_pictures(source: Source, count: int) -> Source:
    """A source of the first `count` pictures of another.

    Raises:
        ValueError: there are fewer.
    """
    info = source.info
    if info.length is not None and count > info.length:
        raise ValueError(
            f"{info.name!r} has only {info.length:,} pictures: {count:,} were requested"
        )
    if isinstance(source, Table):
        return source.subset(range(count))
    return FirstPictures(source, replace(info, length=count))


@dataclass(frozen=True)
class FirstPictures:
    """A `Source` of the first pictures of one that is drawn, not stored."""

    source: Source
    info: SourceInfo

    def read(self, indices: Sequence[int]) -> Columns:
        return self.source.read(indices)


MEMORY = 1 << 30  # bytes of decoded pictures that are kept in memory


class Pictures:
    """Pictures of one shape, decoded on first use and kept in memory if all of them fit.

    The memory is shared with processes forked later, so data workers decode nothing twice.
    """

    def __init__(
        self,
        stored: Stored,
        rows: Int64[np.ndarray, " N"],
        shape: tuple[int, int, int],
        square: bool,
    ):
        self.stored, self.rows, self.shape, self.square = stored, rows, shape, square
        self._keep()

    def _keep(self) -> None:
        count, each = len(self.rows), int(np.prod(self.shape))
        self.kept: UInt8[np.ndarray, "N H W C"] | None = None
        self.filled = np.zeros(count, np.bool_)
        if isinstance(self.stored, InMemory) and self.stored.images.shape[1:] == self.shape:
            first, last = int(self.rows[0]), int(self.rows[-1])
            consecutive = last - first == count - 1  # then a slice will do, without a copy
            self.kept = self.stored.images[first : last + 1] if consecutive else None
            self.filled[:] = consecutive
        if self.kept is None and count * each <= MEMORY:
            # Anonymous memory takes no space until it is written.
            shared = np.frombuffer(mmap.mmap(-1, count * each), np.uint8)
            self.kept = shared.reshape(count, *self.shape)
            self.filled = np.frombuffer(mmap.mmap(-1, count), np.bool_)

    def __getstate__(self) -> dict[str, Any]:  # a spawned worker has a cache of its own
        return {k: v for k, v in self.__dict__.items() if k not in ("kept", "filled")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._keep()

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """One picture. ValueError gives the reason why it cannot be read."""
        if self.kept is not None and self.filled[index]:
            kept: UInt8[np.ndarray, "H W C"] = self.kept[index]
            return kept
        size, _, channels = self.shape
        near = size if self.square else None
        try:
            picture = self.stored.load(int(self.rows[index]), channels, near)
        except OSError as error:
            raise ValueError(error.strerror or type(error).__name__) from None
        if self.square:
            picture = resize_crop(picture, size)
        if picture.shape != self.shape:
            raise ValueError(
                f"{picture.shape[1]} x {picture.shape[0]} pixels, but its header says otherwise"
            )
        if self.kept is not None:
            self.kept[index] = picture
            self.filled[index] = True
        return picture


@dataclass(frozen=True, eq=False)
class Table:
    """A `Source` of stored pictures, made by `select_split`."""

    index: Index
    info: SourceInfo
    rows: Int64[np.ndarray, " N"]
    pictures: Pictures

    def read(self, indices: Sequence[int]) -> Columns:
        """A picture that cannot be read is replaced by the next one that can, with its columns.

        Raises:
            ValueError: no picture of the split can be read.
        """
        kept, rows = self.pictures.kept, np.asarray(indices, np.int64)
        if kept is not None and self.pictures.filled[rows].all():  # usual after the first epoch
            return self.columns(kept[rows], rows, {})
        images = np.empty((len(indices), *self.pictures.shape), np.uint8)
        used, skipped = np.empty(len(indices), np.int64), dict[str, str]()
        for place, start in enumerate(indices):
            used[place], images[place] = self.read_next(
                int(start), self.pictures.__getitem__, skipped
            )
        return self.columns(images, used, skipped)

    def read_next(
        self,
        start: int,
        load: Callable[[int], UInt8[np.ndarray, "H W C"]],
        skipped: dict[str, str],
    ) -> tuple[int, UInt8[np.ndarray, "H W C"]]:
        """The first index from `start` on whose picture can be loaded, and the picture; the others
        are added to `skipped`.

        Raises:
            ValueError: no picture of the split can be loaded.
        """
        length = len(self.rows)
        for index in range(start, start + length):
            try:
                return index % length, load(index % length)
            except (ValueError, OSError) as error:
                skipped[self.index.names[self.rows[index % length]]] = reason(error)
        raise ValueError(
            f"no picture of {self.info.name!r} can be read: {next(iter(skipped.items()))}"
        )

    @property
    def labels(self) -> Int64[np.ndarray, " N"]:
        """The class of every picture. ValueError if the source has no classes."""
        if self.index.annotations.labels is None:
            raise ValueError(f"{self.info.name!r} has no labels")
        labels: Int64[np.ndarray, " N"] = self.index.annotations.labels[self.rows]
        return labels

    def subset(self, indices: Sequence[int]) -> "Table":
        """A source of some of the pictures. Classes keep their numbers."""
        rows = self.rows[np.asarray(indices, np.int64)]
        if not len(rows):
            raise ValueError(f"no pictures are left of {self.info.name!r}")
        pictures = Pictures(self.pictures.stored, rows, self.pictures.shape, self.pictures.square)
        return Table(self.index, replace(self.info, length=len(rows)), rows, pictures)

    def columns(
        self,
        images: UInt8[np.ndarray, "B H W C"],
        indices: Int64[np.ndarray, " B"],
        skipped: dict[str, str],
    ) -> Columns:
        """A batch: pictures, and the annotations of these indices."""
        columns: Columns = {"image": images, "skipped": list(skipped.items())}
        rows, annotations = self.rows[indices], self.index.annotations
        if annotations.labels is not None:
            columns["label"] = annotations.labels[rows]
        if annotations.attribute_values is not None:
            columns["attributes"] = annotations.attribute_values[rows].astype(np.float32)
        if annotations.vector_values is not None:
            columns["vector"] = annotations.vector_values[rows]
        if annotations.captions is not None:
            columns["caption"] = [annotations.captions[row] for row in rows]
        if annotations.boxes is not None and annotations.box_labels is not None:
            columns["boxes"] = [annotations.boxes[row] for row in rows]
            columns["box_labels"] = [list(annotations.box_labels[row]) for row in rows]
        return columns


def select_classes(table: Table, classes: Sequence[int]) -> Table:
    """A source of the pictures of some classes."""
    return table.subset(np.flatnonzero(np.isin(table.labels, classes)).tolist())


def select_split(index: Index, split: str, size: int | None, channels: int | None) -> Table:
    """A split of an index at a picture size.

    Raises:
        ValueError: no such split, size or channels, or too many pictures cannot be used.
    """
    refuse_unusable(index)
    if size is not None and not 1 <= size <= 4096:
        raise ValueError(f"size must be 1 to 4096 pixels, not {size}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), not {channels}")
    rows = rows_of(split, index.names, index.splits)
    if channels is None:  # over all splits, so that train and test agree
        channels = 1 if index.grey.all() else 3
    if size is None:
        if several := several_sizes(index):
            raise ValueError(several)
        height, width = (int(side) for side in index.sizes[0])
    else:
        height = width = size
    pictures = Pictures(index.stored, rows, (height, width, channels), size is not None)
    info = SourceInfo(
        index.name,
        split,
        len(rows),
        pictures.shape,
        classes=index.annotations.classes,
        attributes=index.annotations.attributes,
        vector=index.annotations.vector,
        has_captions=index.annotations.captions is not None,
        asked=index.form.startswith("questions"),
        skipped=index.skipped,
        notes=index.notes,
    )
    return Table(index, info, rows, pictures)


def several_sizes(index: Index) -> str:
    """Why a size must be chosen; empty if all pictures have the same."""
    sizes = np.unique(index.sizes, axis=0)
    if len(sizes) < 2:
        return ""
    (low_h, low_w), (high_h, high_w) = index.sizes.min(0), index.sizes.max(0)
    return (
        f"the pictures of {index.name!r} have {len(sizes):,} different sizes, from "
        f"{low_w} x {low_h} to {high_w} x {high_h}: choose one size with --size"
    )
