"""Pictures of the service by opaque ids: uploaded ones and results; and data sets of uploads."""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triptych.server.jobs.database import Database, new_id

FILE = "number, id, job, kind, path, width, height, facts, created"


@dataclass(frozen=True)
class File:
    """A picture that was uploaded, made, or shown beside a result, such as a heat map."""

    number: int
    id: str
    job: str | None
    kind: str
    """`upload`, `made` or `shown`; uploads have no job."""
    path: str
    """Relative to the home of the service."""
    width: int
    height: int
    facts: dict[str, Any]
    created: float


class Files:
    """The table of pictures, and that of data sets."""

    def __init__(self, database: Database):
        self.database = database

    def add_file(
        self,
        path: str,
        size: tuple[int, int],
        *,
        job: str | None = None,
        kind: str = "upload",
        facts: Mapping[str, Any] | None = None,
        words: str = "",
    ) -> File:
        """Record a picture of this width and height; `words` is what it is found by."""
        key = new_id()
        with self.database.change() as database:
            database.execute(
                "INSERT INTO files (id, job, kind, path, width, height, facts, words, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (key, job, kind, path, *size, json.dumps(facts or {}), words, time.time()),
            )
        return self.file(key)

    def file(self, key: str) -> File:
        """The file of an id.

        Raises:
            KeyError: there is none.
        """
        rows = self.database.query(f"SELECT {FILE} FROM files WHERE id = ?", key)
        if not rows:
            raise KeyError(key)
        return _read_file(rows[0])

    def files_of(self, job: str) -> list[File]:
        rows = self.database.query(f"SELECT {FILE} FROM files WHERE job = ? ORDER BY number", job)
        return [_read_file(row) for row in rows]

    def file_at(self, path: str) -> File | None:
        rows = self.database.query(f"SELECT {FILE} FROM files WHERE path = ?", path)
        return _read_file(rows[0]) if rows else None

    def results(self, words: str = "", before: int | None = None, limit: int = 100) -> list[File]:
        """Pictures that were made, the newest first; each of the words is somewhere in its prompt
        or label.
        """
        chosen = [f"%{_escape(word)}%" for word in words.split()[:16]]
        condition = " AND words LIKE ? ESCAPE '\\'" * len(chosen)
        rows = self.database.query(
            f"SELECT {FILE} FROM files WHERE kind = 'made' AND number < ?{condition} "
            "ORDER BY number DESC LIMIT ?",
            before if before is not None else 1 << 62, *chosen, limit,
        )  # fmt: skip
        return [_read_file(row) for row in rows]

    def forget_file(self, key: str) -> None:
        with self.database.change() as database:
            database.execute("DELETE FROM files WHERE id = ?", (key,))

    def add_data_set(self, title: str) -> str:
        """A new, empty data set; returns its id."""
        key = "data-" + secrets.token_hex(6)
        with self.database.change() as database:
            database.execute("INSERT INTO data_sets VALUES (?, ?, 0, ?)", (key, title, time.time()))
        return key

    def count_pictures(self, key: str, pictures: int) -> None:
        with self.database.change() as database:
            database.execute("UPDATE data_sets SET pictures = ? WHERE id = ?", (pictures, key))

    def data_sets(self) -> dict[str, dict[str, Any]]:
        """Uploaded data sets by id: title and number of pictures."""
        rows = self.database.query(
            "SELECT id, title, pictures, created FROM data_sets ORDER BY created"
        )
        return {
            key: {"title": title, "pictures": count, "created": at}
            for key, title, count, at in rows
        }

    def forget_data_set(self, key: str) -> None:
        with self.database.change() as database:
            database.execute("DELETE FROM data_sets WHERE id = ?", (key,))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _read_file(row: tuple[Any, ...]) -> File:
    number, key, job, kind, path, width, height, facts, created = row
    return File(number, key, job, kind, path, width, height, json.loads(facts), created)
