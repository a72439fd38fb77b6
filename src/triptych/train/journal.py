"""The run folder: one run at a time, `run.json`, and `metrics.jsonl` without a gap or a repeat."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from triptych.atomic import lock_folder


def lock_run(run: Path) -> AbstractContextManager[bool]:
    """Hold the lock of a run folder, which is created if missing.

    Raises:
        RuntimeError: another process is training in this folder.
        OSError: the folder cannot be written.
    """
    return lock_folder(run, instead="choose another --run")


class Journal:
    """Appends rows to `metrics.jsonl`. `offset` is what a checkpoint remembers and a resume cuts
    back to.
    """

    def __init__(self, path: Path, offset: int = 0):
        self.path = path
        self.file = path.open("ab")
        if self.file.tell() < offset:
            raise ValueError(
                f"{path} has {self.file.tell()} bytes, fewer than the {offset} that the checkpoint "
                "saw: it was cut or replaced. Restore it, or start another run"
            )
        self.file.truncate(offset)
        self.file.seek(offset)  # `sync` tells the position, which truncation leaves alone

    def write(self, row: dict[str, Any]) -> None:
        with naming(self.path):
            finite = {k: v if _says_something(v) else None for k, v in row.items()}
            self.file.write(json.dumps(finite).encode() + b"\n")
            self.file.flush()  # to the system, so that a reader and a killed process have it

    def sync(self) -> int:
        """To the disk; returns the offset."""
        with naming(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            return self.file.tell()

    def close(self) -> None:
        with suppress(OSError):  # every row was flushed, or the failure to do so was raised then
            self.file.close()


def _says_something(value: Any) -> bool:
    """JSON has no word for NaN and infinity; a row has null there."""
    return not isinstance(value, float) or math.isfinite(value)


def rows(path: Path) -> list[dict[str, Any]]:
    """Every row of a journal."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """The system's errors about an open file do not say which one, nor what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} could not be written: {error}. Checkpoints are intact: "
            "make room or give access, and continue the run from there"
        ) from error
