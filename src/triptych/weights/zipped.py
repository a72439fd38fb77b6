"""Where the members of an unpacked zip archive lie in its file, so that they can be mapped."""

import mmap
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

MAX_MEMBERS = 200_000


class Member(NamedTuple):
    name: str
    header: int  # where its own header begins
    size: int  # unpacked
    packed: int
    method: int  # 0: stored as it is


class Zip(NamedTuple):
    """A zip archive mapped into memory: nothing is read before it is used."""

    memory: mmap.mmap
    members: dict[str, Member]


def open_zip(path: Path) -> Zip:
    """The members of an archive. Errors do not name the file: the caller does.

    Raises:
        ValueError: the archive is cut short or damaged.
    """
    memory = mapped(path)
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
    members: dict[str, Member] = {}
    for info in infos:
        if info.filename in members:
            raise ValueError(f"is a zip archive with two files {info.filename[:200]!r}")
        if info.flag_bits & 1:
            raise ValueError("is an encrypted zip archive. Unpack it with its password first")
        members[info.filename] = Member(
            info.filename,
            info.header_offset,
            info.file_size,
            info.compress_size,
            info.compress_type,
        )
    return Zip(memory, members)


def mapped(path: Path) -> mmap.mmap:
    """The file as memory that can be written to without changing the file, as torch wants it."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def place(archive: Zip, name: str) -> tuple[int, int]:
    """Offset and size of the bytes of a member that is stored unpacked.

    Raises:
        ValueError: the member is missing, packed, or reaches beyond the file.
    """
    if name not in archive.members:
        raise ValueError(f"lacks its part {name[:200]!r}. Fetch it again")
    member = archive.members[name]
    if member.method != 0 or member.packed != member.size:
        raise ValueError(
            f"is a zip archive with compressed members, such as {name[:200]!r}, which cannot be "
            "mapped. Unpack it and pack it again without compression: `unzip FILE -d x && cd x && "
            "zip -0 -r ../new.pt .`"
        )
    start = packed_start(archive, member)
    return start, member.size


def packed_start(archive: Zip, member: Member) -> int:
    """Where a member's bytes begin: behind its own header, which has no fixed length."""
    header = archive.memory[member.header : member.header + 30] if member.header >= 0 else b""
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError(f"has no header where its part {member.name[:200]!r} should be")
    name, extra = struct.unpack("<HH", header[26:30])
    start = int(member.header + 30 + name + extra)
    if start + member.packed > len(archive.memory):
        raise ValueError(
            f"has {len(archive.memory):,} bytes, but its part {member.name[:200]!r} ends at "
            f"{start + member.packed:,}: it was cut short. Fetch it again"
        )
    return start
