"""Where results are written: places are checked before the work, and no picture is overwritten."""

import errno
import os
import re
from collections.abc import Collection
from itertools import chain, count
from pathlib import Path

from triptych.cli.output import UsageError

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
NUMBERED = re.compile(r"(\d{4,9})-\d")  # how the names of numbered pictures begin


def require_folder(flag: str, folder: Path) -> None:
    """Check, before the work, that a folder for results exists or can be made.

    Raises:
        UsageError: the path, or a part of it, is a file.
        PermissionError: it is a folder that cannot be written.
    """
    there = next(part for part in (folder, *folder.parents) if os.path.lexists(part))
    if not there.is_dir():
        below = f": {there} is a file" if there != folder else " is a file"
        raise UsageError(f"{flag} {folder}{below}; give a folder, new or existing")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "is not writable", str(there))


def require_file(flag: str, file: Path, endings: Collection[str] = ()) -> None:
    """Check, before the work, that a file can be written, and its ending.

    Raises:
        UsageError: the path is a folder, a part of it is a file, or it ends otherwise.
        PermissionError: its folder cannot be written.
    """
    if endings and file.suffix.lower() not in endings:
        *others, last = endings
        listed = f"{', '.join(others)} or {last}" if others else last
        raise UsageError(f"{flag} {file} should end in {listed}")
    if file.is_dir():
        raise UsageError(f"{flag} {file} is a folder; give the name of a file")
    require_folder(flag, file.parent)


def next_number(folder: Path) -> int:
    """The number of the next picture of a folder: one above those there, such as 0012-7.png."""
    names = [path.name for path in folder.glob("*")]
    return max((int(m[1]) + 1 for m in map(NUMBERED.match, names) if m), default=0)


def free_path(path: Path) -> Path:
    """The path; where it exists, the first of NAME-2.png, NAME-3.png, ... that does not."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(one for one in chain([path], numbered) if not one.exists())
