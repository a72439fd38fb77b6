"""Files and folders that appear complete or not at all, and locks on folders.

A process may be killed at any moment: content is written under a temporary name beside its target
and then renamed. What must survive a power failure is synced to the disk before.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to, renamed to `path` at the end of the block; removed if it fails.

    Raises:
        OSError: the file cannot be written, naming `path`; what was there before stays.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)) and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def make_parents(path: Path) -> Iterator[None]:
    """Make the folders above a path that are missing; if the block fails, remove them again."""
    missing = [folder for folder in path.parents if not folder.exists()]
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # another process has put something there
                folder.rmdir()
        raise


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, renamed to `path` at the end of the block; removed if it fails.

    A folder that is there already is first renamed to `NAME-old-PROCESS`, and removed last.

    Raises:
        OSError: the folder cannot be written; what was there before stays.
    """
    temporary = _temporary(path)
    old = path.with_name(f"{path.name}-old-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had the same number
    with make_parents(path):
        try:
            temporary.mkdir()
            yield temporary
            sync(temporary)
            if path.exists():
                path.rename(old)
            temporary.rename(path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists() and not path.exists():
                old.rename(path)
            raise
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8 and sync it."""
    path.write_text(text, encoding="utf-8")
    sync(path)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left in a folder.

    safetensors writes to a file such as `.tmp6oLT7O` in the same folder before it renames it.
    """
    for path in (*folder.glob("*.tmp-*"), *folder.glob(".tmp" + 6 * "[0-9A-Za-z]")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def lock_folder(folder: Path, instead: str = "") -> Iterator[bool]:
    """Hold the lock of a folder, which is created if missing, for one process at a time.

    The system releases the lock when the process ends, so a stale one is simply taken over. Forked
    children do not inherit it. With `instead`, advice for the error message, a lock that another
    process holds is an error; otherwise it is waited for, and True is yielded.

    Raises:
        RuntimeError: another process holds the lock, and `instead` is given.
        OSError: the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # here: this module belongs to every quick `--help`

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "lock"
    # Not of one thread: a generator that holds a lock may be continued and closed by another.
    lock = FileLock(file, thread_local=False)
    waited = False
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if instead:
            holder = file.read_text().strip() or "unknown"
            raise RuntimeError(
                f"{folder} is in use by process {holder}: wait for it, stop it, or {instead}"
            ) from None
        lock.acquire()
        waited = True
    try:
        try:
            file.write_text(f"{os.getpid()}\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file)) from error
        yield waited
    finally:
        lock.release()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")
