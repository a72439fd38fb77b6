"""Questions about pictures and their answers, as lines of JSON: picture, prefix, suffix.

Every pair of a picture becomes one of its captions, prefix and suffix with a newline between; so
order, splits and everything else are as for captions.
"""

import json
from pathlib import Path, PurePosixPath

from triptych.data.disk.files import Place, reason
from triptych.data.disk.folder import Sample, build_index, read_place_header
from triptych.data.disk.index import Index, refuse_if_many
from triptych.data.disk.rows import MAX_CAPTION, MAX_TEXT, Row
from triptych.data.disk.splits import canonical

BETWEEN_PAIR = "\n"
"""Ends a prefix, which has none in itself."""
MOST = 10_000_000
"""Lines of a file."""
SHOWN = 5
"""Unusable lines that are quoted."""


def pairs_index(path: Path) -> Index:
    """The index of a .jsonl file; pictures are named relative to its folder. Pictures that cannot
    be used are listed in `skipped`, and lines in a note.

    Raises:
        ValueError: more than a tenth of the lines cannot be used.
    """
    root = path.resolve().parent
    pairs: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    skipped: dict[str, str] = {}
    bad: dict[str, str] = {}
    number = 0
    with path.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_TEXT + 1), b""), 1):
            if number > MOST:
                raise ValueError(f"{path} has more than {MOST:,} lines: split it")
            if not line.strip():
                continue
            try:
                name, text, split = _read(line)
            except ValueError as error:
                bad[f"line {number}"] = str(error)
                continue
            pairs.setdefault(name, []).append(text)
            splits[name] = splits.get(name) or split
    refuse_if_many(bad, number, path.name)
    samples: list[Sample] = []
    for name, texts in pairs.items():
        place = Place(str(root / name))
        try:
            header = read_place_header(place)
        except (ValueError, OSError) as error:
            skipped[name] = reason(error)
            continue
        row = Row(captions=tuple(texts))
        samples.append(Sample(name, name, place, header, row, splits[name]))
    notes = []
    if bad:
        first = "; ".join(f"{line} {why}" for line, why in list(bad.items())[:SHOWN])
        notes.append(f"{len(bad):,} of {number:,} lines cannot be used, and are left out: {first}")
    return build_index(path.name, "questions", samples, skipped, notes)


def _read(line: bytes) -> tuple[str, str, str]:
    """The picture of a line, its pair, and its split.

    Raises:
        ValueError: what is wrong with it.
    """
    if len(line) > MAX_TEXT:
        raise ValueError(f"is longer than {MAX_TEXT:,} bytes")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("is no JSON") from error
    fields = [row.get(key) if isinstance(row, dict) else None for key in KEYS]
    if not all(isinstance(field, str) for field in fields):
        raise ValueError('must be like {"picture": "a.png", "prefix": "...", "suffix": "..."}')
    name, prefix, suffix = (str(field) for field in fields)
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise ValueError(f"names a picture outside its folder: {name[:100]!r}")
    prefix = prefix.rstrip("\n")
    if not prefix.strip() or BETWEEN_PAIR in prefix:
        raise ValueError("has an empty prefix, or one of several lines")
    if len(prefix) + len(suffix) > MAX_CAPTION:
        raise ValueError(f"has more than {MAX_CAPTION:,} characters")
    return str(pure), f"{prefix}{BETWEEN_PAIR}{suffix}", canonical(str(row.get("split") or ""))


KEYS = ("picture", "prefix", "suffix")
