"""Nearest rows of an index, exactly or by faiss, and groups of near duplicates.

Rows and queries have unit length, so a dot product is a cosine. Reported scores are computed in
double precision row by row, so equal pictures have equal scores; ties are broken by name.

Dimensions: N rows, D numbers of a vector, Q queries, k matches.
"""

import importlib
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from triptych.atomic import replace_file

CHUNK = 16_384  # rows of one matrix product
SIDE = 2_048  # rows and columns of a block of pairs
ROUNDING = 1e-5  # above the error of a cosine in float32
LARGE = 300_000  # most rows that are searched exactly by default
QUERIES, RECALLED = 32, 10  # of which the recall of faiss is measured
CANDIDATES = 4  # faiss returns this many times k rows, of which the best k are kept

Blocks = Sequence[Float[Tensor, "_N D"]]


class Match(NamedTuple):
    name: str
    score: float  # cosine


def nearest(
    blocks: Blocks, names: Sequence[str], query: Float[Tensor, " D"], k: int
) -> list[Match]:
    """The k rows with the greatest cosine, best first and equal ones by name; compares all rows.

    The concatenated blocks are the rows of `names`.

    Raises:
        ValueError: k is below 1, or the query has another width than the rows.
    """
    _check(blocks, query, k)
    matches: list[Match] = []
    start = 0
    for block in blocks:
        for chunk in block.split(CHUNK):
            scores = chunk @ query.float()
            least = scores.topk(min(k, len(scores))).values[-1]
            rows = (scores >= least - ROUNDING).nonzero().flatten()
            matches += _score(chunk, rows, names, query, start)
            start += len(chunk)
        matches = _best(matches, k)
    return _best(matches, k)


def nearest_by_faiss(
    blocks: Blocks, names: Sequence[str], query: Float[Tensor, " D"], k: int, store: Path | None
) -> list[Match]:
    """The same by faiss: exactly (`IndexFlatIP`) up to 300,000 rows; of more rows by inverted lists
    (`IndexIVFFlat`), which compare an eighth of the rows and may miss some.

    The lists are kept in the file `store`, whose name must change with the rows.

    Raises:
        ValueError: faiss is not installed, with the command that installs it; or as `nearest`.
    """
    _check(blocks, query, k)
    faiss = require_faiss()
    index = _faiss_index(faiss, blocks, store)
    count = min(CANDIDATES * k, len(names))
    _, rows = index.search(query.float()[None].numpy(), count)
    matches: list[Match] = []
    candidates = sorted(row for row in rows[0].tolist() if row >= 0)
    start = first = 0
    for block in blocks:  # a pass of a million pictures leaves thousands: most have no candidate
        end = bisect_left(candidates, start + len(block), first)
        if first < end:
            inside = torch.tensor(candidates[first:end]) - start
            matches += _score(block, inside, names, query, start)
        start, first = start + len(block), end
    return _best(matches, k)


def faiss_recall(blocks: Blocks, store: Path) -> float:
    """The share of the ten nearest rows that the index in `store` finds, over 32 evenly spaced rows
    as queries, against a comparison with all rows.
    """
    index = _faiss_index(require_faiss(), blocks, store)
    count = sum(map(len, blocks))
    queries = torch.stack([row_at(blocks, number * count // QUERIES) for number in range(QUERIES)])
    best = torch.empty(QUERIES, 0), torch.empty(QUERIES, 0, dtype=torch.long)
    start = 0
    for block in blocks:
        for chunk in block.split(CHUNK):
            scores = torch.cat([best[0], queries @ chunk.T], 1)
            rows = torch.arange(start, start + len(chunk)).expand(QUERIES, -1)
            top = scores.topk(min(RECALLED, scores.shape[1]))
            best = top.values, torch.cat([best[1], rows], 1).gather(1, top.indices)
            start += len(chunk)
    _, found = index.search(queries.numpy(), best[1].shape[1])
    pairs = zip(best[1].tolist(), found.tolist(), strict=True)
    return sum(len(set(true) & set(near)) for true, near in pairs) / best[1].numel()


def row_at(blocks: Blocks, row: int) -> Float[Tensor, " D"]:
    """One row of the concatenated blocks."""
    for block in blocks:
        if row < len(block):
            return block[row]
        row -= len(block)
    raise IndexError(row)


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
    """Groups of near duplicates."""

    done: float  # the share of all pairs that were compared
    groups: tuple[tuple[int, ...], ...]  # rows, at least two each; empty until the last item


def duplicates(blocks: Blocks, threshold: float) -> Iterator[Groups]:
    """Connected components of the rows, joined by pairs whose cosine is at least the threshold.

    All pairs are compared, a block at a time, so memory does not grow with their number. Two rows
    of a group may be connected only through others. Groups and their rows are in ascending order.

    Raises:
        ValueError: the threshold is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold of duplicates is a cosine in (0, 1], not {threshold}")
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
    """Join the components of all pairs; a row's parent ends as the least row of its component.

    Each pass hooks the greater root of every pair under the least root it is paired with, then
    halves all paths until they are short: no loop over pairs (Shiloach and Vishkin 1982).
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
            f"the query has shape {tuple(query.shape)}, the rows have {blocks[0].shape[1]} "
            "numbers: they are of different models"
        )


def _score(
    block: Float[Tensor, "N D"],
    rows: Int64[Tensor, " R"],
    names: Sequence[str],
    query: Float[Tensor, " D"],
    start: int,
) -> list[Match]:
    scores = (block[rows].double() * query.double()).sum(1).tolist()
    return [Match(names[start + r], s) for r, s in zip(rows.tolist(), scores, strict=True)]


def _best(matches: list[Match], k: int) -> list[Match]:
    return sorted(matches, key=lambda match: (-match.score, match.name))[:k]


def _faiss_index(faiss: Any, blocks: Blocks, store: Path | None) -> Any:
    count, dim = sum(map(len, blocks)), blocks[0].shape[1]
    if count <= LARGE:
        index = faiss.IndexFlatIP(dim)  # faster to build than to read
        for block in blocks:
            index.add(block.numpy())
        return index
    if store is not None and store.exists():
        with suppress(RuntimeError):  # damaged: build it again
            return faiss.read_index(str(store), faiss.IO_FLAG_MMAP)
    lists = round(4 * math.sqrt(count))
    index = faiss.index_factory(dim, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    step = max(1, count // (64 * lists))  # faiss trains on 39 to 256 rows per list
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
