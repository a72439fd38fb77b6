"""Texts that a language model learns: a file or a folder of them, as rows of tokens.

Dimensions: N tokens, R rows, T tokens of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from triptych.config import missing_file
from triptych.data.order.permutation import permute_epochs
from triptych.runtime import key
from triptych.text.language import LanguageTokenizer
from triptych.train.recipe import Batch

ENDINGS = (".txt", ".md")
LARGEST = 1 << 30
"""Bytes of all files together."""
HELD_OUT = 10
"""One text in ten is held out; of a single text its last tenth."""
PIECE = 1 << 20
"""Characters that are encoded at a time."""


@dataclass(frozen=True)
class Texts:
    """Texts to learn from, and others to be judged on."""

    name: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]


def read_texts(name: str) -> Texts:
    """The texts of a file, or of all .txt and .md files below a folder.

    Raises:
        ValueError: there are none, one is no UTF-8, or they are too large.
    """
    path = Path(name)
    if not path.exists():
        raise missing_file(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if _is_text(p))
    if not files:
        raise ValueError(f"{path} has no {' or '.join(ENDINGS)} files")
    if (size := sum(file.stat().st_size for file in files)) > LARGEST:
        raise ValueError(f"{path} has {size:,} bytes of text; at most {LARGEST:,}")
    texts = {str(file.relative_to(path)): _read(file) for file in files}
    texts = {name: text for name, text in texts.items() if text.strip()}
    if not texts:
        raise ValueError(f"{path} has no text: every file is empty")
    if len(texts) == 1:
        (text,) = texts.values()
        cut = len(text) - len(text) // HELD_OUT
        return Texts(path.name, (text[:cut],), (text[cut:],))
    held = {name for name in texts if key("held out", name) % HELD_OUT == 0}
    held = held or {min(texts, key=lambda name: key("held out", name))}
    if len(held) == len(texts):
        held.pop()
    return Texts(
        path.name,
        tuple(text for name, text in texts.items() if name not in held),
        tuple(text for name, text in texts.items() if name in held),
    )


def _is_text(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in ENDINGS


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8: byte {error.start:,} is no letter") from None


def encode_texts(texts: tuple[str, ...], tokenizer: LanguageTokenizer) -> Int32[Tensor, " N"]:
    """All texts one after the other, each between a start and an end token."""
    tokens: list[np.ndarray] = []
    for text in texts:
        row = [tokenizer.start]
        for piece in _pieces(text):
            row += tokenizer.encode(piece)
        tokens.append(np.array([*row, tokenizer.end], np.int32))
    return torch.from_numpy(np.concatenate(tokens))


def _pieces(text: str) -> Iterator[str]:
    """Parts of a text that end at a line, or a space, where there is one near."""
    begin = 0
    while begin < len(text):
        end = begin + PIECE
        if end < len(text):
            found = max(text.rfind("\n", begin, end), text.rfind(" ", begin, end))
            end = found if found > begin else end
        yield text[begin:end]
        begin = end


@dataclass(frozen=True)
class Rows:
    """Batches of rows of tokens; each begins with the last token of the row before it."""

    tokens: Int32[Tensor, " N"]
    length: int
    """Tokens of a row that are predicted."""

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def take(self, numbers: np.ndarray) -> Tensor:
        """Rows by their numbers, one token longer than `length`."""
        starts = torch.from_numpy(numbers)[:, None] * self.length
        return self.tokens[starts + torch.arange(self.length + 1)].long()

    def batches(self, size: int, seed: int, rank: int, ranks: int, start: int) -> Iterator[Batch]:
        """Endless batches from number `start` on, in another order each epoch."""
        number = start
        while True:
            first = (number * ranks + rank) * size
            positions = np.arange(first, first + size, dtype=np.int64)
            yield {"tokens": self.take(permute_epochs(positions, len(self), seed))}
            number += 1
