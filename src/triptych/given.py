"""What is given to a request in Python, in the forms that requests keep: texts, and names of values
that are in memory, such as pictures.

No torch and no numpy: requests use it, and `--help` is quick.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any


class Names(Enum):
    """What a text of a request names. The service lets nobody name a file of its machine, so it
    must know; every text of a request has one of these in its annotation.
    """

    NOTHING = "nothing"
    """It stands for itself: a prompt, a label, a sampler, a size."""
    MODEL = "model"
    PICTURE = "picture"
    DATA = "data"
    """A source of pictures: `digits`, a folder, ..."""
    LORA = "lora"
    """A LoRA and its weights."""
    LABELS = "labels"
    """A label, or a text file of them."""
    FILE = "file"
    """Any other file or folder."""


Words = Annotated[str, Names.NOTHING]
ModelName = Annotated[str, Names.MODEL]
DataName = Annotated[str, Names.DATA]
LoraName = Annotated[str, Names.LORA]
FileName = Annotated[str, Names.FILE]

if TYPE_CHECKING:
    Texts = Sequence[str]
    Labels = Sequence[str]
else:  # what a request keeps
    Texts = tuple[Words, ...]
    Labels = tuple[Annotated[str, Names.LABELS], ...]

NAMED = re.compile(r"\(?memory:(\d+(?:x\d+)+):sha256-([0-9a-f]{64})(?::[\d.]+\))?")
"""Of a picture with a weight in brackets, too: `(memory:...:0.5)`, as a search writes it."""
FLAGS = {"image": "--image FILE", "mask": "--mask FILE"}


class InMemory(str):
    """A text that names a value by shape and digest, such as `memory:64x48:sha256-0a1b...`, and has
    the value beside it.

    So a request stays comparable, hashable and JSON: two are equal if their values are. Read from
    JSON it is a plain text, without the value, which `triptych.recall` puts back.
    """

    values: Any
    """Of a picture uint8 (H, W, C), of latents float32 (N, Z, h, w): a numpy array."""


def name_in_memory(values: Any, shape: Sequence[int]) -> InMemory:
    """The name of a numpy array, which becomes read-only: `shape` as people write it, and the
    SHA-256 of its bytes.
    """
    values.setflags(write=False)
    digest = hashlib.sha256(values.tobytes()).hexdigest()
    named = InMemory(f"memory:{'x'.join(map(str, shape))}:sha256-{digest}")
    named.values = values
    return named


def rename(named: InMemory, text: str) -> InMemory:
    """The same value under another text, such as one with a weight."""
    renamed = InMemory(text)
    renamed.values = named.values
    return renamed


def is_lost(text: Any) -> bool:
    """Whether a text names a value that was in memory and is no longer there."""
    lost = isinstance(text, str) and not isinstance(text, InMemory)
    return lost and NAMED.fullmatch(text) is not None


def require_values(request: Any) -> None:
    """Check that every value that a request names is in memory.

    Raises:
        ValueError: one is not; says which, and how to give it.
    """
    for name, text in _texts(request):
        if is_lost(text):
            raise ValueError(lost_value(name, text))


def lost_value(name: str, text: str) -> str:
    """The sentence about a value that a request names and that is not in memory."""
    flag = f", or {FLAGS[name]} on the command line" if name in FLAGS else ""
    return (
        f"{name}: this request was made with what was in memory, {describe(text)}, and a record "
        f"has only the digest. Give the same again: triptych.recall(request, {name}=...){flag}"
    )


def describe(text: str) -> str:
    """The shape and digest of a value by its name, for people."""
    found = NAMED.fullmatch(text)
    assert found is not None
    return f"{found[1]}, SHA-256 {found[2]}"


def _texts(request: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        for text in value if isinstance(value, tuple) else (value,):
            yield field.name, text


def take_path(given: Any) -> str | None:
    """A path as a text, empty for none; None for a value in memory."""
    if given is None or isinstance(given, str):
        return given or ""
    return os.fsdecode(given) if isinstance(given, os.PathLike) else None


def take_texts(name: str, given: Any, least: int = 0) -> tuple[str, ...]:
    """A list of texts as a tuple; whole numbers are written out.

    Raises:
        ValueError: one text in place of a list, another kind of element, or too few of them.
    """
    if isinstance(given, str):
        raise ValueError(f"{name} is a list of texts, not the one text {given!r}")
    if isinstance(given, bytes | Set | Mapping) or not isinstance(given, Iterable):
        raise ValueError(f"{name} is a list of texts, not {_kind(given)}")
    texts = tuple(given)
    if len(texts) < least:
        raise ValueError(f"{name} is empty: give at least {least}")
    return tuple(take_text(f"{name}[{number}]", text) for number, text in enumerate(texts))


def take_text(name: str, given: Any) -> str:
    """A text as it is, and a whole number written out: labels are often numbers.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(given, str):
        return str(given)  # of numpy, too
    number = getattr(given, "item", lambda: given)() if not getattr(given, "shape", ()) else given
    if isinstance(number, int) and not isinstance(number, bool):
        return str(number)
    raise ValueError(f"{name} is a text, not {_kind(given)}")


def _kind(value: Any) -> str:
    """What a value is, for an error."""
    return "None" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
