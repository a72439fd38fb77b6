"""Endless batches whose content is a function of (seed, rank, number), whoever computes them.

Batch `k` of rank `r` holds the positions from `(k * ranks + r) * batch_size` on of one endless
sequence: every epoch a keyed random order of the source, or 0, 1, 2, ... of an endless source. So a
run resumes at any batch at no cost, and worker processes only change the speed.

Dimensions: B pictures, C channels, H height, W width.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from triptych.atomic import replace_file
from triptych.data.captions import texts_at
from triptych.data.disk.index import refuse_if_many
from triptych.data.order.alike import PLAIN
from triptych.data.order.alike import alike as alike_order
from triptych.data.order.permutation import mix, walk
from triptych.data.source import Columns, Source
from triptych.runtime import key

Batch = dict[str, Any]
"""`image` float32 (B, C, H, W) in [-1, 1] and, where the source has them: `label` int64 (B,),
`attributes` float32 (B, A), `vector` float32 (B, V), `sizes` int64 (B, 6), `caption` list of B
strings. Of a cache of latents `mean` and `deviation` float32 (B, Z, h, w) in place of `image`."""


@dataclass(frozen=True)
class Plan:
    """Which positions a batch has and what is there: a map from number to columns, for workers."""

    source: Source
    batch_size: int
    seed: int
    rank: int
    ranks: int
    pool: int = 1
    """Batches among which pictures of like texts are brought together; 1 leaves them alone."""
    latest: dict[int, Int64[np.ndarray, " P"]] = field(default_factory=dict, compare=False)
    """The positions of the pool last asked for, in their order."""

    def positions(self, number: int) -> Int64[np.ndarray, " B"]:
        if self.pool == 1:
            first = (number * self.ranks + self.rank) * self.batch_size
            return np.arange(first, first + self.batch_size, dtype=np.int64)
        pool, within = divmod(number, self.pool)
        if pool not in self.latest:
            self.latest.clear()
            self.latest[pool] = self._together(pool)
        return self.latest[pool][within * self.batch_size : (within + 1) * self.batch_size]

    def _together(self, pool: int) -> Int64[np.ndarray, " P"]:
        """A pool's positions, those of like texts in one batch, its batches in a random order.

        Batches are those of all ranks together; of each this rank keeps its share.
        """
        whole = self.batch_size * self.ranks
        positions = np.arange(pool * self.pool * whole, (pool + 1) * self.pool * whole)
        if pool % PLAIN != PLAIN - 1:
            texts = texts_at(self.source, self._indices(positions).tolist(), self.draws(positions))
            drawn = key(self.seed, "alike", 0, pool)
            positions = positions[alike_order(texts, drawn)].reshape(self.pool, whole)
            positions = positions[np.argsort(mix(np.arange(self.pool, dtype=np.uint64), drawn))]
        shares = positions.reshape(self.pool, self.ranks, self.batch_size)
        own: Int64[np.ndarray, " P"] = shares[:, self.rank].reshape(-1)
        return own

    def draws(self, positions: Int64[np.ndarray, " B"]) -> list[int]:
        """Which of several captions each position takes."""
        drawn: list[int] = mix(positions.astype(np.uint64), key(self.seed, "caption")).tolist()
        return drawn

    def indices(self, number: int) -> Int64[np.ndarray, " B"]:
        return self._indices(self.positions(number))

    def _indices(self, positions: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
        length = self.source.info.length
        if length is None:
            return positions
        return walk(positions, length, self.seed)

    def __getitem__(self, number: int) -> Columns | str:
        """An error is returned as text: raised in a worker, it would arrive with a traceback."""
        try:
            columns = self.source.read(self.indices(number).tolist())
        except ValueError as error:
            return str(error)
        if "caption" in columns:
            columns["caption"] = chosen(columns["caption"], self.draws(self.positions(number)))
        return columns


class Numbered(Protocol):
    """A plan: batches by their number. An error is returned as text."""

    @property
    def source(self) -> Source:
        """What the batches are of."""

    def __getitem__(self, number: int) -> Columns | str:
        """One batch."""


class Batches:
    """An iterator of batches that remembers which pictures could not be read."""

    def __init__(self, plan: Numbered, start: int, workers: int):
        self.skipped: dict[str, str] = dict(plan.source.info.skipped)  # name: reason
        self._plan = plan
        self._refused = len(self.skipped)  # before any was read
        numbers = itertools.count(start)
        self._columns: Iterator[Columns | str] = map(plan.__getitem__, numbers)
        if workers:
            loader: DataLoader[Columns | str] = DataLoader(
                plan,  # type: ignore[arg-type]
                batch_size=None,
                sampler=numbers,  # type: ignore[arg-type]
                num_workers=workers,
                collate_fn=_as_it_is,  # type: ignore[arg-type]
                generator=torch.Generator(),  # else starting it would draw from the global one
            )
            self._columns = iter(loader)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        try:
            columns = next(self._columns)
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise RuntimeError(
                "a process that reads data died: killed, or out of memory? Everything saved is "
                f"intact; continue with fewer --workers ({error})"
            ) from error
        if isinstance(columns, str):
            raise ValueError(columns)
        if columns.get("skipped"):
            self.skipped.update(columns["skipped"])
            info = self._plan.source.info
            if info.length is not None:
                refuse_if_many(self.skipped, info.length + self._refused, info.name)
        return to_batch(columns)


def batches(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    rank: int = 0,
    ranks: int = 1,
    start: int = 0,
    workers: int = 0,
    alike: int = 1,
) -> Batches:
    """Batches from number `start` on, without an end.

    `rank` of `ranks` trainers gets its share of every global batch. `workers` processes read ahead;
    the batches are the same for any number of them. `alike` above 1 brings pictures of like texts
    together among so many batches (`data/alike.py`). `.skipped` of the result names the pictures
    that could not be read so far; above a tenth of the source the iterator raises ValueError.
    """
    if batch_size < 1 or not 0 <= rank < ranks or start < 0 or workers < 0 or alike < 1:
        raise ValueError(
            f"no batches of {batch_size} for rank {rank} of {ranks} from {start}, {workers} "
            f"workers, alike in pools of {alike}"
        )
    return Batches(Plan(source, batch_size, seed, rank, ranks, alike), start, workers)


def take(source: Source, indices: Sequence[int]) -> Batch:
    """The pictures at these indices as one batch; of several captions the first."""
    columns = source.read(indices)
    if "caption" in columns:
        columns["caption"] = chosen(columns["caption"], [0] * len(indices))
    return to_batch(columns)


def take_first(source: Source, count: int) -> Batch:
    """The first `count` pictures, or all where there are fewer, as one batch."""
    return take(source, range(min(count, source.info.length or count)))


def to_batch(columns: Columns) -> Batch:
    """Columns of a source as tensors."""
    batch: Batch = {"image": to_images(columns["image"])} if "image" in columns else {}
    for name in ("label", "sizes"):
        if name in columns:
            batch[name] = torch.from_numpy(np.asarray(columns[name], np.int64))
    for name in ("attributes", "vector", "mean", "deviation"):
        if name in columns:
            batch[name] = torch.from_numpy(np.asarray(columns[name], np.float32))
    if "caption" in columns:
        batch["caption"] = list(columns["caption"])
    return batch


def to_images(pictures: UInt8[np.ndarray, "B H W C"]) -> Float[Tensor, "B C H W"]:
    """Bytes to [-1, 1], exactly: 0 is -1 and 255 is 1."""
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()  # while a pixel is a byte
    return images.float().div_(127.5).sub_(1)


def write_skipped(path: Path, skipped: dict[str, str]) -> None:
    """Write skipped pictures as JSON lines of `name` and `reason`, whole or not at all."""
    rows = [json.dumps({"name": name, "reason": reason}) for name, reason in skipped.items()]
    with replace_file(path) as temporary:
        temporary.write_text("".join(row + "\n" for row in rows))


def chosen(captions: Sequence[str | Sequence[str]], draws: Sequence[int]) -> list[str]:
    """One caption a picture: of several the one that the draw says."""
    return [
        caption if isinstance(caption, str) else caption[draw % len(caption)]
        for caption, draw in zip(captions, draws, strict=True)
    ]


def _as_it_is(columns: Columns | str) -> Columns | str:
    return columns
