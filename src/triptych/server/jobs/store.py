"""The queue and its events: what is in it survives a closed page, a restart and a killed process.

Events have numbers that rise over all jobs, so that whoever has seen number N asks for what came
after it.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from triptych.server.jobs.database import Database, new_id

State = Literal["waiting", "running", "cancelling", "done", "failed", "cancelled", "interrupted"]
ACTIVE = ("waiting", "running", "cancelling")
FINAL = ("done", "failed", "cancelled", "interrupted")
PASSING = ("progress", "preview", "text")
"""Kinds of events that are forgotten when the job ends."""
DELETED = "deleted"
"""Kind of the event of a job that is gone, or with `file` of one of its pictures."""


class QueueFull(Exception):
    """No further job can wait: `client` says whether it is this client's share that is used up."""

    def __init__(self, waiting: int, client: bool):
        self.waiting, self.client = waiting, client
        whose = "you have" if client else "there are"
        super().__init__(
            f"{whose} {waiting} jobs waiting already, which is the most: try again later"
        )


@dataclass(frozen=True)
class Job:
    """One job as it is now."""

    number: int
    id: str
    name: str
    """Of its request, such as `text-to-image`."""
    lane: str
    request: dict[str, Any]
    client: str
    attached: bool
    """It belongs to a connection, and ends with it."""
    run: str
    """Of a training: the name of its run folder."""
    state: State
    created: float
    started: float | None
    finished: float | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    keeps: bool = False
    """Every preview is kept, also after its end."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a job."""

    number: int
    job: str
    kind: str
    time: float
    data: dict[str, Any]

    @property
    def is_last(self) -> bool:
        return self.kind in FINAL or (self.kind == DELETED and "file" not in self.data)


JOB = (
    "number, id, name, lane, request, client, attached, run, state, created, started, finished, "
    "result, error, keeps"
)


class Store:
    """The tables of jobs and events."""

    def __init__(self, database: Database):
        self.database = database
        self.query, self.change = database.query, database.change

    # Jobs

    def add_job(
        self,
        name: str,
        lane: str,
        request: Mapping[str, Any],
        *,
        client: str = "",
        attached: bool = False,
        run: str = "",
        once: str | None = None,
        keeps: bool = False,
        most: int = 32,
        most_of_client: int = 32,
    ) -> Job:
        """Put a job at the end of the queue; with `once`, a key of the client's, a second request
        with the same key is the same job.

        Raises:
            QueueFull: `most` jobs wait, or `most_of_client` of this client.
        """
        now = time.time()
        with self.change() as database:
            if once and (
                same := database.execute("SELECT id FROM jobs WHERE once = ?", (once,)).fetchone()
            ):
                return self.job(same[0])
            waiting = "SELECT count(*) FROM jobs WHERE state = 'waiting'"
            (all_waiting,) = database.execute(waiting).fetchone()
            if all_waiting >= most:
                raise QueueFull(all_waiting, client=False)
            (own,) = database.execute(f"{waiting} AND client = ?", (client,)).fetchone()
            if own >= most_of_client:
                raise QueueFull(own, client=True)
            key = new_id()
            database.execute(
                "INSERT INTO jobs (id, name, lane, request, client, attached, run, once, keeps, "
                "state, place, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'waiting', "
                "(SELECT coalesce(max(place), 0) + 1 FROM jobs), ?)",
                (key, name, lane, json.dumps(request), client, attached, run, once, keeps, now),
            )
            self._append(key, "waiting", {"name": name}, now)
        return self.job(key)

    def job(self, key: str) -> Job:
        """The job of an id.

        Raises:
            KeyError: there is none.
        """
        rows = self.query(f"SELECT {JOB} FROM jobs WHERE id = ?", key)
        if not rows:
            raise KeyError(key)
        return _read_job(rows[0])

    def state(self, key: str) -> str:
        """The state of a job; `deleted` where there is none."""
        rows = self.query("SELECT state FROM jobs WHERE id = ?", key)
        return str(rows[0][0]) if rows else DELETED

    def jobs(
        self, states: Sequence[str] = (), before: int | None = None, limit: int = 100
    ) -> list[Job]:
        """The newest jobs first, of all states or these, older than a number."""
        marks = ", ".join("?" * len(states))
        chosen = f"state IN ({marks})" if states else "1"
        rows = self.query(
            f"SELECT {JOB} FROM jobs WHERE {chosen} AND number < ? ORDER BY number DESC LIMIT ?",
            *states, before if before is not None else 1 << 62, limit,
        )  # fmt: skip
        return [_read_job(row) for row in rows]

    def queue(self) -> list[Job]:
        """Running jobs, then waiting ones in the order in which they will run."""
        rows = self.query(
            f"SELECT {JOB} FROM jobs WHERE state IN ('running', 'cancelling', 'waiting') "
            "ORDER BY state = 'waiting', place"
        )
        return [_read_job(row) for row in rows]

    def place(self, key: str) -> int | None:
        """How many jobs of its lane run before a waiting one; None if it does not wait."""
        rows = self.query(
            "SELECT count(*) FROM jobs other, jobs own WHERE own.id = ? AND own.state = 'waiting' "
            "AND other.lane = own.lane AND other.state = 'waiting' AND other.place < own.place", key
        )  # fmt: skip
        waits = self.query("SELECT 1 FROM jobs WHERE id = ? AND state = 'waiting'", key)
        return int(rows[0][0]) if waits else None

    def move(self, key: str, place: int) -> None:
        """Move a waiting job to a place among those of its lane, 0 for the next.

        Raises:
            ValueError: it does not wait.
        """
        with self.change() as database:
            row = database.execute(
                "SELECT lane FROM jobs WHERE id = ? AND state = 'waiting'", (key,)
            )
            found = row.fetchone()
            if found is None:
                raise ValueError("the job does not wait any more")
            others = [
                other
                for (other,) in database.execute(
                    "SELECT id FROM jobs WHERE state = 'waiting' AND lane = ? AND id != ? "
                    "ORDER BY place", (found[0], key),
                )
            ]  # fmt: skip
            others.insert(max(0, min(place, len(others))), key)
            places = sorted(
                place
                for (place,) in database.execute(
                    "SELECT place FROM jobs WHERE state = 'waiting' AND lane = ?", (found[0],)
                )
            )
            for value, other in zip(places, others, strict=True):
                database.execute("UPDATE jobs SET place = ? WHERE id = ?", (value, other))
            self._append(key, "moved", {"place": others.index(key)})

    def take(self, lane: str) -> Job | None:
        """The next waiting job of a lane, which now runs; None if there is none."""
        with self.change() as database:
            row = database.execute(
                "SELECT id FROM jobs WHERE lane = ? AND state = 'waiting' ORDER BY place LIMIT 1",
                (lane,),
            ).fetchone()
            if row is None:
                return None
            now = time.time()
            database.execute(
                "UPDATE jobs SET state = 'running', started = ? WHERE id = ?", (now, row[0])
            )
            self._append(row[0], "running", {}, now)
        return self.job(row[0])

    def cancel(self, key: str) -> State:
        """Cancel a job: one that waits is cancelled at once, one that runs is marked.

        Returns:
            The new state; of a job that has ended, the one it ended in.

        Raises:
            KeyError: there is no such job.
        """
        with self.change() as database:
            row = database.execute("SELECT state FROM jobs WHERE id = ?", (key,)).fetchone()
            if row is None:
                raise KeyError(key)
            if row[0] == "waiting":
                self._end(key, "cancelled", None, None)
                return "cancelled"
            if row[0] == "running":
                database.execute("UPDATE jobs SET state = 'cancelling' WHERE id = ?", (key,))
                self._append(key, "cancelling", {})
                return "cancelling"
            state: State = row[0]
            return state

    def end(
        self,
        key: str,
        state: State,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """Record how a job ended, once: a second end changes nothing."""
        with self.change():
            self._end(key, state, result, error)

    def interrupt_all(self) -> list[str]:
        """At the start: what ran is interrupted, and so is what waited for a connection that is
        gone. Returns their ids.
        """
        with self.change() as database:
            found = [
                key
                for (key,) in database.execute(
                    "SELECT id FROM jobs WHERE state IN ('running', 'cancelling') "
                    "OR (state = 'waiting' AND attached)"
                ).fetchall()
            ]
            for key in found:
                self._end(key, "interrupted", None, {"message": "the service was stopped"})
        return found

    def done(self, key: str) -> dict[str, Any]:
        """What a job has said last of its progress; nothing before it has said something."""
        rows = self.query(
            "SELECT data FROM events WHERE job = ? AND kind = 'progress' "
            "ORDER BY number DESC LIMIT 1", key,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(rows[0][0]) if rows else {}
        return found

    def forget_picture(self, key: str, file: str) -> None:
        """Take a picture out of the result of its job, and tell everybody."""
        with self.change() as database:
            row = database.execute("SELECT result FROM jobs WHERE id = ?", (key,)).fetchone()
            if row and row[0]:
                result = json.loads(row[0])
                result["pictures"] = [one for one in result["pictures"] if one["id"] != file]
                database.execute(
                    "UPDATE jobs SET result = ? WHERE id = ?", (json.dumps(result), key)
                )
            self._append(key, DELETED, {"file": file})

    def forget(self, key: str) -> list[str]:
        """Remove a job that has ended, its events and its files, and tell everybody; returns the
        paths of the files.
        """
        with self.change() as database:
            paths = [p for (p,) in database.execute("SELECT path FROM files WHERE job = ?", (key,))]
            for table, column in (("files", "job"), ("events", "job"), ("jobs", "id")):
                database.execute(f"DELETE FROM {table} WHERE {column} = ?", (key,))
            self._append(key, DELETED, {})
        return paths

    def _end(self, key: str, state: State, result: Any, error: Any) -> None:
        now = time.time()
        ended = self.database.connection.execute(
            "UPDATE jobs SET state = ?, finished = ?, result = ?, error = ? WHERE id = ? "
            "AND state IN ('waiting', 'running', 'cancelling')",
            (state, now, _dump(result), _dump(error), key),
        )
        if ended.rowcount:
            marks = ", ".join("?" * len(PASSING))
            self.database.connection.execute(
                f"DELETE FROM events WHERE job = ? AND kind IN ({marks}) AND NOT (kind = 'preview' "
                "AND (SELECT keeps FROM jobs WHERE id = ?))", (key, *PASSING, key),
            )  # fmt: skip
            self._append(key, state, {"error": error} if error else {}, now)

    # Events

    def append(self, key: str, kind: str, data: Mapping[str, Any]) -> int:
        """Add an event; returns its number. Of previews only the last one is kept, unless the job
        keeps all.
        """
        if kind != "preview":
            with self.database.lock:  # one statement is a transaction of its own
                return self._append(key, kind, data)
        with self.change() as database:
            database.execute(
                "DELETE FROM events WHERE job = ? AND kind = 'preview' "
                "AND NOT (SELECT keeps FROM jobs WHERE id = ?)", (key, key),
            )  # fmt: skip
            return self._append(key, kind, data)

    def _append(
        self, key: str, kind: str, data: Mapping[str, Any], now: float | None = None
    ) -> int:
        done = self.database.connection.execute(
            "INSERT INTO events (job, kind, time, data) VALUES (?, ?, ?, ?)",
            (key, kind, time.time() if now is None else now, json.dumps(data)),
        )
        return int(done.lastrowid or 0)

    def last_event(self) -> int:
        """The number of the newest event, which may be forgotten already."""
        rows = self.query("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        return int(rows[0][0]) if rows else 0

    def events(self, after: int = 0, job: str = "", limit: int = 500) -> list[Event]:
        """The events after a number, of all jobs or one."""
        own = "job = ?" if job else "? = ''"
        rows = self.query(
            f"SELECT number, job, kind, time, data FROM events WHERE number > ? AND {own} "
            "ORDER BY number LIMIT ?", after, job, limit,
        )  # fmt: skip
        return [
            Event(number, of, kind, at, json.loads(data)) for number, of, kind, at, data in rows
        ]


def _dump(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _read_job(row: tuple[Any, ...]) -> Job:
    number, key, name, lane, request, client, attached, run, state, *times, result, error, keeps = (
        row
    )
    read = [None if text is None else json.loads(text) for text in (result, error)]
    return Job(
        number, key, name, lane, json.loads(request), client, bool(attached), run, state,
        times[0], times[1], times[2], read[0], read[1], bool(keeps),
    )  # fmt: skip
