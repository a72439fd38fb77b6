"""Aspect-ratio buckets: batches of one shape each, out of a few shapes of equal area.

Training on square crops cuts off heads and feet, and a model then draws them cut off. So every
picture is assigned to the nearest of a few shapes (NovelAI 2022; arXiv:2307.01952, section 2.3),
resized to cover it, and cropped only by what does not fit.

Dimensions: N pictures, B pictures of a batch, S shapes, H height, W width, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64, UInt8

from triptych.data.disk.table import Table
from triptych.data.order.batches import Batches
from triptych.data.order.permutation import mix, permute, permute_epochs
from triptych.data.source import Columns, Source, SourceInfo
from triptych.runtime import key
from triptych.vision.images import resize_cover

RATIO = 2.0  # of the sides of the most elongated shape


def bucket_shapes(size: int, step: int) -> tuple[tuple[int, int], ...]:
    """Heights and widths of about `size` x `size` pixels whose sides are multiples of `step`.

    For every short side up to `size`, the long side is the multiple that brings the area nearest to
    the square's, up to `RATIO` times the short one; in portrait and in landscape format.

    Raises:
        ValueError: `size` is not a multiple of `step`.
    """
    if size < step or size % step:
        least = max(step, size // step * step)
        raise ValueError(
            f"with buckets the size must be a multiple of {step}, the downsampling factor of "
            f"autoencoder and U-Net: {least} or {least + step}, not {size}"
        )
    shapes = set()
    for short in range(step, size + 1, step):
        long = step * ((2 * size * size + short * step) // (2 * short * step))  # half rounds up
        if long <= RATIO * short:
            shapes |= {(short, long), (long, short)}
    return tuple(sorted(shapes))


def nearest_shapes(
    sizes: Int64[np.ndarray, "N 2"], among: Sequence[tuple[int, int]]
) -> Int64[np.ndarray, " N"]:
    """The index of the shape with the nearest aspect ratio, for each height and width."""
    ratios = np.log(sizes[:, 0] / sizes[:, 1])
    shape_ratios = np.log([height / width for height, width in among])
    nearest: Int64[np.ndarray, " N"] = np.abs(ratios[:, None] - shape_ratios).argmin(1)
    return nearest


@dataclass(frozen=True, eq=False)
class BucketedSource:
    """A `Source` whose pictures are cropped to one of several shapes.

    All indices of one `read` must be in one bucket. The column `sizes` gives the crops.
    """

    table: Table
    shapes: tuple[tuple[int, int], ...]
    buckets: Int64[np.ndarray, " N"]
    """The index of each picture's shape."""

    @property
    def info(self) -> SourceInfo:
        """The shape is that of the square, or of the pictures on disk where all have the same."""
        return self.table.info

    def read(self, indices: Sequence[int]) -> Columns:
        """A picture that cannot be read is replaced by the next one that can, in the shape of the
        bucket. ValueError if no picture of the split can be read.
        """
        buckets = {int(self.buckets[index]) for index in indices}
        assert len(buckets) == 1, "one batch, one bucket"
        height, width = self.shapes[buckets.pop()]
        skipped: dict[str, str] = {}
        stored, rows, channels = self.table.index.stored, self.table.rows, self.info.shape[2]

        def load(index: int) -> UInt8[np.ndarray, "H W C"]:
            picture = stored.load(int(rows[index]), channels, max(height, width))
            return resize_cover(picture, height, width)

        pictures = [self.table.read_next(int(index), load, skipped) for index in indices]
        used = np.array([index for index, _ in pictures], np.int64)
        columns = self.table.columns(np.stack([image for _, image in pictures]), used, skipped)
        before = self.table.index.sizes[self.table.rows[used]].astype(np.int64)
        columns["sizes"] = crop_sizes(before, height, width)
        return columns


def crop_sizes(
    before: Int64[np.ndarray, "B 2"], height: int, width: int
) -> Int64[np.ndarray, "B 6"]:
    """SDXL's size conditioning (the column `sizes`) of pictures that `resize_cover` cropped."""
    scale = np.maximum(height / before[:, 0], width / before[:, 1])[:, None]
    corner = ((before * scale - (height, width)) / 2).round().clip(0).astype(np.int64)
    return np.concatenate([before, corner, np.full_like(before, (height, width))], axis=1)


def assign_buckets(table: Table, among: Sequence[tuple[int, int]]) -> BucketedSource:
    """A source in which every picture has the nearest of these shapes; nothing is decoded."""
    sizes = table.index.sizes[table.rows].astype(np.int64)
    return BucketedSource(table, tuple(among), nearest_shapes(sizes, among))


@dataclass(frozen=True, eq=False)
class BucketPlan:
    """Batches by number, each of one bucket.

    A bucket of n pictures is an endless sequence of epochs, each in another random order. By the
    end of epoch e, counted from 1, it has yielded the first floor(e n / B) batches of it; an
    incomplete batch is completed in the next epoch, so no picture is lost. The batches of an epoch
    come in a random order over all buckets.
    """

    source: Source
    buckets: Int64[np.ndarray, " N"]
    batch_size: int
    seed: int
    rank: int
    ranks: int

    @cached_property
    def members(self) -> dict[int, Int64[np.ndarray, " M"]]:
        """The pictures of each bucket that is not empty."""
        used = np.unique(self.buckets).tolist()
        return {bucket: np.flatnonzero(self.buckets == bucket) for bucket in used}

    @cached_property
    def counts(self) -> Int64[np.ndarray, " S"]:
        """The number of pictures of each of these buckets."""
        return np.array([len(pictures) for pictures in self.members.values()], np.int64)

    def batches_after(self, epochs: int) -> Int64[np.ndarray, " S"]:
        """How many batches each bucket has yielded at the end of an epoch."""
        yielded: Int64[np.ndarray, " S"] = epochs * self.counts // self.batch_size
        return yielded

    def locate(self, number: int) -> tuple[int, int]:
        """The bucket of a batch, and its number within that bucket."""
        number = number * self.ranks + self.rank
        epoch = number * self.batch_size // int(self.counts.sum())
        while int(self.batches_after(epoch + 1).sum()) <= number:
            epoch += 1
        before = self.batches_after(epoch)
        here = self.batches_after(epoch + 1) - before
        at = np.array([number - int(before.sum())], np.int64)
        (place,) = permute(at, int(here.sum()), key(self.seed, "buckets"), epoch).tolist()
        ends = np.cumsum(here)
        which = int(np.searchsorted(ends, place, side="right"))
        within = place - int(ends[which] - here[which])
        return list(self.members)[which], int(before[which]) + within

    def pick(self, number: int) -> tuple[list[int], list[int]]:
        bucket, batch = self.locate(number)
        pictures = self.members[bucket]
        first = batch * self.batch_size
        positions = np.arange(first, first + self.batch_size, dtype=np.int64)
        order = permute_epochs(positions, len(pictures), key(self.seed, "bucket", bucket))
        draws = mix(positions.astype(np.uint64), key(self.seed, "caption", bucket))
        return pictures[order].tolist(), draws.tolist()


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
    """As `batches` in `batches.py`, with every batch from one bucket."""
    if batch_size < 1 or not 0 <= rank < ranks or start < 0 or workers < 0:
        raise ValueError(
            f"no batches are possible with batch size {batch_size}, rank {rank} of {ranks}, start "
            f"{start} and {workers} workers"
        )
    return Batches(BucketPlan(source, buckets, batch_size, seed, rank, ranks), start, workers)
