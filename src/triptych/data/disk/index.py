"""A data set before its pictures are decoded: where each picture is, and its annotations.

Every form of data (folder, tars, arrays) is read into this one table, once.

Dimensions: N pictures, H height, W width, C channels, A attributes, V numbers of a vector, M boxes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8

MAX_SKIPPED = 0.1  # share of all pictures; if more are bad, the data set itself is faulty


class Stored(Protocol):
    """Pictures of any size, loaded by row."""

    def load(self, row: int, channels: int, near: int | None) -> UInt8[np.ndarray, "H W C"]:
        """One picture, uncropped; `near` as in `open_picture`. ValueError says what is wrong."""


@dataclass(frozen=True, eq=False)
class Annotations:
    """Labels, attributes, captions and boxes of the pictures; None or empty without any."""

    classes: tuple[str, ...] = ()
    labels: Int64[np.ndarray, " N"] | None = None
    attributes: tuple[str, ...] = ()
    attribute_values: UInt8[np.ndarray, "N A"] | None = None
    vector: tuple[str, ...] = ()
    vector_values: Float32[np.ndarray, "N V"] | None = None
    captions: Sequence[tuple[str, ...]] | None = None  # one or more per picture
    boxes: Sequence[Float32[np.ndarray, "M 4"]] | None = None  # xyxy, relative
    box_labels: Sequence[tuple[str, ...]] | None = None


@dataclass(frozen=True, eq=False)
class Index:
    """A data set, all splits together."""

    name: str
    form: str  # for messages: "folder, captions", "IDX arrays", ...
    stored: Stored
    names: Sequence[str]  # of the pictures, unique
    sizes: Int32[np.ndarray, "N 2"]  # height, width
    grey: Bool[np.ndarray, " N"]
    splits: Sequence[str]  # the split of each picture, "" if unknown
    annotations: Annotations
    skipped: dict[str, str] = field(default_factory=dict)  # name: reason
    notes: tuple[str, ...] = ()  # messages for the user

    def __len__(self) -> int:
        return len(self.names)


def refuse_unusable(index: Index) -> None:
    """Raise ValueError if there is nothing to train on, or too much of it is bad."""
    if not len(index) and not index.skipped:
        raise ValueError(f"{index.name!r} contains no pictures (PNG, JPEG, WebP, GIF or BMP)")
    refuse_if_many(index.skipped, len(index) + len(index.skipped), index.name)


def refuse_if_many(skipped: dict[str, str], total: int, name: str) -> None:
    """Raise ValueError with the commonest reasons if more than a tenth of `total` is skipped."""
    if len(skipped) <= MAX_SKIPPED * total:
        return
    counts = Counter(skipped.values())
    examples = {reason: file for file, reason in reversed(skipped.items())}
    lines = [f"  {n:,}: {reason} ({examples[reason]})" for reason, n in counts.most_common(5)]
    raise ValueError(
        f"{len(skipped):,} of {total:,} pictures of {name!r} cannot be used, more than "
        f"{MAX_SKIPPED:.0%}. The most frequent reasons:\n"
        + "\n".join(lines)
        + "\nRepair or remove them; `triptych data check --report FILE` lists all of them"
    )
