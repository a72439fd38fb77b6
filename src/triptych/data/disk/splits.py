"""Which pictures are for training and which are held out.

The data decides, by folders, file names or a column called train, test or validation. Where it has
no such parts, a tenth is held out, chosen by a hash of the name, so it is always the same tenth; of
a few pictures at least one, and not all.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from triptych.fields import nearest
from triptych.runtime import key

SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "t10k"),
    "validation": ("validation", "valid", "val", "dev"),
}
KNOWN = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
IN_NAME = re.compile(rf"(?:^|[-_. ])({'|'.join(KNOWN)})(?=[-_. \d]|$)", re.IGNORECASE)
HELD_OUT = 10  # one picture in ten


def canonical(split: str) -> str:
    """The standard name of a split: `val` becomes `validation`; unknown names stay as they are."""
    return KNOWN.get(split.strip().lower(), split.strip())


def split_in_name(stem: str) -> str:
    """The split in a file's name: `train` in `flickr8k-train-00`; "" without one."""
    match = IN_NAME.search(stem)
    return canonical(match[1]) if match else ""


def holds_out(splits: Sequence[str]) -> bool:
    """Whether the data has a split other than training."""
    return not set(splits) <= {"", "train"}


def rows_of(split: str, names: Sequence[str], splits: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """The rows of one split.

    Without a test split, `test` is the validation split; without either, a tenth of the training
    pictures, which `train` then leaves out. A single picture is in both.

    Raises:
        ValueError: no picture is in that split; lists those there are.
    """
    chosen = canonical(split)
    there = sorted(set(splits) - {""})
    if holds_out(splits):
        if chosen == "test" and "test" not in there and "validation" in there:
            chosen = "validation"
        rows = [row for row, other in enumerate(splits) if other == chosen]
    elif chosen in ("train", "test"):
        held_out = _held_out(names)
        rows = [row for row, held in enumerate(held_out) if held == (chosen == "test")]
        if len(names) == 1:
            rows = [0]
        there = ["train", "test"]
    else:
        rows, there = [], ["train", "test"]
    if not rows:
        hint = nearest(chosen, there)
        raise ValueError(f"no picture is in the split {split!r}; the splits are: {there}.{hint}")
    return np.asarray(rows, dtype=np.int64)


def _held_out(names: Sequence[str]) -> list[bool]:
    draws = [key("held out", name) for name in names]
    held_out = [draw % HELD_OUT == 0 for draw in draws]
    if len(set(held_out)) < 2:  # so few pictures that all are on one side
        held_out = [draw == min(draws) for draw in draws]
    return held_out
