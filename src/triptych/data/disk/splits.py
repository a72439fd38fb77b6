"""Which pictures are for training and which are held out.

The data decides, by folders, file names or a column called train, test or validation. Where it has
no such parts, a tenth is held out, chosen by a hash of the name, so it is always the same tenth.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from triptych.config import nearest
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
    pictures, which `train` then leaves out.

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
        held_out = chosen == "test"
        rows = [row for row, name in enumerate(names) if _held_out(name) == held_out]
        there = ["train", "test"]
        if chosen == "train" and not rows:  # too few: all were held out
            rows = list(range(len(names)))
    else:
        rows, there = [], ["train", "test"]
    if not rows:
        hint = nearest(chosen, there)
        raise ValueError(f"no picture is in the split {split!r}; the splits are: {there}.{hint}")
    return np.asarray(rows, dtype=np.int64)


def _held_out(name: str) -> bool:
    return key("held out", name) % HELD_OUT == 0
