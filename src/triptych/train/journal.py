"""The lock of a run folder, and `metrics.jsonl` without gaps or repeated steps."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from triptych.atomic import lock_folder
from triptych.train.distributed import SINGLE_PROCESS, World


def lock_run(run: Path, world: World = SINGLE_PROCESS) -> AbstractContextManager[object]:
    """Hold the lock of a run folder, which is created if missing; of several processes the first.

    Raises:
        RuntimeError: another process is training in this folder.
        OSError: the folder cannot be written.
    """
    return lock_folder(run, instead="choose another --run") if world.first else nullcontext()


class Journal:
    """Appends rows to `metrics.jsonl`, cut back to `offset`, its size at the last checkpoint.

    Raises:
        ValueError: the file is shorter than that.
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
        self.file.seek(offset)  # truncation does not move the position, which `sync` returns

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; numbers that are not finite, which JSON does not have, become null."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        with explain_write_errors(self.path):
            self.file.write(json.dumps(finite).encode() + b"\n")
            self.file.flush()  # to the system: readers see it, and a kill does not lose it

    def sync(self) -> int:
        """Sync to the disk; returns the size in bytes."""
        with explain_write_errors(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            return self.file.tell()

    def close(self) -> None:
        with suppress(OSError):  # every row was flushed, or that error was raised
            self.file.close()


def rows(path: Path) -> list[dict[str, Any]]:
    """Every row of a journal."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Add to errors of the block which file could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} could not be written: {error}. Checkpoints are intact: "
            "make room or give access, and continue the run from there"
        ) from error
