"""Pictures as latents, and texts as states, read from the files of a latent cache.

Dimensions: N pictures, P pictures of a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from triptych.data.order.buckets import BucketedSource
from triptych.data.source import Columns, Source, SourceInfo
from triptych.weights.files.store import Shard, Store

SHARD = 64  # pictures in a file: a killed process loses the work of at most one file
NOTES = "said"  # the tensor with the notes of a file


@dataclass(frozen=True)
class CacheFiles:
    """Where the parts of one source's cache are."""

    folder: Path
    source: Source

    @property
    def pictures(self) -> Store:
        """Latents; the notes of a file are its captions and the pictures that were skipped."""
        return Store(self.folder, "pictures-", NOTES)

    @property
    def texts(self) -> Store:
        """Outputs of the text towers; the notes of a file are its texts."""
        return Store(self.folder, "texts-", NOTES)

    @property
    def frozen(self) -> Path:
        """The weights of autoencoder and text towers."""
        return self.folder / "frozen.safetensors"

    @cached_property
    def buckets(self) -> Int64[np.ndarray, " N"]:
        """The bucket of every picture; 0 where the source has none."""
        if isinstance(self.source, BucketedSource):
            return self.source.buckets
        length = self.source.info.length
        assert length is not None
        return np.zeros(length, np.int64)

    @cached_property
    def parts(self) -> list[Int64[np.ndarray, " _P"]]:
        """The pictures of every file, all of one bucket."""
        members = [np.flatnonzero(self.buckets == bucket) for bucket in np.unique(self.buckets)]
        return [part[at : at + SHARD] for part in members for at in range(0, len(part), SHARD)]

    def locate_texts(self) -> dict[str, tuple[Shard, int]]:
        """The file and the row of every cached text."""
        rows: dict[str, tuple[Shard, int]] = {}
        for number in self.texts.numbers():
            if (shard := self.texts.read(number)) is not None:
                rows |= {text: (shard, row) for row, text in enumerate(shard.notes)}
        return rows

    def open_latents(self) -> "CachedLatents":
        """The source with latents in place of pictures; all of its files must be there."""
        shards, skipped = [], dict(self.source.info.skipped)
        rows = np.empty((len(self.buckets), 2), np.int64)
        for number, part in enumerate(self.parts):
            shard = self.pictures.read(number)
            assert shard is not None, "filled, and now it is gone"
            shards.append(shard)
            skipped |= shard.notes["skipped"]
            rows[part, 0], rows[part, 1] = number, np.arange(len(part))
        info = replace(self.source.info, attributes=(), vector=(), skipped=skipped)
        return CachedLatents(info, self.buckets, shards, rows, self.source)


@dataclass(frozen=True, eq=False)
class CachedLatents:
    """A source whose columns hold `mean`, and `deviation` where there is one, but no `image`."""

    info: SourceInfo
    buckets: Int64[np.ndarray, " N"]
    shards: Sequence[Shard]
    rows: Int64[np.ndarray, "N 2"]
    """The shard of every picture, and its row there."""
    source: Source
    """The pictures."""

    def read(self, indices: Sequence[int]) -> Columns:
        """The latents at these indices, which are all of one bucket."""
        places = [(self.shards[shard], row) for shard, row in self.rows[list(indices)].tolist()]
        columns: Columns = {}
        for name in ("mean", "deviation", "sizes", "label"):
            if name in places[0][0].tensors:
                rows = [shard.tensors[name][row] for shard, row in places]
                columns[name] = torch.stack(rows).numpy()
        if self.info.has_captions:
            columns["caption"] = [shard.notes["captions"][row] for shard, row in places]
        return columns
