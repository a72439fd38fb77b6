"""Lists the files of a folder or a tar without opening or extracting any of them.

Nothing outside the folder is read: links that lead out of it, links to folders, pipes, sockets and
devices are skipped, with the reason.
"""

import os
import re
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from posixpath import basename, normpath, splitext
from typing import NamedTuple

from triptych.vision.images import read_part

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}
UNSUPPORTED = {".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".svg", ".psd"}  # are reported
KNOWN_ENDINGS = PICTURES | UNSUPPORTED
UNPACK = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_SHARDS = 100_000


class Place(NamedTuple):
    """Where a file's bytes are: the whole of `path`, or a part of it (a member of a tar)."""

    path: str
    offset: int = 0
    size: int | None = None

    def head(self, size: int) -> bytes:
        """The first bytes."""
        return read_part(
            self.path, self.offset, size if self.size is None else min(size, self.size)
        )

    def read(self) -> bytes:
        """All bytes. ValueError if the file ends too early, OSError if it cannot be read."""
        data = read_part(self.path, self.offset, self.size)
        if self.size is not None and len(data) < self.size:
            raise ValueError("cut short")
        return data


class Listing(NamedTuple):
    """Files by their name inside the data set, and what was skipped and why."""

    files: dict[str, Place]
    skipped: dict[str, str]


def is_picture(name: str) -> bool:
    """Whether a name ends like a picture's, in a supported format or not."""
    return splitext(name)[1].lower() in KNOWN_ENDINGS


def list_files(root: Path) -> Listing:
    """All files below a folder, sorted by name, without hidden ones."""
    real = root.resolve()
    listing = Listing({}, {})
    folders = [("", real)]
    while folders:
        prefix, folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                children = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            listing.skipped[prefix] = error.strerror or "the folder cannot be listed"
            continue
        for entry in children:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            name = prefix + _printable(entry.name)
            if entry.is_dir(follow_symlinks=False):
                folders.append((f"{name}/", Path(entry.path)))
            elif reason := _why_skipped(entry, real):
                listing.skipped[name] = reason
            elif name in listing.files:
                listing.skipped[f"{name} again"] = "a second file whose name is written the same"
            else:
                listing.files[name] = Place(entry.path)
    return Listing(dict(sorted(listing.files.items())), dict(sorted(listing.skipped.items())))


def _why_skipped(entry: os.DirEntry[str], root: Path) -> str:
    try:
        mode = entry.stat().st_mode  # of a link's target; opens nothing
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root):
            return "a link that leads outside the folder"
    except (OSError, RuntimeError):
        return "a broken link" if entry.is_symlink() else "its status cannot be read"
    if stat.S_ISDIR(mode):
        return "a link to a folder: links to folders are not followed"
    return "" if stat.S_ISREG(mode) else "not a file but a pipe, socket or device"


def _printable(name: str) -> str:
    """A file name with the bytes that are not UTF-8 escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def reason(error: Exception) -> str:
    """Why a file cannot be used, to be put after its name."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def shards(name: str) -> list[Path]:
    """The paths of a name: itself, or a range such as `shard-{000..012}.tar`."""
    return [Path(each).expanduser() for each in expand_range(name)]


def expand_range(name: str) -> list[str]:
    """All names of a range such as `shard-{000..012}.tar`, or the name itself."""
    match = RANGE.search(name)
    if match is None:
        return [name]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < MAX_SHARDS:
        raise ValueError(
            f"{match[0]} is not a range like {{000..012}} of at most {MAX_SHARDS:,} rising numbers"
        )
    numbers = (f"{number:0{len(match[1])}}" for number in range(first, last + 1))
    return [one for n in numbers for one in expand_range(name.replace(match[0], n, 1))]


def members(path: Path) -> Iterator[tuple[str, Place | str]]:
    """The files of a tar in its order: name, and its place or the reason why it is skipped.

    Only headers are read.

    Raises:
        ValueError: the tar is compressed or damaged.
    """
    head = read_part(path, 0, 8)
    for magic, command in UNPACK.items():
        if head.startswith(magic):
            raise ValueError(
                f"{path.name} is compressed, so its files cannot be read one at a time. Unpack it "
                f"with `{command} {path.name}` (it will hardly grow: pictures are compressed)"
            )
    total = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else all headers stay in memory
                name = normpath(member.name)
                if member.isdir() or (basename(name).startswith(".") and name[:2] != ".."):
                    continue
                if not member.isreg() or member.issparse():
                    yield name, "a link, device or sparse file in a tar"
                elif name.startswith(("/", "..")):
                    yield name, "a path that leads outside the tar"
                elif member.offset_data + member.size > total:
                    raise ValueError(f"it ends in the middle of {name}")
                else:
                    yield name, Place(str(path), member.offset_data, member.size)
            end = tar.offset
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path.name} is not a readable tar: {error}. Download it again"
        ) from error
    if any(read_part(path, end, 512)):  # the tar module takes a damaged header for the end
        raise ValueError(f"{path.name} is damaged at byte {end:,} of {total:,}: download it again")
