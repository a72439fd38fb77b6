"""The rows of a slice: a key, and a picture or a text.

Pictures that are not files of this machine are written to a temporary folder, encoded as they are,
so that what computes them reads files whatever the input was.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from triptych.data.disk.files import Place, is_picture, members, reason
from triptych.data.disk.parquet import require_pyarrow
from triptych.fields import nearest
from triptych.passes.inputs import Slice, is_local, open_url, read_lines

KEYS = ("key", "__key__", "id")
PICTURES = ("picture", "image", "file_name", "path", "url", "jpg", "png", "webp")
TEXTS = ("prompt", "text", "caption")
"""Columns that are looked for, the first one that is there."""
READERS = 8  # files of another machine that are read at a time
MAX_BYTES = 200_000_000  # of an encoded picture


@dataclass(frozen=True)
class Row:
    """One row of the input."""

    key: str
    picture: str = ""
    """Path of a picture file."""
    text: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further values of the row."""
    number: int = 0
    """In the complete input."""
    error: str = ""
    """Why there is neither a picture nor a text."""


def read_rows(part: Slice, folder: Path, wants: Literal["picture", "text", "any"]) -> list[Row]:
    """The rows of a slice, in order; `folder` is an empty one for encoded pictures.

    `wants` is what must be there: a table without a column of it is refused.

    Raises:
        ValueError: the file is damaged, or has no such column.
        OSError: it cannot be read.
    """
    if wants == "text" and part.form in ("files", "tar"):
        raise ValueError(
            f"{part.url} holds pictures, where texts are needed: give Parquet, JSONL or a .txt "
            "with a text a line"
        )
    readers = {"files": _of_files, "tar": _of_tar}
    if part.form in readers:
        return readers[part.form](part, folder)
    return list(_of_table(part, folder, wants))


def _of_files(part: Slice, folder: Path) -> list[Row]:
    system, root = open_url(part.url)
    if is_local(system):
        return [Row(name, str(Path(root) / name)) for name in part.names]

    def fetch(numbered: tuple[int, str]) -> Row:
        number, name = numbered
        try:
            return Row(name, _keep(folder, number, _read(system, f"{root.rstrip('/')}/{name}")))
        except (OSError, ValueError) as error:
            return Row(name, error=reason(error))

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(fetch, enumerate(part.names)))


def _of_tar(part: Slice, folder: Path) -> list[Row]:
    """The pictures of a tar; the text beside one, `0001.txt`, is not read."""
    system, path = open_url(part.url)
    local = Path(path)
    if not is_local(system):
        local = folder / "shard.tar"
        with system.open(path, "rb") as source, local.open("wb") as target:
            shutil.copyfileobj(source, target)
    shard = path.rsplit("/", 1)[-1]
    rows = []
    for number, (name, place) in enumerate(members(local)):
        if not is_picture(name):
            continue
        key = f"{shard}/{name}"
        if isinstance(place, Place):
            rows.append(Row(key, _keep(folder, number, place.read())))
        else:
            rows.append(Row(key, error=place))
    return rows


def _of_table(part: Slice, folder: Path, wants: str) -> Iterator[Row]:
    """The rows of Parquet or of lines."""
    shard = part.url.rsplit("/", 1)[-1]
    values = _read_parquet(part) if part.form == "parquet" else _read_lines(part)
    names = dict.fromkeys(name for row in values for name in row)
    picture = next((name for name in PICTURES if name in names), "")
    text = next((name for name in TEXTS if name in names), "")
    key = next((name for name in KEYS if name in names), "")
    for wanted, found, choices in (("picture", picture, PICTURES), ("text", text, TEXTS)):
        if wants == wanted and not found and values:
            raise ValueError(
                f"{part.url} has no column of {wanted}s: it has {', '.join(names) or 'none'}, and "
                f"one of {', '.join(choices)} is needed"
            )
    if not (picture or text) and values:
        raise ValueError(f"{part.url} has neither pictures nor texts: {', '.join(names) or 'none'}")
    open_picture = partial(_open_value, part.url, folder)
    for number, row in enumerate(values):
        place = row.get(picture)
        named = row.get(key, place if isinstance(place, str) and place else None)
        name = f"{shard}:{part.first + number}" if named is None else str(named)
        numbered = partial(Row, name, columns=row, number=part.number + number)
        words = row.get(text)
        if words is not None and not isinstance(words, str):
            yield numbered(error=f"{text} is no text but {type(words).__name__}")
            continue
        try:
            file = open_picture(number, row[picture]) if row.get(picture) is not None else ""
        except (OSError, ValueError) as error:
            yield numbered(text=words or "", error=reason(error))
            continue
        missing = "" if file or words else "the row is empty"
        yield numbered(file, words or "", error=missing)


def _read_parquet(part: Slice) -> list[dict[str, Any]]:
    pyarrow = require_pyarrow()
    system, path = open_url(part.url)
    rows: list[dict[str, Any]] = []
    last = part.first + part.rows
    try:
        with system.open(path, "rb") as source:
            file = pyarrow.parquet.ParquetFile(source)
            start = 0
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if start < last and start + count > part.first:
                    table = file.read_row_group(group)
                    begin = max(0, part.first - start)
                    rows += table.slice(begin, min(count, last - start) - begin).to_pylist()
                start += count
    except pyarrow.ArrowException as error:
        raise ValueError(f"{part.url} cannot be read as Parquet: {error}") from error
    if len(rows) < part.rows:
        raise ValueError(f"{part.url} has fewer rows than when this pass began")
    return rows


def _read_lines(part: Slice) -> list[dict[str, Any]]:
    plain = part.url.lower().endswith(".txt")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(read_lines(part), part.first + 1):
        try:
            row = {"text": line.decode()} if plain else json.loads(line or b"{}")
        except (ValueError, RecursionError) as error:
            what = "UTF-8 text" if isinstance(error, UnicodeDecodeError) or plain else "JSON"
            raise ValueError(f"{part.url}, line {number}: not {what}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{part.url}, line {number}: {{...}} is needed, an object with names")
        rows.append(row)
    return rows


def _open_value(url: str, folder: Path, number: int, value: Any) -> str:
    """The picture of a table: its bytes, bytes in the form of Hugging Face, or a path, relative to
    the file of the table.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return _keep(folder, number, value)
    if not isinstance(value, str) or not value:
        raise ValueError(f"no picture but {type(value).__name__}")
    here, there = open_url(url), value
    if "://" in value:
        system, there = open_url(value)
    else:
        system = here[0]
        base = here[1].rsplit("/", 1)[0] if "/" in here[1] else ""
        there = value if value.startswith("/") else f"{base}/{value}"
        if ".." in value.split("/"):
            raise ValueError("a path that leads outside the folder")
    if is_local(system):
        return there
    return _keep(folder, number, _read(system, there))


def _read(system: Any, path: str) -> bytes:
    with system.open(path, "rb") as file:
        data: bytes = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"a file of more than {MAX_BYTES:,} bytes")
    return data


def _keep(folder: Path, number: int, data: bytes) -> str:
    path = folder / f"{number:07}"
    path.write_bytes(data)
    return str(path)


def chosen_columns(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[Any]]:
    """Values of named columns of the input.

    Raises:
        ValueError: no row has one of them; names the nearest.
    """
    known = list(dict.fromkeys(name for row in rows for name in row.columns))
    for name in names:
        if name not in known and rows:
            raise ValueError(f"the input has no column {name!r}.{nearest(name, known)}")
    return {name: [row.columns.get(name) for row in rows] for name in names}
