"""Pictures as their latents, read from files that are mapped into memory; `train/latents.py` writes
them.

Dimensions: N pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from triptych.data.source import Columns, SourceInfo


@dataclass(frozen=True, eq=False)
class Latents:
    """A cached source (`Source` says what each part means): latents in place of pictures."""

    info: SourceInfo
    buckets: Int64[np.ndarray, " N"]
    shards: Sequence[Mapping[str, Any]]
    """Tensors, memory-mapped, and `captions` where there are some."""
    at: Int64[np.ndarray, "N 2"]
    """The shard of every picture, and its row there."""

    def read(self, indices: Sequence[int]) -> Columns:
        """Of one bucket, as a `Bucketed` is read."""
        places = [(self.shards[shard], row) for shard, row in self.at[list(indices)].tolist()]
        columns: Columns = {}
        for name in ("mean", "deviation", "sizes", "label"):
            if name in places[0][0]:
                columns[name] = torch.stack([shard[name][row] for shard, row in places]).numpy()
        if self.info.has_captions:
            columns["caption"] = [shard["captions"][row] for shard, row in places]
        return columns
