"""A data set before a picture is decoded: where every picture is and what is said of it.

Every form of data (folder, tar shards, arrays) is read into this one table, once.

Dimensions: N pictures, H height, W width, C channels, A attributes, V numbers of a vector, M boxes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8

MAX_SKIPPED = 0.1  # of all pictures: above this share, something is wrong with the data as a whole


class Stored(Protocol):
    """Pictures of any size, read by row."""

    def load(self, row: int, channels: int, near: int | None) -> UInt8[np.ndarray, "H W C"]:
        """One picture, whole; `near` as in `open_picture`. ValueError says why it is unreadable."""


@dataclass(frozen=True, eq=False)
class Annotations:
    """What is said of the pictures; None or empty where nothing is."""

    classes: tuple[str, ...] = ()
    labels: Int64[np.ndarray, " N"] | None = None
    attributes: tuple[str, ...] = ()
    attribute_values: UInt8[np.ndarray, "N A"] | None = None
    vector: tuple[str, ...] = ()
    vector_values: Float32[np.ndarray, "N V"] | None = None
    captions: Sequence[tuple[str, ...]] | None = None  # one or more a picture
    boxes: Sequence[Float32[np.ndarray, "M 4"]] | None = None  # xyxy, relative
    box_labels: Sequence[tuple[str, ...]] | None = None


@dataclass(frozen=True, eq=False)
class Index:
    """A whole data set, all splits together."""

    name: str
    form: str  # for people: "class folders", "IDX arrays", ...
    stored: Stored
    names: Sequence[str]  # of the pictures; what is skipped is named in the same way
    sizes: Int32[np.ndarray, "N 2"]  # height, width
    grey: Bool[np.ndarray, " N"]
    splits: Sequence[str]  # the split of each picture, "" where the data does not say
    annotations: Annotations
    skipped: dict[str, str] = field(default_factory=dict)  # name: reason
    notes: tuple[str, ...] = ()  # what a person should know besides

    def __len__(self) -> int:
        return len(self.names)


def refuse_unusable(index: Index) -> None:
    """Raise ValueError where there is nothing to train on, or too much of it is bad."""
    if not len(index) and not index.skipped:
        raise ValueError(f"{index.name!r} holds no pictures (PNG, JPEG, WebP, GIF or BMP)")
    refuse_if_many(index.skipped, len(index) + len(index.skipped), index.name)


def refuse_if_many(skipped: dict[str, str], total: int, name: str) -> None:
    """Raise ValueError with the commonest reasons where more than a tenth of `total` is skipped."""
    if len(skipped) <= MAX_SKIPPED * total:
        return
    counts = Counter(skipped.values())
    examples = {reason: file for file, reason in reversed(skipped.items())}
    lines = [f"  {n:,}: {reason} ({examples[reason]})" for reason, n in counts.most_common(5)]
    raise ValueError(
        f"{len(skipped):,} of {total:,} pictures of {name!r} cannot be used, more than "
        f"{MAX_SKIPPED:.0%}. The commonest reasons:\n"
        + "\n".join(lines)
        + "\nMend or remove them; `triptych data check` lists them all"
    )
