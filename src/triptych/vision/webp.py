"""Size and EXIF data of a WebP (RFC 9649) from its bytes: Pillow decodes one when it opens it."""

import struct


def webp_size(head: bytes) -> tuple[int, int]:
    """Width and height (RFC 9649, sections 2.5 to 2.7)."""
    kind, data = head[12:16], head[20:30]
    if len(data) < 10:
        raise ValueError("cut short")
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", data[6:10])
    return width & 0x3FFF, height & 0x3FFF


def webp_exif(data: bytes) -> bytes:
    """The EXIF data, which come after the pixels. ValueError if `data` ends before them."""
    if data[12:16] != b"VP8X" or not data[20] & 0x08:
        return b""
    position = 12
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        body = position + 8
        if data[position : position + 4] == b"EXIF" and body + size <= len(data):
            return data[body : body + size]
        position = body + size + size % 2
    if len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise ValueError("cut short")
    return b""
