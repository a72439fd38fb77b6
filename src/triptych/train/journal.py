"""The lock of a run folder, and `metrics.jsonl` without gaps or repeated steps."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from triptych.atomic import lock_folder
from triptych.train.distributed import SINGLE_PROCESS, World


@contextmanager
def lock_run(run: Path, world: World = SINGLE_PROCESS) -> Iterator[None]:
    """Hold the lock of a run folder, which is created if missing; of several processes the first.

    A folder that was created for a run that fails before its first step is removed.

    Raises:
        RuntimeError: another process is training in this folder.
        OSError: the folder cannot be written.
    """
    if not world.first:
        yield
        return
    created = [folder for folder in (run, *run.parents) if not folder.exists()]
    with lock_folder(run, instead="choose another --run"):
        try:
            yield
        except BaseException:
            if run in created and not _has_begun(run):
                shutil.rmtree(run)
                for folder in created[1:]:
                    with suppress(OSError):  # another run is in it by now
                        folder.rmdir()
            raise


def _has_begun(run: Path) -> bool:
    """Whether a run folder has the result of a step."""
    journal = run / "metrics.jsonl"
    return any(run.glob("step-*")) or (journal.exists() and journal.stat().st_size > 0)


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
    """Add to errors of the block which file of a run could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        saved = any(path.parent.glob("step-*"))
        explained = OSError(
            f"{path} could not be written: {error}. "
            + (
                "Checkpoints are intact: make room or give access, and continue the run from there"
                if saved
                else "Nothing was saved yet: make room or give access, and start again"
            )
        )
        explained.errno = error.errno
        raise explained from error
