"""A disk that stops: counts a process's file operations, and dies or fails at one of them.

Three ways to die at operation n. `before`: killed, the operation never happened (so killed after
it is `before` n + 1). `torn`: killed in the middle of a write. `cut`: killed before it, and the
power went too, so the disk has lost whatever no fsync had secured: bytes of a file, entries of a
checkpoint folder, renames. `fail` raises an OSError instead, and `refuse` at every later operation
too.
"""

import builtins
import errno
import io
import json
import os
import signal
import stat
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from triptych.weights.files import safetensors as files

KILLED = 9
REAL = {
    name: getattr(os, name)
    for name in (
        "open",
        "mkdir",
        "rename",
        "replace",
        "unlink",
        "rmdir",
        "fsync",
        "chmod",
        "truncate",
    )
}
REAL_OPEN, REAL_SAVE_FILE = io.open, files.save_file


class Disk:
    """File operations below `root`, from the moment it is installed; the last is `at`."""

    def __init__(self, root: Path, at: int, how: str, code: int = errno.ENOSPC):
        self.root, self.at, self.how, self.code = root, at, how, code
        self.count = 0
        self.log: list[
            tuple[str, str, str]
        ] = []  # name; what is on the disk before it; after a cut
        self.looks = False  # whether the last two are wanted
        self.secured: dict[
            int, int
        ] = {}  # inode of a file: bytes of it that are on the disk for sure
        self.renamed: list[tuple[str, str]] = []  # in the run folder, not secured yet
        self.created: list[tuple[int, str]] = []  # inode of a checkpoint folder, name in it

    def install(self, patch: Callable[[object, str, object], None] = setattr) -> None:
        for name in ("mkdir", "unlink", "rmdir", "chmod"):
            patch(os, name, self._plain(name))
        for name in ("rename", "replace"):
            patch(os, name, self._rename(REAL[name]))
        patch(os, "open", self._os_open)
        patch(os, "fsync", self._fsync)
        patch(io, "open", self._open)
        patch(builtins, "open", self._open)
        patch(files, "save_file", self._save_file)

    def reached(self, name: str, half: Callable[[], Any] | None = None) -> None:
        """Called before every operation; `half` does a part of it."""
        self.count += 1
        self.log.append((name, *(map(repr, self._left()) if self.looks else ("", ""))))
        if self.count < self.at or (self.count > self.at and self.how != "refuse"):
            return
        if self.how in ("fail", "refuse"):
            raise OSError(self.code, os.strerror(self.code))
        if self.how == "torn" and half is not None:
            half()
        if self.how == "cut":
            self._lose()
        os._exit(KILLED)

    def _plain(self, name: str) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            self.reached(name)
            return REAL[name](*arguments, **options)

        return operation

    def _rename(self, real: Callable[..., None]) -> Callable[..., None]:
        def operation(source: Any, target: Any) -> None:
            self.reached("rename")
            if Path(target).parent == self.root and not os.path.exists(target):
                self.renamed.append((str(source), str(target)))
            real(source, target)

        return operation

    def _os_open(self, path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if not flags & os.O_CREAT:
            return int(REAL["open"](path, flags, *arguments, **options))
        self.reached("create")
        new = not os.path.exists(path)
        descriptor: int = REAL["open"](path, flags, *arguments, **options)
        if new:
            self._born(Path(path))
        return descriptor

    def _open(self, path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode in ("r", "rb"):
            return REAL_OPEN(path, mode, *arguments, **options)
        self.reached("open")
        new = not isinstance(path, int) and not os.path.exists(path)
        file = REAL_OPEN(path, mode, *arguments, **options)
        if new:
            self._born(Path(path))
        status = os.fstat(file.fileno())
        known = self.secured.get(status.st_ino, status.st_size)
        self.secured[status.st_ino] = min(known, status.st_size)
        return Watched(file, self)

    def _save_file(self, tensors: Any, path: Path, metadata: Any = None) -> None:
        def half() -> None:
            REAL_SAVE_FILE(tensors, path)
            REAL["truncate"](path, path.stat().st_size // 2)

        try:
            self.reached("write", half)
        except OSError as error:  # what the library makes of it
            text = f"I/O error: {error.strerror} (os error {error.errno})"
            raise SafetensorError(f"Error while serializing: {text}") from error
        REAL_SAVE_FILE(tensors, path)
        self._born(path)

    def _born(self, path: Path) -> None:
        self.secured[path.stat().st_ino] = 0
        if path.parent.name.startswith(".step-"):
            self.created.append((path.parent.stat().st_ino, path.name))

    def _fsync(self, descriptor: int) -> None:
        """Only in name: nothing here outlives the machine, and real ones take minutes in all."""
        self.reached("fsync")
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self.created = [(inode, name) for inode, name in self.created if inode != status.st_ino]
            if status.st_ino == self.root.stat().st_ino:
                self.renamed.clear()
        else:
            self.secured[status.st_ino] = status.st_size

    def _left(self) -> tuple[list[Any], list[Any]]:
        """What is on the disk now, and what would be after a cut."""
        whole: list[Any] = []
        cut: list[Any] = [[Path(target).name for _, target in self.renamed]]
        for folder, _, names in os.walk(self.root):
            inode, shown = os.stat(folder).st_ino, folder.replace(str(os.getpid()), "PID")
            whole.append(shown)
            for name in names:
                with REAL_OPEN(os.path.join(folder, name), "rb") as file:
                    data = file.read()
                    secured = self.secured.get(os.fstat(file.fileno()).st_ino, len(data))
                whole.append((name, hash(data)))
                if (inode, name) not in self.created:
                    cut.append((shown, name, hash(data[:secured])))
        return whole, cut

    def _lose(self) -> None:
        for folder, _, names in os.walk(self.root):
            inode = os.stat(folder).st_ino
            for name in names:
                path = os.path.join(folder, name)
                status = os.stat(path)
                if (inode, name) in self.created:
                    REAL["unlink"](path)
                elif status.st_size > self.secured.get(status.st_ino, status.st_size):
                    REAL["truncate"](path, self.secured[status.st_ino])
        for source, target in reversed(self.renamed):
            if os.path.exists(target) and os.path.isdir(os.path.dirname(source)):
                REAL["rename"](target, source)


class Watched:
    """An open file whose writes count."""

    def __init__(self, file: Any, disk: Disk):
        self.file, self.disk = file, disk

    def write(self, data: Any) -> int:
        def half() -> None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()

        self.disk.reached("write", half)
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def live(work: Callable[[], Iterable[object]], reports: int | None = None, delay: float = 0) -> int:
    """Run a generator in a fork; returns its exit code.

    With `reports` it is killed: `delay` seconds after its report of that number, or in its first
    moments for 0. It waits for this process at every report, so it gets no further than the next.
    """
    reading, reporting = os.pipe()
    waiting, going = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.close(going)
        code = 1
        try:
            for _ in work():
                os.write(reporting, b".")
                os.read(waiting, 1)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(reporting)
    os.close(waiting)
    count = 0
    while count != reports and os.read(reading, 1):
        os.write(going, b".")
        count += 1
    if count == reports:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(reading)
    os.close(going)
    return code


def dies(work: Callable[[], object], disk: Disk) -> bool:
    """Run `work` in a fork on this disk; False if it came to its end before operation `at`."""
    child = os.fork()
    if child == 0:
        try:
            disk.install()
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"operation {disk.count} of {disk.log[-5:]}: {error!r}\n".encode())
            os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED), f"the child ended with {code} at operation {disk.at}"
    return code == KILLED


def record(work: Callable[[], object], disk: Disk) -> list[list[str]]:
    """The log of every operation of `work`, which runs to its end in a fork on this disk."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            disk.install()
            work()
            with REAL_OPEN(writing, "w") as file:
                json.dump(disk.log, file)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with REAL_OPEN(reading) as file:
        written = file.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, "the work failed on a disk without faults"
    log: list[list[str]] = json.loads(written)
    return log


def deaths(work: Callable[[], object], root: Path) -> list[tuple[int, str]]:
    """Every (operation, how) of `work` that leaves another disk: few operations do."""
    disk = Disk(root, 0, "")
    disk.looks = True
    log = record(work, disk)
    found, met = [], set()
    for at, (name, whole, cut) in enumerate(log, start=1):
        if whole not in met:
            found.append((at, "before"))
        if cut not in met:
            found.append((at, "cut"))
        if name == "write":
            found.append((at, "torn"))
        met |= {whole, cut}
    return [*found, (len(log) + 1, "before")]
