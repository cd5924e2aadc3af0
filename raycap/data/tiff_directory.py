"""What a TIFF structure's directories ask a reader to copy: of a TIFF file, and of EXIF, which has the same form.

Entries may all point at the same bytes, so that reading a file of a megabyte fills many gigabytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

# TIFF 6.0, section 2; BigTIFF's types from 16 on.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_EXIF_MARKS = re.compile(rb"\A(?:Exif\0\0)+")
_RATIONALS = (5, 10)
_BYTE_STRINGS = (1, 2, 6, 7)
_SUBDIRECTORIES = (0x8769, 0x8825, 0xA005)  # EXIF, GPS, interoperability
_TILE_SIDES = (322, 323)

# A file's own bytes may be copied a few times over, and small ones freely.
_MAX_COPIES = 2
_FREE_BYTES = 16 * 1024 * 1024
# Offsets and lengths of 16 x 16 tiles of 64 million pixels, twice over.
_MAX_VALUES = 1_000_000
_MAX_ENTRIES = 8192
# Python objects that a rational number weighs in integers.
_RATIONAL_VALUES = 16


class _Entry(NamedTuple):
    tag: int
    kind: int
    num_values: int
    value: int  # itself where it fits, else its place


def is_overweight(data: bytes) -> bool:
    """Whether reading the directories takes far more memory than the data that holds them.

    Args:
        data: from the byte-order mark on, or from any number of ``Exif`` marks before it.
    """
    data = _EXIF_MARKS.sub(b"", data, count=1)
    num_bytes = num_values = 0
    for index, entry in enumerate(_entries(data)):
        if index == _MAX_ENTRIES:
            return True
        size = entry.num_values * _TYPE_BYTES.get(entry.kind, 0)  # of an unknown kind none is read
        if size > len(data):  # reading it fails, and costs nothing
            continue
        num_bytes += size
        if size and entry.kind not in _BYTE_STRINGS:
            num_values += entry.num_values * (_RATIONAL_VALUES if entry.kind in _RATIONALS else 1)
    return num_bytes > _FREE_BYTES + _MAX_COPIES * len(data) or num_values > _MAX_VALUES


def tile_pixels(data: bytes) -> int:
    """Width times height of a TIFF file's tiles, of a tag that comes twice the larger; 0 without tiles.

    Of an overweight file only the first entries are looked at.
    """
    sides = dict.fromkeys(_TILE_SIDES, 0)
    for entry in _entries(data):
        if entry.tag in sides:
            sides[entry.tag] = max(sides[entry.tag], entry.value)
    width, height = sides.values()
    return width * height


def _entries(data: bytes) -> Iterator[_Entry]:
    """Of the first directory and those below it; of more than ``_MAX_ENTRIES``, one more than that.

    Those of an unknown kind among them, with no value: a reader steps over each, and so does this walk.
    """
    # Bounded here, for whoever walks: every byte may begin a directory, each with entries for all others.
    return islice(_all_entries(data), _MAX_ENTRIES + 1)


def _all_entries(data: bytes) -> Iterator[_Entry]:
    if len(data) < 16 or data[:2] not in (b"II", b"MM"):
        return
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2] == 43
    head, fields, inline, offset = ("Q", "HHQ", 8, "Q") if is_big else ("H", "HHL", 4, "L")
    entry_format = struct.Struct(order + fields + f"{inline}s")
    (start,) = struct.unpack_from(order + offset, data, 8 if is_big else 4)
    waiting, seen = [start], set()
    while waiting:
        start = waiting.pop()
        if start in seen or start + struct.calcsize(head) > len(data):
            continue
        seen.add(start)
        (num_entries,) = struct.unpack_from(order + head, data, start)
        start += struct.calcsize(head)
        for place in range(start, start + num_entries * entry_format.size, entry_format.size):
            if place + entry_format.size > len(data):
                break
            tag, kind, count, raw = entry_format.unpack_from(data, place)
            if kind not in _TYPE_BYTES:
                yield _Entry(tag, kind, count, 0)
                continue
            unit = _TYPE_BYTES[kind]
            code = {1: "B", 2: "H", 4: "L"}.get(unit, offset) if unit * count <= inline else offset
            (value,) = struct.unpack_from(order + code, raw)
            if tag in _SUBDIRECTORIES:
                waiting.append(value)
            yield _Entry(tag, kind, count, value)
