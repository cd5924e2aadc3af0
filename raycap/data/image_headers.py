"""Files that cost their reader far more than they weigh, known by their headers before Pillow reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raycap.data.tiff_directory import is_overweight, tile_pixels

# A photo has about ten scans; each goes over all pixels again, however few bytes it has.
_MAX_SCANS = 100
_MAX_EXIF_PARTS = 32
# Each picture of a file has one.
_MAX_PICTURE_INDEXES = 32
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")


def declared_pixels(data: bytes) -> int:
    """Pixels for which a reader makes room before it tells the image's size; 0 where none.

    A WebP animation's canvas, and a TIFF's tiles, of which even a small image takes a whole one.
    """
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and len(data) >= 30:
        width, height = (1 + int.from_bytes(data[start : start + 3], "little") for start in (24, 27))
        return width * height
    return tile_pixels(data) if data.startswith(_TIFF_MARKS) else 0


def trap(data: bytes) -> str | None:
    """What makes a file a trap for its reader, if anything does."""
    if data.startswith(_TIFF_MARKS):
        return "its tags overlap or are too many" if is_overweight(data) else None
    if not data.startswith(b"\xff\xd8"):
        return None
    start = data.find(b"\xff\xda")
    if start >= 0 and data.count(b"\xff\xda", start) > _MAX_SCANS:
        return f"more than {_MAX_SCANS} scans"
    if data.count(b"Exif\0\0") > _MAX_EXIF_PARTS:
        return f"EXIF in more than {_MAX_EXIF_PARTS} parts"
    if data.count(b"MPF\0") > _MAX_PICTURE_INDEXES:
        return f"more than {_MAX_PICTURE_INDEXES} multi-picture indexes"
    return "its EXIF tags overlap or are too many" if any(map(is_overweight, _jpeg_directories(data))) else None


def _jpeg_directories(data: bytes) -> Iterator[bytes]:
    """All that a reader may take for EXIF or for a multi-picture index, wherever it stands.

    Found by their names and not by walking from segment to segment: a walk that skips junk otherwise
    than Pillow's would look at another file.
    """
    parts = [_segment(data, match) for match in re.finditer(rb"\xff\xe1(..)Exif\0\0", data, re.DOTALL)]
    for index in range(len(parts)):
        # Pillow joins the parts; which is its first, only it knows.
        yield b"".join(parts[index:])
    for match in re.finditer(rb"\xff\xe2(..)MPF\0", data, re.DOTALL):
        yield _segment(data, match)


def _segment(data: bytes, match: re.Match[bytes]) -> bytes:
    return data[match.end() : match.start(1) + int.from_bytes(match[1], "big")]
