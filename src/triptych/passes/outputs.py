"""The files of a result: a part is there completely or not at all."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from triptych.atomic import replace_file, sync
from triptych.data.disk.parquet import require_pyarrow
from triptych.data.disk.parts import Finished
from triptych.passes.compute import Columns, Result
from triptych.passes.rows import Row, chosen_columns
from triptych.vision.images import save_picture

KEY, ERROR = "key", "error"


@dataclass(frozen=True)
class Failed:
    """A part whose input cannot be read."""

    part: int
    reason: str


def write_parquet(
    folder: Path,
    part: int,
    rows: Sequence[Row],
    results: Sequence[Result],
    columns: Columns,
    beside: Sequence[str],
    model: str,
) -> Finished:
    """A part as Parquet: key, result, error, and chosen columns of the input.

    Raises:
        ValueError: a chosen column is not there, or has the name of one of the result.
    """
    pyarrow = require_pyarrow()
    types = {KEY: "text", **columns, ERROR: "text"}
    if taken := [name for name in beside if name in types]:
        raise ValueError(f"--columns {taken[0]}: the result has a column of this name")
    arrays: dict[str, Any] = {
        KEY: pyarrow.array([row.key for row in rows], pyarrow.string()),
        ERROR: pyarrow.array([result.error for result in results], pyarrow.string()),
    }
    for name, kind in columns.items():
        values = [result.values.get(name) for result in results]
        arrays[name] = pyarrow.array(values, _type(pyarrow, kind))
    for name, values in chosen_columns(rows, beside).items():
        arrays[name] = pyarrow.array(values)
    order = [*types, *beside]
    table = pyarrow.table([arrays[name] for name in order], names=order)
    name = f"part-{part:06}.parquet"
    words = [name for name in order if not types.get(name, "").startswith("vector ")]
    with _part(folder, name) as path:  # a dictionary of numbers that are all different is half more
        pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=words)
    errors = sum(bool(result.error) for result in results)
    return _finished(folder, part, name, len(rows), errors, model)


def write_tar(
    folder: Path, part: int, rows: Sequence[Row], results: Sequence[Result], model: str
) -> Finished:
    """A part as a tar of NUMBER.png and NUMBER.json, as WebDataset reads them; each picture carries
    its request.
    """
    name = f"part-{part:06}.tar"
    with (
        _part(folder, name) as path,
        tarfile.open(path, "w") as tar,
        TemporaryDirectory(prefix="triptych-") as spare,
    ):
        for row, result in zip(rows, results, strict=True):
            values = {KEY: row.key, **result.values, ERROR: result.error}
            for number, picture in enumerate(result.pictures):
                stem = f"{row.number:08}-{number:02}"
                file = Path(spare) / "picture.png"
                save_picture(file, picture.pixels, dict(picture.record), picture.parameters)
                _add(tar, f"{stem}.png", file.read_bytes())
                _add(tar, f"{stem}.json", json.dumps(values | dict(picture.facts)).encode())
            if not result.pictures:
                _add(tar, f"{row.number:08}.json", json.dumps(values).encode())
    errors = sum(bool(result.error) for result in results)
    return _finished(folder, part, name, len(rows), errors, model)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _part(folder: Path, name: str) -> Iterator[Path]:
    """The path to write a part to, which is synced and renamed at the end of the block."""
    final = folder / name
    with replace_file(final) as temporary:
        yield temporary
        sync(temporary)
    sync(folder)


def _finished(folder: Path, part: int, name: str, rows: int, errors: int, model: str) -> Finished:
    path = folder / name
    return Finished(part, name, rows, errors, path.stat().st_size, file_digest(path), model)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # its time is 0: equal results are equal files
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _type(pyarrow: Any, kind: str) -> Any:
    """The type of a column: `text`, `number`, `count`, `vector 512`, `labels`, `boxes`."""
    if kind.startswith("vector "):
        return pyarrow.list_(pyarrow.float32(), int(kind.split()[1]))
    number = pyarrow.float64()
    fit = {"label": pyarrow.string(), "cosine": number, "probability": number}
    box = {
        "label": pyarrow.string(),
        "score": number,
        "box": pyarrow.list_(number),
        "pixels": pyarrow.list_(number),
    }
    kinds: Mapping[str, Any] = {
        "text": pyarrow.string(),
        "number": number,
        "count": pyarrow.int64(),
        "labels": pyarrow.list_(pyarrow.struct(fit)),
        "boxes": pyarrow.list_(pyarrow.struct(box)),
    }
    return kinds[kind]
