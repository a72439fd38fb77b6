"""Pictures near their own shape: a few shapes of as many pixels, and batches of one shape each.

Training on squares alone cuts heads and feet off, and a model then draws them cut off. Every
picture therefore goes to the nearest of a few shapes (aspect-ratio buckets, NovelAI 2022;
arXiv:2307.01952, section 2.3), is resized to cover it, and loses only what does not fit.

Dimensions: N pictures, B pictures of a batch, S shapes, H height, W width, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64, UInt8

from triptych.data.disk.table import Table
from triptych.data.order.batches import Batches, chosen
from triptych.data.order.permutation import mix, permute, walk
from triptych.data.source import Columns, Source, SourceInfo
from triptych.runtime import key
from triptych.vision.images import resize_cover

RATIO = 2.0  # of the longest shape's sides


def shapes(size: int, step: int, ratio: float = RATIO) -> tuple[tuple[int, int], ...]:
    """Heights and widths of about `size` x `size` pixels whose sides are multiples of `step`.

    For every short side up to `size` the long one is the multiple that brings the number of pixels
    nearest; both ways of turning it, up to `ratio`. The square is always among them.

    Raises:
        ValueError: `size` is no multiple of `step`.
    """
    if size < step or size % step:
        least = max(step, size // step * step)
        raise ValueError(
            f"with buckets the size is a multiple of {step}, the pixels that the coarsest place of "
            f"the U-Net covers: {least} or {least + step}, not {size}"
        )
    found = set()
    for short in range(step, size + 1, step):
        long = step * ((2 * size * size + short * step) // (2 * short * step))  # half rounds up
        if long <= ratio * short:
            found |= {(short, long), (long, short)}
    return tuple(sorted(found))


def nearest(
    sizes: Int64[np.ndarray, "N 2"], among: Sequence[tuple[int, int]]
) -> Int64[np.ndarray, " N"]:
    """Which shape each picture of a height and width is nearest to, by the ratio of its sides."""
    ratios = np.log(sizes[:, 0] / sizes[:, 1])
    theirs = np.log([height / width for height, width in among])
    found: Int64[np.ndarray, " N"] = np.abs(ratios[:, None] - theirs).argmin(1)
    return found


@dataclass(frozen=True, eq=False)
class Bucketed:
    """A `Source` (which says what each part means) whose pictures have one of several shapes.

    The indices of one `read` are of one bucket. Every picture says how it was cut (`sizes`).
    """

    table: Table
    shapes: tuple[tuple[int, int], ...]
    buckets: Int64[np.ndarray, " N"]
    """Which of the shapes each picture has."""

    @property
    def info(self) -> SourceInfo:
        """The shape is that of the square, or of the pictures on disk where all have the same."""
        return self.table.info

    def read(self, indices: Sequence[int]) -> Columns:
        """A picture that cannot be read is replaced by the next one that can, in the shape of the
        bucket.

        Raises ValueError where no picture of the split can be read.
        """
        places = {int(self.buckets[index]) for index in indices}
        assert len(places) == 1, "one batch, one bucket"
        height, width = self.shapes[places.pop()]
        skipped: dict[str, str] = {}
        found = [self._next(int(index), (height, width), skipped) for index in indices]
        used = np.array([index for index, _ in found], np.int64)
        columns = self.table.columns(np.stack([image for _, image in found]), used, skipped)
        before = self.table.index.sizes[self.table.rows[used]].astype(np.int64)
        columns["sizes"] = cut(before, height, width)
        return columns

    def _next(
        self, wanted: int, shape: tuple[int, int], skipped: dict[str, str]
    ) -> tuple[int, UInt8[np.ndarray, "H W C"]]:
        index, rows, stored = self.table.index, self.table.rows, self.table.index.stored
        for place in range(wanted, wanted + len(rows)):
            place %= len(rows)
            row = int(rows[place])
            try:
                picture = stored.load(row, self.info.shape[2], max(shape))
            except (ValueError, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                skipped[index.names[row]] = reason or type(error).__name__
                continue
            return place, resize_cover(picture, *shape)
        raise ValueError(
            f"no picture of {self.info.name!r} can be read: {next(iter(skipped.items()))}"
        )


def cut(before: Int64[np.ndarray, "B 2"], height: int, width: int) -> Int64[np.ndarray, "B 6"]:
    """What SDXL's U-Net is told of pictures that `resize_cover` made this high and wide."""
    scale = np.maximum(height / before[:, 0], width / before[:, 1])[:, None]
    corner = ((before * scale - (height, width)) / 2).round().clip(0).astype(np.int64)
    return np.concatenate([before, corner, np.full_like(before, (height, width))], axis=1)


def bucketed(table: Table, among: Sequence[tuple[int, int]]) -> Bucketed:
    """Every picture of a source in the nearest of these shapes; nothing is decoded."""
    sizes = table.index.sizes[table.rows].astype(np.int64)
    return Bucketed(table, tuple(among), nearest(sizes, among))


@dataclass(frozen=True, eq=False)
class BucketPlan:
    """Batches of one bucket each, by number: a map from number to columns, for workers.

    A bucket of n pictures is an endless sequence, every epoch a keyed order of its own. By the end
    of epoch e, counted from 1, it has given the first floor(e n / B) batches of that sequence: what
    is left over stands at the beginning of the next epoch, and nothing is lost. The batches of an
    epoch come in a keyed order over all buckets.
    """

    source: Source
    buckets: Int64[np.ndarray, " N"]
    batch_size: int
    seed: int
    rank: int
    ranks: int

    @cached_property
    def members(self) -> dict[int, Int64[np.ndarray, " M"]]:
        """The pictures of each bucket that has any."""
        found = np.unique(self.buckets).tolist()
        return {bucket: np.flatnonzero(self.buckets == bucket) for bucket in found}

    @cached_property
    def counts(self) -> Int64[np.ndarray, " S"]:
        """How many pictures those buckets have."""
        return np.array([len(pictures) for pictures in self.members.values()], np.int64)

    def given(self, epochs: int) -> Int64[np.ndarray, " S"]:
        """How many batches each bucket has given after so many epochs."""
        given: Int64[np.ndarray, " S"] = epochs * self.counts // self.batch_size
        return given

    def place(self, number: int) -> tuple[int, int]:
        """The bucket of a batch, and which batch of that bucket it is."""
        number = number * self.ranks + self.rank
        epoch = number * self.batch_size // int(self.counts.sum())
        while int(self.given(epoch + 1).sum()) <= number:
            epoch += 1
        before = self.given(epoch)
        here = self.given(epoch + 1) - before
        at = np.array([number - int(before.sum())], np.int64)
        (drawn,) = permute(at, int(here.sum()), key(self.seed, "buckets"), epoch).tolist()
        ends = np.cumsum(here)
        which = int(np.searchsorted(ends, drawn, side="right"))
        within = drawn - int(ends[which] - here[which])
        return list(self.members)[which], int(before[which]) + within

    def __getitem__(self, number: int) -> Columns | str:
        bucket, batch = self.place(number)
        pictures = self.members[bucket]
        first = batch * self.batch_size
        positions = np.arange(first, first + self.batch_size, dtype=np.int64)
        order = walk(positions, len(pictures), key(self.seed, "bucket", bucket))
        try:
            columns = self.source.read(pictures[order].tolist())
        except ValueError as error:
            return str(error)
        if "caption" in columns:
            draws = mix(positions.astype(np.uint64), key(self.seed, "caption", bucket))
            columns["caption"] = chosen(columns["caption"], draws.tolist())
        return columns


def bucket_batches(
    source: Source,
    buckets: Int64[np.ndarray, " N"],
    batch_size: int,
    *,
    seed: int,
    rank: int = 0,
    ranks: int = 1,
    start: int = 0,
    workers: int = 0,
) -> Batches:
    """As `data.batches.batches`, every batch of one bucket."""
    if batch_size < 1 or not 0 <= rank < ranks or start < 0 or workers < 0:
        raise ValueError(
            f"no batches of {batch_size} for rank {rank} of {ranks} from {start}, {workers} workers"
        )
    return Batches(BucketPlan(source, buckets, batch_size, seed, rank, ranks), start, workers)
