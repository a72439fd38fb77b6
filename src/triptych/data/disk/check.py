"""Check a data set before training on it: decode every picture, count, find duplicates."""

import hashlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from triptych.data.disk.files import reason
from triptych.data.disk.index import Index, refuse_unusable
from triptych.data.disk.splits import holds_out, rows_of
from triptych.data.disk.table import several_sizes
from triptych.data.source import Source

LISTED = 12  # reasons, and groups of duplicates, of a described survey
CHUNK = 512  # pictures decoded at a time, which bounds the memory


class Checked(NamedTuple):
    """One decoded picture: a digest of its pixels, or the reason why it cannot be read."""

    row: int
    digest: bytes
    reason: str


@dataclass(frozen=True)
class Survey:
    """What a data set contains."""

    source: str
    form: str
    pictures: int | None  # None: endless
    splits: dict[str, int]
    held_out: bool  # the data has no test split: a tenth of it is held out
    classes: dict[str, int] = field(default_factory=dict)
    attributes: dict[str, int] = field(default_factory=dict)
    vector: dict[str, tuple[float, float]] = field(
        default_factory=dict
    )  # smallest and largest value
    captioned: int = 0  # pictures with captions
    captions: int = 0
    boxes: int = 0
    sizes: dict[str, int] = field(default_factory=dict)  # by the longer side
    grey: int = 0
    skipped: dict[str, str] = field(default_factory=dict)  # name: reason
    duplicates: tuple[tuple[str, ...], ...] = ()  # groups of names with the same pixels
    notes: tuple[str, ...] = ()
    problem: str = ""  # why it cannot be trained on


def check_pictures(index: Index) -> Iterator[Checked]:
    """Decode every picture, in order, in a few threads."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, len(index), CHUNK):
            rows = range(first, min(first + CHUNK, len(index)))
            yield from pool.map(lambda row: _check_picture(index, row), rows)


def survey(index: Index, checked: Mapping[int, Checked]) -> Survey:
    """Summarise an index and the results of `check_pictures`, by row."""
    bad = {index.names[row]: picture.reason for row, picture in checked.items() if picture.reason}
    good = np.array([index.names[row] not in bad for row in range(len(index))], bool)
    skipped = {**index.skipped, **bad}
    annotations = index.annotations
    return Survey(
        source=index.name,
        form=index.form,
        pictures=int(good.sum()),
        splits=_splits(index, good),
        held_out=not holds_out(index.splits),
        classes=_class_counts(index, good),
        attributes=_sums(annotations.attributes, annotations.attribute_values, good),
        vector=_ranges(annotations.vector, annotations.vector_values),
        captioned=len(annotations.captions) if annotations.captions else 0,
        captions=sum(map(len, annotations.captions)) if annotations.captions else 0,
        boxes=sum(map(len, annotations.boxes)) if annotations.boxes else 0,
        sizes=_sizes(index),
        grey=int(index.grey.sum()),
        skipped=skipped,
        duplicates=_duplicates(index, checked),
        notes=tuple(filter(None, (*index.notes, several_sizes(index)))),
        problem=_problem(index, bad, good),
    )


def survey_endless(source: Source) -> Survey:
    """The survey of an endless source, which has nothing to count."""
    return Survey(
        source=source.info.name,
        form="the built-in world of shapes, drawn on demand",
        pictures=source.info.length,
        splits={},
        held_out=False,
        classes=dict.fromkeys(source.info.classes, 0),
        attributes=dict.fromkeys(source.info.attributes, 0),
    )


def describe_survey(seen: Survey) -> dict[str, Any]:
    """A survey as JSON values; of long lists the first."""
    return {
        "source": seen.source,
        "form": seen.form,
        "pictures": seen.pictures,
        "grey": seen.grey,
        "splits": seen.splits,
        "held_out": seen.held_out,
        "sizes": seen.sizes,
        "classes": seen.classes,
        "attributes": seen.attributes,
        "vector": {name: list(limits) for name, limits in seen.vector.items()},
        "captioned": seen.captioned,
        "captions": seen.captions,
        "boxes": seen.boxes,
        "duplicates": [list(group) for group in seen.duplicates[:LISTED]],
        "duplicate_groups": len(seen.duplicates),
        "skipped": len(seen.skipped),
        "reasons": dict(Counter(seen.skipped.values()).most_common(LISTED)),
        "notes": list(seen.notes),
        "problem": seen.problem or None,
    }


def _check_picture(index: Index, row: int) -> Checked:
    try:
        picture = index.stored.load(row, 1 if index.grey[row] else 3, None)
    except (ValueError, OSError) as error:
        return Checked(row, b"", reason(error))
    digest = hashlib.blake2b(repr(picture.shape).encode(), digest_size=16)
    digest.update(picture.tobytes())
    return Checked(row, digest.digest(), "")


def _problem(index: Index, bad: dict[str, str], good: np.ndarray) -> str:
    """What `select_split` and reading would say in training."""
    names = [name for name in index.names if name not in bad]
    try:
        refuse_unusable(replace(index, names=names, skipped={**index.skipped, **bad}))
        for split in ("train", "test"):
            if not good[rows_of(split, index.names, index.splits)].any():
                raise ValueError(f"no picture of the split {split!r} can be read")
    except ValueError as error:
        return str(error)
    return ""


def _splits(index: Index, good: np.ndarray) -> dict[str, int]:
    if not len(index):
        return {}
    if holds_out(index.splits):
        rows = itertools.compress(index.splits, good)
        return {split or "none": count for split, count in sorted(Counter(rows).items())}
    return {
        split: int(good[rows_of(split, index.names, index.splits)].sum())
        for split in ("train", "test")
    }


def _class_counts(index: Index, good: np.ndarray) -> dict[str, int]:
    if index.annotations.labels is None:
        return {}
    counts = np.bincount(index.annotations.labels[good], minlength=len(index.annotations.classes))
    return dict(zip(index.annotations.classes, counts.tolist(), strict=True))


def _sums(names: tuple[str, ...], values: np.ndarray | None, good: np.ndarray) -> dict[str, int]:
    if values is None:
        return {}
    return dict(zip(names, values[good].sum(axis=0, dtype=np.int64).tolist(), strict=True))


def _ranges(names: tuple[str, ...], values: np.ndarray | None) -> dict[str, tuple[float, float]]:
    if values is None or not len(values):
        return {}
    pairs = zip(values.min(axis=0).tolist(), values.max(axis=0).tolist(), strict=True)
    return dict(zip(names, pairs, strict=True))


def _sizes(index: Index) -> dict[str, int]:
    """The one size that all have, else ranges of the longer side between powers of two."""
    if len(index) and (index.sizes == index.sizes[0]).all():
        height, width = index.sizes[0]
        return {f"{width} x {height}": len(index)}
    longer = index.sizes.max(axis=1, initial=0)
    edges = [1 << power for power in range(16)]
    bins = np.searchsorted(edges, longer, side="right")
    counts = sorted(Counter(bins.tolist()).items())
    return {f"{edges[b - 1]} to {2 * edges[b - 1] - 1}": count for b, count in counts}


def _duplicates(index: Index, checked: Mapping[int, Checked]) -> tuple[tuple[str, ...], ...]:
    groups: dict[bytes, list[str]] = defaultdict(list)
    for row, picture in checked.items():
        if picture.digest:
            groups[picture.digest].append(index.names[row])
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)
