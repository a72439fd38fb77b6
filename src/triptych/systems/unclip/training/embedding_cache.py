"""A cache of a CLIP's embeddings of pictures: all that training a prior needs of them.

A folder whose name is a digest of the pictures and of the CLIP's weights, with files of some
embeddings each and the captions or labels beside them. A file is complete or absent.

Dimensions: N pictures, E width of embeddings.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from triptych import runtime
from triptych.atomic import lock_folder, remove_temporary
from triptych.data.disk.index import refuse_if_many
from triptych.data.fingerprint import fingerprint
from triptych.data.order.batches import to_images
from triptych.data.source import Columns, Source, SourceInfo
from triptych.systems.unclip.training.frozen_clip import FrozenClip
from triptych.train.recipe import Progress
from triptych.weights.files.store import Shard, Store

ROWS, TOGETHER = 1024, 64  # pictures in a file, and of one pass of the CLIP


@dataclass(frozen=True)
class CachedEmbeddings:
    """A `Source` of embeddings, as `vector`, with captions or labels."""

    info: SourceInfo
    embeddings: Float[Tensor, "N E"]
    captions: list[Any]
    labels: np.ndarray | None
    source: Source
    """The pictures."""

    def read(self, indices: Sequence[int]) -> Columns:
        """The embeddings at these indices, in this order."""
        rows = np.asarray(indices, np.int64)
        columns: Columns = {"vector": self.embeddings[torch.from_numpy(rows)].numpy()}
        if self.captions:
            columns["caption"] = [self.captions[row] for row in rows.tolist()]
        if self.labels is not None:
            columns["label"] = self.labels[rows]
        return columns


class EmbeddingCache:
    """The embeddings of one source by one CLIP.

    Raises:
        ValueError: the source is endless.
    """

    def __init__(self, root: str, source: Source, clip: FrozenClip):
        if source.info.length is None:
            raise ValueError(
                f"{source.info.name!r} is endless: limit it, for example by --pictures 50000"
            )
        self.source, self.clip = source, clip
        described = [ROWS, source.info.name, source.info.length, fingerprint(source), clip.digest]
        name = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
        parent = Path(root).expanduser() if root else runtime.cache_folder("embeddings")
        self.folder = parent / f"embeddings-{name}"
        self.store = Store(self.folder, "embeddings-", "notes")

    def fill(self) -> Iterator[Progress]:
        """Compute what is missing; may be stopped and continued.

        Raises:
            ValueError: more than a tenth of the pictures cannot be read.
            OSError: the disk is full or the folder cannot be written.
        """
        total = self.source.info.length or 0
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(self.folder):
            remove_temporary(self.folder)
            done, skipped = 0, dict(self.source.info.skipped)
            for number in range(-(-total // ROWS)):
                rows = range(number * ROWS, min((number + 1) * ROWS, total))
                shard = self.store.read(number)
                if shard is None:
                    for step in self._fill_file(number, rows):
                        yield Progress("embeddings", done + step, total)
                    shard = self.store.read(number)
                    assert shard is not None
                done += len(rows)
                skipped |= shard.notes["skipped"]
                refuse_if_many(
                    skipped, total + len(self.source.info.skipped), self.source.info.name
                )
            yield Progress("embeddings", total, total)

    def _fill_file(self, number: int, rows: range) -> Iterator[int]:
        """Compute one file, and yield how many of its pictures are done."""
        parts: list[Tensor] = []
        labels: list[Any] = []
        notes: dict[str, Any] = {"captions": [], "skipped": {}}
        for start in range(rows.start, rows.stop, TOGETHER):
            chosen = range(start, min(start + TOGETHER, rows.stop))
            columns = self.source.read(list(chosen))
            image = to_images(columns["image"]).to(self.clip.device)
            parts.append(self.clip.embed_images(image).cpu())
            notes["captions"] += columns.get("caption", [])
            notes["skipped"] |= dict(columns.get("skipped", ()))
            labels += np.asarray(columns.get("label", []), np.int64).tolist()
            yield chosen.stop - rows.start
        tensors = {"embeddings": torch.cat(parts)}
        if labels:
            tensors["labels"] = torch.tensor(labels)
        self.store.write(number, tensors, notes)

    @cached_property
    def content(self) -> CachedEmbeddings:
        """All of it in memory; fills the cache where needed.

        Raises:
            ValueError, OSError: as `fill`.
        """
        for _ in self.fill():
            pass
        total = self.source.info.length or 0
        shards: list[Shard] = []
        for number in range(-(-total // ROWS)):
            shard = self.store.read(number)
            assert shard is not None
            shards.append(shard)
        labels = [shard.tensors["labels"] for shard in shards if "labels" in shard.tensors]
        return CachedEmbeddings(
            replace(self.source.info, notes=()),
            torch.cat([shard.tensors["embeddings"].clone() for shard in shards]),
            [caption for shard in shards for caption in shard.notes["captions"]],
            torch.cat(labels).numpy() if labels else None,
            self.source,
        )
