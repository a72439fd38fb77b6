"""Nearest rows of an index, exactly or through faiss, and groups of rows that are nearly equal.

Rows and queries have unit length, so a dot product is a cosine. Scores that are reported are summed
in double precision row by row: equal pictures have equal scores wherever they lie, and ties are
broken by name.

Dimensions: N rows, D numbers of a vector, Q queries, k matches.
"""

import importlib
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from triptych.atomic import replace_file

CHUNK = 16_384  # rows whose scores are computed at once
SIDE = 2_048  # of the blocks of pairs that are compared at once
ROUNDING = 1e-5  # more than float32 can be wrong about a cosine
LARGE = 300_000  # rows from which on an exact search takes noticeably long
ENOUGH = 4  # times k: what faiss is asked for, since it only guesses

Blocks = Sequence[Float[Tensor, "_N D"]]


class Match(NamedTuple):
    name: str
    score: float  # cosine


def nearest(
    blocks: Blocks, names: Sequence[str], query: Float[Tensor, " D"], k: int
) -> list[Match]:
    """The k rows with the greatest cosine, the best first; of equal ones the first by name.

    Blocks, one after the other, are the rows of `names`. Every row is looked at.

    Raises:
        ValueError: k is below 1, or the query has another length than the rows.
    """
    _check(blocks, query, k)
    found: list[Match] = []
    start = 0
    for block in blocks:
        for chunk in block.split(CHUNK):
            scores = chunk @ query.float()
            least = scores.topk(min(k, len(scores))).values[-1]
            rows = (scores >= least - ROUNDING).nonzero().flatten()
            found += _scored(chunk, rows, names, query, start)
            start += len(chunk)
        found = _best(found, k)
    return _best(found, k)


def nearest_by_faiss(
    blocks: Blocks, names: Sequence[str], query: Float[Tensor, " D"], k: int, store: Path | None
) -> list[Match]:
    """The same by faiss: exact (`IndexFlatIP`) up to 300,000 rows, beyond them by inverted lists
    (`IndexIVFFlat`), which look at an eighth of the rows and may miss some.

    The lists are kept in `store`, which must belong to exactly these rows.

    Raises:
        ValueError: faiss is not installed, with the command that installs it; or as `nearest`.
    """
    _check(blocks, query, k)
    faiss = require_faiss()
    index = _faiss_index(faiss, blocks, store)
    count = min(ENOUGH * k, len(names))
    _, rows = index.search(query.float()[None].numpy(), count)
    found: list[Match] = []
    wanted = torch.tensor(sorted(row for row in rows[0].tolist() if row >= 0))
    start = 0
    for block in blocks:
        inside = wanted[(wanted >= start) & (wanted < start + len(block))] - start
        found += _scored(block, inside, names, query, start)
        start += len(block)
    return _best(found, k)


def require_faiss() -> Any:
    """The faiss module.

    Raises:
        ValueError: it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ValueError(
            'faiss is not installed: `pip install "triptych[search]"`, or search exactly with '
            "--backend exact"
        ) from error


class Groups(NamedTuple):
    """Rows that belong together, as far as they are known."""

    done: float  # the share of all pairs that were compared
    groups: tuple[tuple[int, ...], ...]  # of two rows and more, in the last item


def duplicates(blocks: Blocks, threshold: float) -> Iterator[Groups]:
    """Rows that are connected by pairs whose cosine is at least the threshold.

    All pairs are compared, a block of them at a time: memory does not grow with their number. A
    group is a chain: its first and last need not be alike. Groups and their rows come in order.

    Raises:
        ValueError: the threshold is no cosine above 0.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold is a cosine above 0, at most 1, not {threshold}")
    parts = [part for block in blocks for part in block.split(SIDE)]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + len(part))
    parent = torch.arange(starts[-1])
    total, done = len(parts) * (len(parts) + 1) // 2, 0
    for i, upper in enumerate(parts):
        for j in range(i, len(parts)):
            alike = upper @ parts[j].T >= threshold - ROUNDING / 10
            _unite(parent, alike, starts[i], starts[j])
        done += len(parts) - i
        if done < total:
            yield Groups(done / total, ())
    order = parent.argsort(stable=True)
    counts = parent[order].unique_consecutive(return_counts=True)[1]
    groups = [tuple(g.tolist()) for g in order.split(counts.tolist()) if len(g) > 1]
    yield Groups(1.0, tuple(groups))


def _unite(parent: Int64[Tensor, " N"], alike: Bool[Tensor, "I J"], i: int, j: int) -> None:
    """Join the trees of all pairs, each row's parent being the least row of its group.

    Every pair hooks the greater of its two roots under the least that any pair offers it, then all
    paths are halved until they are short: no loop over pairs (Shiloach and Vishkin 1982).
    """
    rows, columns = alike.nonzero(as_tuple=True)
    rows, columns = rows + i, columns + j
    while True:
        left, right = parent[rows], parent[columns]
        if bool((left == right).all()):
            return
        parent.scatter_reduce_(0, left.maximum(right), left.minimum(right), "amin")
        while not torch.equal(shorter := parent[parent], parent):
            parent.copy_(shorter)


def _check(blocks: Blocks, query: Float[Tensor, " D"], k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if any(block.shape[1:] != query.shape for block in blocks):
        raise ValueError(
            f"a query of shape {tuple(query.shape)} for rows of {blocks[0].shape[1]} numbers: "
            "is it another model's?"
        )


def _scored(
    block: Float[Tensor, "N D"],
    rows: Int64[Tensor, " R"],
    names: Sequence[str],
    query: Float[Tensor, " D"],
    start: int,
) -> list[Match]:
    scores = (block[rows].double() * query.double()).sum(1).tolist()
    return [Match(names[start + r], s) for r, s in zip(rows.tolist(), scores, strict=True)]


def _best(found: list[Match], k: int) -> list[Match]:
    return sorted(found, key=lambda match: (-match.score, match.name))[:k]


def _faiss_index(faiss: Any, blocks: Blocks, store: Path | None) -> Any:
    count, dim = sum(map(len, blocks)), blocks[0].shape[1]
    if count <= LARGE:
        index = faiss.IndexFlatIP(dim)  # made faster than it is read
        for block in blocks:
            index.add(block.numpy())
        return index
    if store is not None and store.exists():
        with suppress(RuntimeError):  # damaged: made again
            return faiss.read_index(str(store), faiss.IO_FLAG_MMAP)
    lists = round(4 * math.sqrt(count))
    index = faiss.index_factory(dim, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    step = max(1, count // (64 * lists))  # faiss wants 39 to 256 examples a list
    index.train(torch.cat([block[::step] for block in blocks]).numpy())
    index.nprobe = max(1, lists // 8)
    for block in blocks:
        index.add(block.numpy())
    if store is not None:
        for old in store.parent.glob("nearest-*.faiss"):
            old.unlink()
        with replace_file(store) as temporary:
            faiss.write_index(index, str(temporary))
    return index
