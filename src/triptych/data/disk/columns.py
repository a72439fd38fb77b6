"""Further columns of a metadata file as conditions: attributes (0 or 1) and numbers.

Dimensions: N pictures, A attributes, V numbers.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

MAX_VALUES = 64  # different values of a category; with more, a column holds names or numbers
FEW = 8  # up to this many different values are a category even if none occurs twice
MAX_TEXT = 200  # characters of a category
TRUE, FALSE = {"true", "yes", "1", "1.0"}, {"false", "no", "0", "0.0", "-1", "-1.0"}


class Conditions(NamedTuple):
    """Columns as numbers."""

    attributes: tuple[str, ...]
    attribute_values: UInt8[np.ndarray, "N A"]
    vector: tuple[str, ...]
    vector_values: Float32[np.ndarray, "N V"]  # NaN where a row has no number
    notes: tuple[str, ...]  # which columns are ignored and why


def conditions(rows: Sequence[dict[str, Any]]) -> Conditions:
    """Turn the columns of all pictures into attributes and numbers.

    - true and false (also yes and no, 1 and 0, 1 and -1): one attribute with the column's name;
    - a few words or whole numbers, or lists of words: one attribute per value, such as
      `colour=red`, or the word alone in a column called `attributes` or `tags`;
    - other numbers: one number of the vector;
    - anything else (free text, file names, ids): ignored, with a note.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    attributes: dict[str, UInt8[np.ndarray, " N"]] = {}
    vector: dict[str, Float32[np.ndarray, " N"]] = {}
    notes: list[str] = []
    for name in names:
        values = [_missing_as_none(row.get(name)) for row in rows]
        present = [value for value in values if value is not None]
        if not present:
            continue
        if all(_truth(value) is not None for value in present):
            attributes[name] = np.array(
                [bool(value and _truth(value)) for value in values], np.uint8
            )
        elif all(_number(value) is not None for value in present):
            numbers = [_single(value) for value in values]
            integral = all(number % 1 == 0 or math.isnan(number) for number in numbers)
            different = len(set(map(_number, present)))
            if integral and different <= MAX_VALUES // 2:
                words = [() if math.isnan(n) else (f"{n:.0f}",) for n in numbers]
                attributes |= _categories(name, words, notes)
            elif integral and different == len(present) and different > MAX_VALUES:
                notes.append(f"column {name!r} is ignored: it numbers the pictures")
            else:
                vector[name] = np.array(numbers, np.float32)
        else:
            attributes |= _categories(name, [_words(value) for value in values], notes)
    count = len(rows)
    return Conditions(
        tuple(attributes),
        np.stack(list(attributes.values()), 1) if attributes else np.zeros((count, 0), np.uint8),
        tuple(vector),
        np.stack(list(vector.values()), 1) if vector else np.zeros((count, 0), np.float32),
        tuple(notes),
    )


def _categories(
    name: str, words: Sequence[tuple[str, ...] | None], notes: list[str]
) -> dict[str, UInt8[np.ndarray, " N"]]:
    present = [word for row in words for word in row or ()]
    different = sorted(set(present), key=_sort_key)
    repeated = len(different) <= FEW or 2 * len(different) <= len(present)
    if None in words or len(different) > MAX_VALUES or not repeated:
        why = "it is not text, a number or a list of words"
        if None not in words:
            why = "nearly every picture has another value"
            if repeated:
                why = f"it has {len(different)} different values, more than {MAX_VALUES}"
        notes.append(f"column {name!r} is ignored: {why}")
        return {}
    bare = name in ("attributes", "tags")
    return {
        word if bare else f"{name}={word}": np.array(
            [word in (row or ()) for row in words], np.uint8
        )
        for word in different
    }


def _missing_as_none(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    return None if value in ("", []) else value


def _truth(value: Any) -> bool | None:
    text = str(value).strip().lower()
    return True if text in TRUE else False if text in FALSE else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _single(value: Any) -> float:
    """A number that fits into single precision, else NaN, as for a missing one."""
    number = math.nan if value is None else float(value)
    return number if abs(number) <= float(np.finfo(np.float32).max) else math.nan


def _words(value: Any) -> tuple[str, ...] | None:
    """The words of a cell; None if it holds something else."""
    words = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(word, str | int | float) for word in words):
        return None
    texts = tuple(" ".join(str(word).split()) for word in words)
    return texts if all(len(text) <= MAX_TEXT for text in texts) else None


def _sort_key(word: str) -> tuple[float, str]:
    number = _number(word)
    return (math.inf if number is None else number, word)
