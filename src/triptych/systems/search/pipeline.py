"""Search: pictures of a folder that are nearest to texts, pictures, or weighted sums of both."""

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
from triptych.given import InMemory, rename
from triptych.systems.search.index import Index, index_place, model_digest, open_reduced, update
from triptych.systems.search.nearest import (
    LARGE,
    RECALLED,
    Match,
    duplicates,
    faiss_recall,
    nearest,
    nearest_by_faiss,
    require_faiss,
    row_at,
)
from triptych.systems.search.pass_index import is_pass, open_pass
from triptych.systems.search.request import Search
from triptych.vision.given_pictures import kept_pictures, picture_name
from triptych.weights.loaded import Load, Loaded, require_tokenizer

WEIGHTED = re.compile(r"\((.+):\s*(\d*\.?\d+)\)", re.DOTALL)


class Term(NamedTuple):
    """One part of a query."""

    text: str  # or a picture: its path, or a name in memory
    picture: bool
    weight: float  # negative: away from it


@dataclass(frozen=True)
class SearchResults:
    """The state of a search; the last item is the result."""

    request: Search
    place: Path
    """The folder of the index."""
    done: float
    """The share of the work that is done."""
    new: int
    """Pictures that were not in the index or have changed since."""
    index: Index | None = None
    matches: tuple[Match, ...] = ()
    """Best first."""
    groups: tuple[tuple[Match, ...], ...] = ()
    """Near duplicates, each with its cosine to the first of its group."""
    notes: tuple[str, ...] = ()


def run(request: Search, load: Load) -> Iterator[SearchResults]:
    """Bring the index of the folder up to date, or open that of a pass, then answer the query.

    Raises:
        ValueError: the model is not a CLIP or SigLIP; the folder has no pictures; the index is of
            another model; or a picture of the query is not valid.
    """
    folder = Path(request.folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}")
    if request.backend == "faiss":
        require_faiss()
    loaded = load(request.model, runtime.device())
    query, notes = _encode_query(request, loaded)  # its errors come before a long update
    model = model_digest(loaded)
    place = index_place(folder, model, request.index)
    index, new = None, 0
    if is_pass(folder):
        index = open_pass(folder, place, model, loaded.embed_image([]).shape[1])
    else:
        for progress in update(folder, place, loaded, model):
            index, new = progress.index, progress.total
            if index is None:
                yield SearchResults(request, place, progress.done / max(progress.total, 1), new)
    assert index is not None
    if request.duplicates is not None:
        for part in duplicates(index.blocks, request.duplicates):
            groups = _name_groups(part.groups, index)
            yield SearchResults(request, place, part.done, new, index, (), groups, notes)
        return
    matches: tuple[Match, ...] = ()
    if query is not None and index.names:
        best, note = _match(request, index, query)
        matches, notes = tuple(best), notes + note
    yield SearchResults(request, place, 1.0, new, index, matches, (), notes)


def parse_terms(request: Search) -> list[Term]:
    """The parts of a query with their weights, which are 1 or written as in `(text:0.5)`."""
    image, minus_image = (kept_pictures(p) for p in (request.image, request.minus_image))
    parts = [(t, False, 1) for t in request.text] + [(t, True, 1) for t in image]
    parts += [(t, False, -1) for t in request.minus] + [(t, True, -1) for t in minus_image]
    terms = []
    for text, picture, sign in parts:
        weighted = WEIGHTED.fullmatch(text)
        inner, weight = (weighted[1], float(weighted[2])) if weighted else (text, 1.0)
        if weighted and isinstance(text, InMemory):
            inner = rename(text, inner)
        terms.append(Term(inner, picture, sign * weight))
    return terms


def format_query(request: Search) -> str:
    """A query as one line: `a.jpg + at night - 0.5 by day`."""
    parts = []
    for term in parse_terms(request):
        amount = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} "
        name = picture_name(term.text) if term.picture else term.text
        parts.append(f"{'-' if term.weight < 0 else '+'} {amount}{name}")
    return " ".join(parts).removeprefix("+ ")


def _encode_query(
    request: Search, loaded: Loaded
) -> tuple[Float[Tensor, " D"] | None, tuple[str, ...]]:
    """The normalised weighted sum of unit vectors, and notes; None without terms."""
    terms = parse_terms(request)
    if not terms:
        return None, ()
    texts = [term.text for term in terms if not term.picture]
    notes: tuple[str, ...] = ()
    if texts:
        cut = require_tokenizer(loaded).encode(texts).cut
        notes = tuple(f"too long: {lost!r} was cut off" for lost in cut if lost)
    pictures = []
    for term in terms:
        if term.picture:
            try:
                in_memory = isinstance(term.text, InMemory)
                path = term.text if in_memory else Path(term.text).expanduser()
                pictures.append(open_reduced(path, loaded))
            except (ValueError, OSError) as error:
                why = getattr(error, "strerror", None) or str(error)
                raise ValueError(f"{term.text}: {why}") from error
    text_rows = iter(loaded.embed_text(texts) if texts else ())
    picture_rows = iter(loaded.embed_image(pictures) if pictures else ())
    rows = [next(picture_rows if term.picture else text_rows) for term in terms]
    weights = torch.tensor([term.weight for term in terms])
    total = (weights[:, None] * torch.stack(rows)).sum(0)
    if not float(total.norm()) > 1e-4 * float(weights.abs().sum()):  # NaN as well
        raise ValueError(f"the terms of the query cancel each other out: {format_query(request)}")
    return F.normalize(total, dim=0), notes


def _match(
    request: Search, index: Index, query: Float[Tensor, " D"]
) -> tuple[list[Match], tuple[str, ...]]:
    large = len(index.names) > LARGE
    if request.backend == "exact" or (request.backend == "auto" and not large):
        return nearest(index.blocks, index.names, query, request.k), ()
    store = index.place / f"nearest-{index.state}.faiss"
    try:
        matches = nearest_by_faiss(index.blocks, index.names, query, request.k, store)
    except ValueError as error:
        if request.backend == "faiss":
            raise
        exact = nearest(index.blocks, index.names, query, request.k)
        return exact, (f"searched exactly, which is slow for this many pictures: {error}",)
    if not large:
        return matches, ()
    recall = faiss_recall(index.blocks, store)
    return matches, (
        f"faiss searches a part of the index: of the {RECALLED} nearest it finds {recall:.1%} "
        "(32 rows of the index as queries); `--backend exact` searches all of it",
    )


def _name_groups(rows: tuple[tuple[int, ...], ...], index: Index) -> tuple[tuple[Match, ...], ...]:
    """Groups as names and cosines, sorted by name."""
    groups = []
    for group in rows:
        members = sorted(group, key=lambda row: index.names[row])
        vectors = torch.stack([row_at(index.blocks, row) for row in members]).double()
        cosines = (vectors * vectors[0]).sum(1).tolist()
        names = [index.names[row] for row in members]
        groups.append(tuple(Match(n, c) for n, c in zip(names, cosines, strict=True)))
    return tuple(sorted(groups, key=lambda group: group[0].name))
