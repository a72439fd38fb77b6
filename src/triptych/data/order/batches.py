"""Endless batches whose content is a function of (seed, rank, number).

Batch `k` of rank `r` has the positions from `(k * ranks + r) * batch_size` on in one endless
sequence: each epoch a random order of the source, or 0, 1, 2, ... for an endless source. So a run
resumes at any batch at no cost, and the number of worker processes only changes the speed.

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

from triptych.atomic import replace_file, write_text
from triptych.data.captions import texts_at
from triptych.data.disk.index import refuse_if_many
from triptych.data.order.hard_negatives import UNSORTED_EVERY, sort_by_shared_words
from triptych.data.order.permutation import mix, permute_epochs
from triptych.data.source import Columns, Source
from triptych.runtime import key

Batch = dict[str, Any]
"""`image` float32 (B, C, H, W) in [-1, 1] and, where the source has them: `label` int64 (B,),
`attributes` float32 (B, A), `vector` float32 (B, V), `sizes` int64 (B, 6), `caption` list of B
strings. With cached latents, `mean` and `deviation` float32 (B, Z, h, w) in place of `image`."""


ASKED = ("questions", "boxes", "box_labels", "scenes")
"""Columns of pictures that are asked about, which stay lists."""


@dataclass(frozen=True)
class ShuffledPlan:
    """Batches by number, in a random order of each epoch (see above)."""

    source: Source
    batch_size: int
    seed: int
    rank: int
    ranks: int
    pool: int = 1
    """How many consecutive batches are regrouped so that similar captions meet; 1 is off."""
    latest: dict[int, Int64[np.ndarray, " P"]] = field(default_factory=dict, compare=False)
    """The sorted positions of the last pool that was used, by its number."""

    def positions(self, number: int) -> Int64[np.ndarray, " B"]:
        if self.pool == 1:
            first = (number * self.ranks + self.rank) * self.batch_size
            return np.arange(first, first + self.batch_size, dtype=np.int64)
        pool, within = divmod(number, self.pool)
        if pool not in self.latest:
            self.latest.clear()
            self.latest[pool] = self._sort_pool(pool)
        return self.latest[pool][within * self.batch_size : (within + 1) * self.batch_size]

    def _sort_pool(self, pool: int) -> Int64[np.ndarray, " P"]:
        """This rank's positions in a pool, with similar captions in one batch.

        The global batches of the pool are formed first and put into a random order; then each rank
        takes its share of every batch.
        """
        together = self.batch_size * self.ranks
        positions = np.arange(pool * self.pool * together, (pool + 1) * self.pool * together)
        if pool % UNSORTED_EVERY != UNSORTED_EVERY - 1:
            texts = texts_at(self.source, self.indices(positions), self.draws(positions))
            salt = key(self.seed, "alike", 0, pool)
            positions = positions[sort_by_shared_words(texts, salt)].reshape(self.pool, together)
            positions = positions[np.argsort(mix(np.arange(self.pool, dtype=np.uint64), salt))]
        shares = positions.reshape(self.pool, self.ranks, self.batch_size)
        share: Int64[np.ndarray, " P"] = shares[:, self.rank].reshape(-1)
        return share

    def draws(self, positions: Int64[np.ndarray, " B"]) -> list[int]:
        """A random number for each position, which chooses among several captions."""
        numbers: list[int] = mix(positions.astype(np.uint64), key(self.seed, "caption")).tolist()
        return numbers

    def indices(self, positions: Int64[np.ndarray, " B"]) -> list[int]:
        """The pictures at these positions."""
        length = self.source.info.length
        if length is not None:
            positions = permute_epochs(positions, length, self.seed)
        items: list[int] = positions.tolist()
        return items

    def pick(self, number: int) -> tuple[list[int], list[int]]:
        positions = self.positions(number)
        return self.indices(positions), self.draws(positions)


class Plan(Protocol):
    """The content of batches by their number."""

    @property
    def source(self) -> Source:
        """Where the pictures come from."""

    def pick(self, number: int) -> tuple[list[int], list[int]]:
        """The pictures of a batch, and a random number for each, which chooses its caption."""


@dataclass(frozen=True)
class PlannedBatches:
    """Batches by number: what data workers index."""

    plan: Plan

    def __getitem__(self, number: int) -> Columns | str:
        """One batch. An error is returned as text: raised in a worker, it would get a traceback."""
        try:
            indices, draws = self.plan.pick(number)
            columns = self.plan.source.read(indices)
        except ValueError as error:
            return str(error)
        if "caption" in columns:
            columns["caption"] = choose_captions(columns["caption"], draws)
        return columns


class Batches:
    """An iterator over batches that remembers which pictures could not be read."""

    def __init__(self, plan: Plan, start: int, workers: int):
        self.skipped: dict[str, str] = dict(plan.source.info.skipped)  # name: reason
        self._plan = plan
        self._missing = len(self.skipped)  # not counted in the length of the source
        numbers = itertools.count(start)
        self._columns: Iterator[Columns | str] = map(PlannedBatches(plan).__getitem__, numbers)
        if workers:
            loader: DataLoader[Columns | str] = DataLoader(
                PlannedBatches(plan),  # type: ignore[arg-type]
                batch_size=None,
                sampler=numbers,  # type: ignore[arg-type]
                num_workers=workers,
                collate_fn=_identity,  # type: ignore[arg-type]
                generator=torch.Generator(),  # else starting it would draw from the global one
            )
            self._columns = iter(loader)

    @property
    def source(self) -> Source:
        """Where the pictures come from."""
        return self._plan.source

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        try:
            columns = next(self._columns)
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise RuntimeError(
                "a process that reads data died: it was killed, or the memory was full. "
                f"What was saved before is intact; resume with fewer --workers ({error})"
            ) from error
        if isinstance(columns, str):
            raise ValueError(columns)
        if columns.get("skipped"):
            self.skipped.update(columns["skipped"])
            info = self._plan.source.info
            if info.length is not None:
                refuse_if_many(self.skipped, info.length + self._missing, info.name)
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
    hard_negative_pool: int = 1,
) -> Batches:
    """Endless batches of a source, from number `start` on.

    Args:
        rank: which of `ranks` trainers this is; each gets its share of every global batch.
        workers: processes that read ahead; the batches are the same for any number of them.
        hard_negative_pool: regroup this many batches so that similar captions meet
            (`hard_negatives.py`); 1 is off.

    `.skipped` of the result names the pictures that could not be read so far; when they are more
    than a tenth of the source, the iterator raises ValueError.

    Raises:
        ValueError: a number out of range.
    """
    pool = hard_negative_pool
    if batch_size < 1 or not 0 <= rank < ranks or start < 0 or workers < 0 or pool < 1:
        raise ValueError(
            f"no batches are possible with batch size {batch_size}, rank {rank} of {ranks}, start "
            f"{start}, {workers} workers and a pool of {pool} batches"
        )
    return Batches(ShuffledPlan(source, batch_size, seed, rank, ranks, pool), start, workers)


def take(source: Source, indices: Sequence[int]) -> Batch:
    """The pictures at these indices as one batch, with the first caption of each."""
    columns = source.read(indices)
    if "caption" in columns:
        columns["caption"] = choose_captions(columns["caption"], [0] * len(indices))
    return to_batch(columns)


def take_first(source: Source, count: int) -> Batch:
    """The first `count` pictures, or all where there are fewer, as one batch."""
    return take(source, range(min(count, source.info.length or count)))


def take_in_order(source: Source, most: int, batch_size: int) -> Iterator[Batch]:
    """The first `most` pictures, or all where there are fewer, in batches."""
    count = min(most, source.info.length or most)
    for start in range(0, count, batch_size):
        yield take(source, range(start, min(start + batch_size, count)))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with its tensors on a device."""
    if device.type == "cpu":
        return batch
    return {
        k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
    }


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
    if "questions" in columns:
        batch |= {name: list(columns[name]) for name in ASKED}
    return batch


def to_images(pictures: UInt8[np.ndarray, "B H W C"]) -> Float[Tensor, "B C H W"]:
    """Bytes to [-1, 1], exactly: 0 is -1 and 255 is 1."""
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()  # while a pixel is a byte
    return images.float().div_(127.5).sub_(1)


def write_skipped(path: Path, skipped: dict[str, str]) -> None:
    """Write skipped pictures as JSON lines of `name` and `reason`, all of them or none."""
    rows = [json.dumps({"name": name, "reason": reason}) for name, reason in skipped.items()]
    with replace_file(path) as temporary:
        write_text(temporary, "".join(row + "\n" for row in rows))


def choose_captions(captions: Sequence[str | Sequence[str]], draws: Sequence[int]) -> list[str]:
    """One caption per picture: among several, a random number chooses."""
    return [
        caption if isinstance(caption, str) else caption[draw % len(caption)]
        for caption, draw in zip(captions, draws, strict=True)
    ]


def _identity(columns: Columns | str) -> Columns | str:
    return columns
