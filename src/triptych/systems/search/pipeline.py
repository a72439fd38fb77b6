"""Search: the pictures of a folder that are nearest to texts, pictures, and sums of both."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from triptych import runtime
from triptych.systems.search.index import Index, index_place, model_digest, opened, update
from triptych.systems.search.nearest import (
    LARGE,
    Match,
    duplicates,
    nearest,
    nearest_by_faiss,
    require_faiss,
)
from triptych.systems.search.request import Search
from triptych.weights.loaded import Load, Loaded, require_tokenizer

WEIGHTED = re.compile(r"\((.+):\s*(\d*\.?\d+)\)", re.DOTALL)


class Term(NamedTuple):
    """One part of a query."""

    text: str  # or the name of a picture file
    picture: bool
    weight: float  # below 0 leads away


@dataclass(frozen=True)
class Found:
    """What is known so far; the last one that is yielded is the result."""

    request: Search
    place: Path
    """Where the index lies."""
    done: float
    """The share of the work that is done."""
    new: int
    """Pictures that were not in the index, or have changed."""
    index: Index | None = None
    matches: tuple[Match, ...] = ()
    """The best first."""
    groups: tuple[tuple[Match, ...], ...] = ()
    """Near duplicates: each with its cosine with the first of its group."""
    notes: tuple[str, ...] = ()


def run(request: Search, load: Load) -> Iterator[Found]:
    """Bring the index of the folder up to date, then answer the query.

    Raises:
        ValueError: the model is no CLIP or SigLIP; the folder has no pictures; the index is of
            another model; or a part of the query is no text or sound picture, named.
    """
    loaded = load(request.model, runtime.device())
    query, notes = _query(request, loaded)  # before an hour of work, not after
    if request.backend == "faiss":
        require_faiss()
    folder, model = Path(request.folder).expanduser(), model_digest(loaded)
    place = index_place(folder, model, request.index)
    index, new = None, 0
    for progress in update(folder, place, loaded, model):
        index, new = progress.index, progress.total
        if index is None:
            yield Found(request, place, progress.done / max(progress.total, 1), new)
    assert index is not None
    if request.duplicates is not None:
        for known in duplicates(index.blocks, request.duplicates):
            groups = _named(known.groups, index)
            yield Found(request, place, known.done, new, index, (), groups, notes)
        return
    matches: tuple[Match, ...] = ()
    if query is not None and index.names:
        found, note = _matches(request, index, query)
        matches, notes = tuple(found), notes + note
    yield Found(request, place, 1.0, new, index, matches, (), notes)


def terms(request: Search) -> list[Term]:
    """The parts of a query, with their weights: 1, or what stands in (text:0.5)."""
    given = [(t, False, 1) for t in request.text] + [(t, True, 1) for t in request.image]
    given += [(t, False, -1) for t in request.minus] + [(t, True, -1) for t in request.minus_image]
    found = []
    for text, picture, sign in given:
        weighted = WEIGHTED.fullmatch(text)
        inner, weight = (weighted[1], float(weighted[2])) if weighted else (text, 1.0)
        found.append(Term(inner, picture, sign * weight))
    return found


def spelled(request: Search) -> str:
    """A query as people read it: `a.jpg + at night - 0.5 by day`."""
    parts = []
    for term in terms(request):
        amount = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} "
        name = Path(term.text).name if term.picture else term.text
        parts.append(f"{'-' if term.weight < 0 else '+'} {amount}{name}")
    return " ".join(parts).removeprefix("+ ")


def _query(request: Search, loaded: Loaded) -> tuple[Float[Tensor, " D"] | None, tuple[str, ...]]:
    """The weighted sum of unit vectors, at unit length again; None where nothing is asked."""
    asked = terms(request)
    if not asked:
        return None, ()
    texts = [term.text for term in asked if not term.picture]
    notes: tuple[str, ...] = ()
    if texts:
        cut = require_tokenizer(loaded).encode(texts).cut
        notes = tuple(f"too long, and read without {lost!r}" for lost in cut if lost)
    pictures = []
    for term in asked:
        if term.picture:
            try:
                pictures.append(opened(Path(term.text).expanduser(), loaded))
            except (ValueError, OSError) as error:
                why = getattr(error, "strerror", None) or str(error)
                raise ValueError(f"{term.text}: {why}") from error
    of_texts = iter(loaded.embed_text(texts) if texts else ())
    of_pictures = iter(loaded.embed_image(pictures) if pictures else ())
    rows = [next(of_pictures if term.picture else of_texts) for term in asked]
    weights = torch.tensor([term.weight for term in asked])
    total = (weights[:, None] * torch.stack(rows)).sum(0)
    if not float(total.norm()) > 1e-4 * float(weights.abs().sum()):  # NaN as well
        raise ValueError(f"the query cancels itself out: {spelled(request)}")
    return F.normalize(total, dim=0), notes


def _matches(
    request: Search, index: Index, query: Float[Tensor, " D"]
) -> tuple[list[Match], tuple[str, ...]]:
    large = len(index.names) > LARGE
    if request.backend == "exact" or (request.backend == "auto" and not large):
        return nearest(index.blocks, index.names, query, request.k), ()
    store = index.place / f"nearest-{index.state}.faiss"
    try:
        found = nearest_by_faiss(index.blocks, index.names, query, request.k, store)
    except ValueError as error:
        if request.backend == "faiss":
            raise
        exact = nearest(index.blocks, index.names, query, request.k)
        return exact, (f"searched exactly, which is slow for so many: {error}",)
    approximate = ("faiss looks at a part of the index only: `--backend exact` misses nothing",)
    return found, approximate if large else ()


def _named(rows: tuple[tuple[int, ...], ...], index: Index) -> tuple[tuple[Match, ...], ...]:
    """Groups with names and cosines, ordered by name."""
    groups = []
    for group in rows:
        members = sorted(group, key=lambda row: index.names[row])
        vectors = torch.stack([_row(index, row) for row in members]).double()
        cosines = (vectors * vectors[0]).sum(1).tolist()
        names = [index.names[row] for row in members]
        groups.append(tuple(Match(n, c) for n, c in zip(names, cosines, strict=True)))
    return tuple(sorted(groups, key=lambda group: group[0].name))


def _row(index: Index, row: int) -> Float[Tensor, " D"]:
    for block in index.blocks:
        if row < len(block):
            return block[row]
        row -= len(block)
    raise IndexError(row)
