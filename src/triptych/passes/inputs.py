"""An input as slices: runs of rows that one process reads and computes at a time."""

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from triptych.data.disk.files import RANGE, expand_range, is_picture, list_files, reason
from triptych.data.disk.parquet import require_pyarrow

Form = Literal["files", "tar", "parquet", "lines"]
ENDINGS: dict[str, Form] = {
    ".tar": "tar",
    ".parquet": "parquet",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".txt": "lines",
}
MAX_LINE = 1 << 24  # bytes of a line of JSON


@dataclass(frozen=True)
class Slice:
    """Rows that become one part of the result."""

    form: Form
    url: str
    """The file, or the folder of files."""
    first: int
    """Number of its first row, in its file; of files in the folder."""
    rows: int
    """0 for a tar, whose members are not counted before it is read."""
    number: int = 0
    """Number of its first row in the complete input, from which the seeds of pictures follow."""
    offset: int = 0
    """Of lines: the byte at which the first one begins."""
    names: tuple[str, ...] = ()
    """Of files: their names in the folder."""


def open_url(url: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path in it.

    Raises:
        ValueError: no such kind of URL, or its package is not installed.
    """
    from fsspec.core import url_to_fs  # a dependency of torch

    try:
        system, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url}: {error}") from error
    return system, path


def is_local(system: Any) -> bool:
    """Whether its paths are those of files on this machine."""
    return "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,))


def plan_slices(url: str, part_size: int) -> Iterator[Slice]:
    """The slices of an input, in order: a file, a folder, a range such as {000..012}, or `*`.

    Raises:
        ValueError: there is nothing at this place, or nothing that can be read; several kinds of
            files; a file that cannot be read.
    """
    if RANGE.search(url):
        return _number(_of_files([_require_file(each) for each in expand_range(url)], part_size))
    system, path = open_url(url)
    try:
        if "*" in path:
            found = sorted(system.glob(path))
            if not found:
                raise ValueError(f"there is no file {url}")
            return _number(_of_files([system.unstrip_protocol(p) for p in found], part_size))
        if system.isfile(path):
            return _number(_of_files([url], part_size))
        if not system.isdir(path):
            raise ValueError(f"there is no {url}: give a folder, tars, Parquet, JSONL or .txt")
        names = _list_folder(system, path)
    except OSError as error:
        raise ValueError(f"{url} cannot be read: {reason(error)}") from error
    pictures = [name for name in names if is_picture(name)]
    shards = [name for name in names if _ending(name) in ENDINGS and _ending(name) != ".txt"]
    if pictures and any(_ending(name) in (".tar", ".parquet") for name in shards):
        raise ValueError(
            f"{url} has both pictures ({pictures[0]}) and files of many ({shards[0]}): give the "
            "one or the other, such as " + posixpath.join(url, "*" + _ending(shards[0]))
        )
    if pictures:
        return _number(_of_pictures(url, pictures, part_size))
    if not shards:
        raise ValueError(f"{url} holds no pictures, tars, Parquet or JSONL")
    return _number(_of_files([posixpath.join(url, name) for name in shards], part_size))


def _list_folder(system: Any, path: str) -> list[str]:
    """Names of all files below a folder, sorted, without hidden ones; on this machine without links
    that lead out of it.
    """
    if is_local(system):
        return list(list_files(Path(path)).files)
    root = path.rstrip("/") + "/"
    names = [found[len(root) :] for found in system.find(path) if found.startswith(root)]
    return sorted(n for n in names if not any(part[:1] in "._" for part in n.split("/")))


def _of_pictures(url: str, names: Sequence[str], part_size: int) -> Iterator[Slice]:
    for first in range(0, len(names), part_size):
        chosen = tuple(names[first : first + part_size])
        yield Slice("files", url, first, len(chosen), names=chosen)


def _of_files(urls: Sequence[str], part_size: int) -> Iterator[Slice]:
    for url in urls:
        form = ENDINGS.get(_ending(url))
        if form is None:
            raise ValueError(
                f"{url} is no folder, tar, Parquet, JSONL or .txt; one picture needs no --batch"
            )
        if form == "tar":
            yield Slice("tar", url, 0, 0)
        else:
            yield from (_of_parquet if form == "parquet" else _of_lines)(url, part_size)


def _of_parquet(url: str, part_size: int) -> Iterator[Slice]:
    pyarrow = require_pyarrow()
    system, path = open_url(url)
    try:
        with system.open(path, "rb") as file:
            rows = pyarrow.parquet.ParquetFile(file).metadata.num_rows
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{url} cannot be read as Parquet: {reason(error)}") from error
    for first in range(0, rows, part_size):
        yield Slice("parquet", url, first, min(part_size, rows - first))


def _of_lines(url: str, part_size: int) -> Iterator[Slice]:
    system, path = open_url(url)
    first = offset = 0
    try:
        with system.open(path, "rb") as file:
            while lengths := [len(line) for line in islice(_lines(file, url), part_size)]:
                yield Slice("lines", url, first, len(lengths), offset=offset)
                first, offset = first + len(lengths), offset + sum(lengths)
    except OSError as error:
        raise ValueError(f"{url} cannot be read: {reason(error)}") from error


def _lines(file: Any, url: str) -> Iterator[bytes]:
    """Lines with their ends.

    Raises:
        ValueError: one has more than 16 MB.
    """
    for line in iter(lambda: file.readline(MAX_LINE + 1), b""):
        if len(line) > MAX_LINE:
            raise ValueError(f"{url}: a line of more than {MAX_LINE:,} bytes")
        yield line


def read_lines(part: Slice) -> list[bytes]:
    """The lines of a slice, without their ends.

    Raises:
        ValueError: the file has fewer lines now.
        OSError: it cannot be read.
    """
    system, path = open_url(part.url)
    with system.open(path, "rb") as file:
        file.seek(part.offset)
        lines = [line.rstrip(b"\r\n") for line in islice(_lines(file, part.url), part.rows)]
    if len(lines) < part.rows:
        raise ValueError(f"{part.url} has fewer lines than when this pass began")
    return lines


def _number(slices: Iterator[Slice]) -> Iterator[Slice]:
    number = 0
    for part in slices:
        yield replace(part, number=number)
        number += part.rows


def _require_file(url: str) -> str:
    system, path = open_url(url)
    if not system.exists(path):
        raise ValueError(f"there is no {url}")
    return url


def _ending(name: str) -> str:
    return posixpath.splitext(name)[1].lower()
