"""The database of the service: its tables, and one connection that all threads use in turn.

Every change is one transaction in WAL mode, so a killed process loses none that was finished.
"""

import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    lane TEXT NOT NULL,
    request TEXT NOT NULL,
    client TEXT NOT NULL,
    attached INTEGER NOT NULL,
    run TEXT NOT NULL,
    once TEXT UNIQUE,
    state TEXT NOT NULL,
    place REAL NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    result TEXT,
    error TEXT,
    keeps INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, lane, place);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL,
    kind TEXT NOT NULL,
    time REAL NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_job ON events (job, number);
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    job TEXT,
    kind TEXT NOT NULL,
    path TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    facts TEXT NOT NULL,
    words TEXT NOT NULL,
    created REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS files_by_job ON files (job, number);
CREATE INDEX IF NOT EXISTS files_by_path ON files (path);
CREATE TABLE IF NOT EXISTS data_sets (
    id TEXT PRIMARY KEY,
    title TEXT NOT NULL,
    pictures INTEGER NOT NULL,
    created REAL NOT NULL
);
"""


class Database:
    """One connection, used by all threads in turn."""

    def __init__(self, path: Path):
        self.lock = threading.RLock()
        self.connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        path.chmod(0o600)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=NORMAL")
        self.connection.executescript(TABLES)
        columns = [name for _, name, *_ in self.query("PRAGMA table_info(jobs)")]
        if "keeps" not in columns:  # of the first services
            self.connection.execute("ALTER TABLE jobs ADD COLUMN keeps INTEGER NOT NULL DEFAULT 0")

    def close(self) -> None:
        with self.lock:
            self.connection.close()

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: complete or not at all."""
        with self.lock:
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
            except BaseException:
                self.connection.execute("ROLLBACK")
                raise
            self.connection.execute("COMMIT")

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.lock:
            return self.connection.execute(sql, values).fetchall()


def new_id() -> str:
    """An id that nobody can guess, of letters, digits, `-` and `_`."""
    return secrets.token_urlsafe(12)
