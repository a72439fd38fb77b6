"""Zip archives of weights, mapped into memory: nothing is read before it is used.

Errors in this module do not name the file; the caller does.
"""

import mmap
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipInfo

MAX_MEMBERS = 200_000


class Zip(NamedTuple):
    """A mapped zip archive and the members that its directory lists."""

    path: Path
    memory: mmap.mmap
    members: dict[str, ZipInfo]


def open_zip(path: Path) -> Zip:
    """Read the directory of an archive.

    Raises:
        ValueError: the archive is truncated, damaged or encrypted.
    """
    memory = map_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, LookupError, OverflowError) as error:
        raise ValueError(
            f"is a zip archive whose directory is missing or damaged ({len(memory):,} bytes; the "
            "directory is its end): it was cut short. Fetch it again"
        ) from error
    except (OSError, NotImplementedError, struct.error, MemoryError) as error:
        raise ValueError(f"is a zip archive with a damaged directory: {error}") from error
    if len(infos) > MAX_MEMBERS:
        raise ValueError(f"is a zip archive of {len(infos):,} files; weights have fewer")
    members: dict[str, ZipInfo] = {}
    for info in infos:
        if info.filename in members:
            raise ValueError(f"is a zip archive with two files {info.filename[:200]!r}")
        if info.flag_bits & 1:
            raise ValueError("is an encrypted zip archive. Unpack it with its password first")
        members[info.filename] = info
    return Zip(path, memory, members)


def map_file(path: Path) -> mmap.mmap:
    """Map a file copy-on-write: torch needs writable memory, and the file must not change."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def locate(archive: Zip, name: str) -> tuple[int, int]:
    """Offset and size in bytes of an uncompressed member.

    Raises:
        ValueError: the member is missing, compressed, or ends after the end of the file.
    """
    if name not in archive.members:
        raise ValueError(f"lacks its part {name[:200]!r}. Fetch it again")
    member = archive.members[name]
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise ValueError(
            f"is a zip archive with compressed members, such as {name[:200]!r}, which cannot be "
            "mapped. Unpack it and pack it again without compression: `unzip FILE -d x && cd x && "
            "zip -0 -r ../new.pt .`"
        )
    return find_data(archive, member), member.file_size


def find_data(archive: Zip, member: ZipInfo) -> int:
    """Offset of a member's data, which follows its local header of variable length."""
    offset = member.header_offset
    header = archive.memory[offset : offset + 30] if offset >= 0 else b""
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError(f"has no header where its part {member.filename[:200]!r} should be")
    name, extra = struct.unpack("<HH", header[26:30])
    start = int(offset + 30 + name + extra)
    if start + member.compress_size > len(archive.memory):
        raise ValueError(
            f"has {len(archive.memory):,} bytes, but its part {member.filename[:200]!r} ends at "
            f"{start + member.compress_size:,}: it was cut short. Fetch it again"
        )
    return start
