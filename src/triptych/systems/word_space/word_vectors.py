"""Word vectors from the file formats they are shared in.

`.txt` and `.vec`, plain or `.gz`: a word and its numbers per line (GloVe, word2vec's text format),
optionally after a line with the numbers of words and dimensions. `.npz`: `words` and `vectors`.
`.json`: an object from each word to its list of numbers. Nothing in a file is executed.

Dimensions: N words, K names, E numbers of a word vector.
"""

import gzip
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TextIO, cast

import numpy as np
from jaxtyping import Float32

MAX_BYTES = 8 << 30  # of all vectors, and of an unpacked JSON file
MAX_LINE = 1 << 20  # characters
BETWEEN_WORDS = re.compile(r"[\s_\-/]+")


@dataclass(frozen=True, eq=False)
class WordVectors:
    """Words and their vectors."""

    name: str
    """The file's name."""
    words: tuple[str, ...]
    vectors: Float32[np.ndarray, "N E"]

    def of(self, names: Sequence[str]) -> Float32[np.ndarray, "K E"]:
        """The vectors of names; the mean over its words for a name of several.

        A name is looked up as it is, then in lower case, then word by word ("fire truck",
        "fire_truck", "fire-truck").

        Raises:
            ValueError: words are unknown, with the nearest known ones.
        """
        index: dict[str, int] = {}
        for row, word in enumerate(self.words):
            index.setdefault(word, row)
        vectors, unknown = [], []
        for name in names:
            rows, missing = _look_up(name, index)
            unknown += missing
            vectors.append(self.vectors[rows].mean(0) if rows else None)
        if unknown:
            close = {word: get_close_matches(word, self.words, n=3) for word in unknown}
            listed = "; ".join(
                f"{word!r}" + (f" (similar: {', '.join(near)})" if near else "")
                for word, near in close.items()
            )
            raise ValueError(
                f"{self.name} has no vectors for {listed}. Rename these classes, or use a file "
                "with more words"
            )
        return np.stack([vector for vector in vectors if vector is not None]).astype(np.float32)


def read_word_vectors(path: Path) -> WordVectors:
    """Read a file of word vectors; its suffix is its format.

    Raises:
        ValueError: there is no such file, or it is damaged, with the line and the reason.
    """
    endings = [suffix.lower() for suffix in path.suffixes]
    kind = endings[-2] if len(endings) > 1 and endings[-1] == ".gz" else (endings or [""])[-1]
    if not path.is_file():
        raise ValueError(f"there is no file {path} with word vectors")
    try:
        if kind == ".npz":
            words, vectors = _read_npz(path)
        elif kind == ".json":
            words, vectors = _parse_json(_read_text(path))
        elif kind == ".bin":
            raise ValueError(
                "word2vec's binary format is not supported: save it as text, a word and its "
                "numbers per line"
            )
        else:
            with _open(path) as lines:
                words, vectors = _parse_lines(lines)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, ValueError, KeyError) as error:
        raise ValueError(f"{path.name} cannot be read as word vectors: {error}") from error
    except (zipfile.BadZipFile, RecursionError) as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
    _check(path.name, words, vectors)
    return WordVectors(path.name, words, vectors)


def _look_up(name: str, index: dict[str, int]) -> tuple[list[int], list[str]]:
    for key in (name, name.lower(), BETWEEN_WORDS.sub("_", name.strip().lower())):
        if key in index:
            return [index[key]], []
    parts = [part for part in BETWEEN_WORDS.split(name.strip()) if part]
    rows, missing = [], []
    for part in parts or [name]:
        row = index.get(part, index.get(part.lower()))
        if row is None:
            missing.append(part)
        else:
            rows.append(row)
    return rows, missing


def _open(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8", newline="\n"))
    return path.open("r", encoding="utf-8", newline="\n")


def _read_text(path: Path) -> str:
    with _open(path) as file:
        text: str = file.read(MAX_BYTES)
    return text


def _parse_lines(lines: Iterable[str]) -> tuple[tuple[str, ...], Float32[np.ndarray, "N E"]]:
    words: list[str] = []
    rows: list[Float32[np.ndarray, " E"]] = []
    announced: tuple[int, int] | None = None
    width = 0
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            raise ValueError(f"line {number} has more than {MAX_LINE:,} characters")
        fields = line.rstrip("\r\n ").split(" ")
        if number == 1 and len(fields) == 2 and all(f.isdigit() for f in fields):
            announced = int(fields[0]), int(fields[1])
            width = announced[1]
            continue
        if fields == [""]:
            raise ValueError(f"line {number} is empty")
        width = width or len(fields) - 1
        # A word may contain spaces (". . ." in GloVe 840B), so numbers are counted from the end.
        word, numbers = " ".join(fields[:-width]), fields[-width:]
        if not word or width < 1 or len(fields) <= width:
            raise ValueError(f"line {number} has {len(fields) - 1} numbers instead of {width}")
        try:
            rows.append(np.array(numbers, dtype=np.float32))
        except ValueError:
            raise ValueError(
                f"line {number}, {word[:40]!r}: expected a word and {width} numbers, separated by "
                "single spaces"
            ) from None
        words.append(word)
        if len(rows) * width * 4 > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes of vectors")
    if announced and announced[0] != len(words):
        raise ValueError(
            f"the first line says {announced[0]:,} words, but there are {len(words):,}"
        )
    if not rows:
        raise ValueError("it has no words")
    return tuple(words), np.stack(rows)


def _read_npz(path: Path) -> tuple[tuple[str, ...], Float32[np.ndarray, "N E"]]:
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes when unpacked")
    with np.load(path, allow_pickle=False) as arrays:
        if not {"words", "vectors"} <= set(arrays.files):
            names = ", ".join(arrays.files) or "no arrays"
            raise ValueError(f"it has {names}; expected the arrays `words` and `vectors`")
        words, vectors = arrays["words"], arrays["vectors"]
    if words.ndim != 1 or words.dtype.kind not in "US":
        raise ValueError(f"`words` must be a list of strings, not {words.dtype} {words.shape}")
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != len(words):
        raise ValueError(
            f"`vectors` must be numbers of shape ({len(words)}, E), not {vectors.dtype} "
            f"{vectors.shape}"
        )
    texts = [w.decode("utf-8") if isinstance(w, bytes) else str(w) for w in words.tolist()]
    return tuple(texts), vectors.astype(np.float32)


def _parse_json(text: str) -> tuple[tuple[str, ...], Float32[np.ndarray, "N E"]]:
    def refuse_repeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a word occurs twice")
        return dict(pairs)

    table = json.loads(text, object_pairs_hook=refuse_repeated)
    if not isinstance(table, dict) or not table:
        raise ValueError("expected an object from each word to its list of numbers")
    width = 0
    for word, row in table.items():
        numbers = isinstance(row, list) and row and all(type(v) in (int, float) for v in row)
        width = width or (len(row) if isinstance(row, list) else 0)
        if not numbers or len(row) != width:
            raise ValueError(f"{word[:40]!r} does not have a list of {width} numbers")
    return tuple(table), np.array(list(table.values()), dtype=np.float32)


def _check(name: str, words: tuple[str, ...], vectors: Float32[np.ndarray, "N E"]) -> None:
    if not len(words) or not vectors.shape[1]:
        raise ValueError(f"{name} has no word vectors")
    bad = ~np.isfinite(vectors).all(1)
    if bad.any():
        raise ValueError(f"{name}: the vector of {words[int(bad.argmax())]!r} is not finite")
    repeated = len(words) - len(set(words))
    if repeated:
        seen: set[str] = set()
        first = next(word for word in words if word in seen or seen.add(word))  # type: ignore[func-returns-value]
        raise ValueError(f"{name} has {repeated} repeated words, such as {first!r}")
