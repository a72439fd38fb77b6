"""What a picture file may cost: bounds that hold before anything is decoded.

A small file can announce many pixels, or keep a decoder busy for minutes: a progressive JPEG with
thousands of scans, a PNG with a million text chunks. The bounds are far above what cameras and
programs write.
"""

import io
import re

MAX_PIXELS = 40_000_000
MAX_WEBP_PIXELS = 30_000_000  # libwebp needs 16 bytes for each
MAX_SIDE = 16_384
MAX_SCANS = 100  # of a JPEG: as many as libvips reads; libjpeg writes 10
MAX_SCANNED = 1_000_000_000  # pixels times scans of a JPEG
MAX_CHUNKS = 256  # of a PNG, without those of pixels; each may inflate to a megabyte
MAX_PARTS = 100_000  # chunks of a PNG, segments of a JPEG
MAX_READS = 250_000  # libpng writes a chunk of pixels, three reads, for every 8 kB
MAX_RLE_PIXELS = 2_000_000  # of a run-length encoded BMP, which Pillow decodes in Python
MAX_EXIF = 1 << 18  # bytes; Pillow parses every tag in Python

MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # neither a stuffed zero nor a restart
ALONE = (0x01, 0xD8)  # markers without a segment
EOI, SOS = 0xD9, 0xDA
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
TOO_MANY = "too many small parts: save it again in another program"
PIXEL_CHUNKS = (b"IDAT", b"fdAT", b"fcTL")


class CountedReads:
    """The bytes of a picture as a file that is read at most `MAX_READS` times.

    Pillow reads text chunks, comments, and bytes between two parts of a file one by one in Python.
    """

    def __init__(self, data: bytes):
        self.file, self.left = io.BytesIO(data), MAX_READS
        self.seek, self.tell = self.file.seek, self.file.tell

    def read(self, size: int = -1) -> bytes:
        """As `io.BytesIO.read`; ValueError at one read too many."""
        self.left -= 1
        if self.left < 0:
            raise ValueError(TOO_MANY)
        return self.file.read(size)


def check_size(width: int, height: int, most: int = MAX_PIXELS) -> None:
    """Raise ValueError for a picture without pixels or with too many."""
    if width < 1 or height < 1:
        raise ValueError("no pixels")
    if width > MAX_SIDE or height > MAX_SIDE or width * height > most:
        limit = f"{most // 1_000_000} megapixels or {MAX_SIDE:,} pixels a side"
        raise ValueError(f"{width} x {height} pixels, more than {limit}")


def check_scans(data: bytes) -> None:
    """Raise ValueError for a JPEG (ITU-T T.81, annex B) of too many scans.

    Every scan of a progressive JPEG passes over all its pixels, however few bytes it has.
    """
    position, scans, pixels, segments = 2, 0, 0, 0
    while (match := MARKER.search(data, position)) and (marker := match[1][0]) != EOI:
        body = match.end()
        if marker in FRAMES:
            pixels = max(pixels, _big(data, body + 3, 2) * _big(data, body + 5, 2))
        scans, segments = scans + (marker == SOS), segments + 1
        if segments > MAX_PARTS:
            raise ValueError(TOO_MANY)
        if scans > MAX_SCANS or (scans > 1 and scans * pixels > MAX_SCANNED):
            raise ValueError(
                f"a JPEG of {scans} scans or more: save it again without `progressive`"
            )
        position = body if marker in ALONE else body + max(2, _big(data, body, 2))


def check_chunks(data: bytes) -> None:
    """Raise ValueError for a PNG with too many chunks beside those of pixels."""
    position, others, chunks = 8, 0, 0
    while position + 8 <= len(data) and (kind := data[position + 4 : position + 8]) != b"IEND":
        others, chunks = others + (kind not in PIXEL_CHUNKS), chunks + 1
        if chunks > MAX_PARTS:
            raise ValueError(TOO_MANY)
        if others > MAX_CHUNKS:
            raise ValueError(f"a PNG with more than {MAX_CHUNKS} texts and other chunks")
        position += 12 + _big(data, position, 4)


def check_run_length(width: int, height: int) -> None:
    """Raise ValueError for a run-length encoded BMP of too many pixels."""
    if width * height > MAX_RLE_PIXELS:
        limit = f"{MAX_RLE_PIXELS // 1_000_000} megapixels"
        raise ValueError(f"a run-length encoded BMP of more than {limit}: convert it to PNG")


def check_exif(data: bytes) -> None:
    """Raise ValueError for too much EXIF data."""
    if len(data) > MAX_EXIF:
        raise ValueError(f"{len(data):,} bytes of EXIF data, more than {MAX_EXIF:,}")


def _big(data: bytes, position: int, size: int) -> int:
    return int.from_bytes(data[position : position + size])
