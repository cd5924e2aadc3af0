"""Image files made by hand to hurt their reader, and the parts to make them of."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

UNDECODABLE, OVERSIZED = "undecodable", "oversized"


def good(file_format: str, size: tuple[int, int] = (24, 16), **options) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize(size).save(buffer, file_format, **options)
    return buffer.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Chunks with right lengths and checksums after the signature."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


def png_head(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """A good 4 x 4 image after the chunks."""
    return png(png_head(4, 4), *chunks, (b"IDAT", zlib.compress(bytes(4 * 13))), (b"IEND", b""))


def gif(screen: tuple[int, int], frame: tuple[int, int] | None = None) -> bytes:
    frame = frame or screen
    return (
        b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
        + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\x00;"
    )  # fmt: skip


def webp(width: int, height: int, flags: int = 0x02) -> bytes:
    """An animation's canvas, and in it a frame of a good file."""
    frame = good("WEBP")[12:]
    body = b"VP8X" + struct.pack("<IB3x", 10, flags) + b"".join((n - 1).to_bytes(3, "little") for n in (width, height))
    body += b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    sized = bytes(6) + (23).to_bytes(3, "little") + (15).to_bytes(3, "little") + bytes(4) + frame
    body += b"ANMF" + struct.pack("<I", len(sized)) + sized
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def directory(*entries: tuple[int, int, int, int], start: int = 8, order: str = "<") -> bytes:
    """A TIFF structure: entries of tag, type, count, value."""
    body = struct.pack(order + "H", len(entries))
    body += b"".join(struct.pack(order + "HHLL", *entry) for entry in entries)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "L", start) + bytes(start - 8) + body + bytes(4)


def tiff(width: int, height: int, *more: tuple[int, int, int, int], data: bytes = bytes(64), rows: int = 0) -> bytes:
    """Grey pixels; further entries replace those of the same tag."""
    entries = {
        256: (256, 4, 1, width), 257: (257, 4, 1, height), 258: (258, 3, 1, 8), 259: (259, 3, 1, 1),
        262: (262, 3, 1, 1), 273: (273, 4, 1, 8), 277: (277, 3, 1, 1), 278: (278, 4, 1, rows or height),
        279: (279, 4, 1, len(data)),
    }  # fmt: skip
    entries |= {entry[0]: entry for entry in more}
    table = directory(*(entries[tag] for tag in sorted(entries)), start=8 + len(data) + len(data) % 2)
    return table[:8] + data + table[8 + len(data) :]


def tiled_tiff(side: int) -> bytes:
    """16 x 16 pixels in one tile of side x side, which packs to a thousandth."""
    packer = zlib.compressobj(9)
    row = bytes(side)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    tiles = ((322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 8), (325, 4, 1, len(packed)), (259, 3, 1, 8))
    return tiff(16, 16, *tiles, data=packed)


def overlapping(num_entries: int, num_bytes: int, kind: int = 7) -> bytes:
    """A directory whose entries all point at the same bytes."""
    head = directory(*((1000 + tag, kind, num_bytes // {5: 8}.get(kind, 1), 0) for tag in range(num_entries)))
    return head + bytes(num_bytes)


def nested(num_entries: int) -> bytes:
    """A directory whose entries each point at another place as one more directory, of all entries from there on."""
    # Big-endian: an entry's last two bytes are the low ones of its pointer, and the next directory's length.
    return directory(*((0x8769, 4, 1, 8 + 12 * index) for index in range(num_entries)), order=">")


def of_unknown_kind(num_entries: int) -> bytes:
    """A BigTIFF directory of entries that a reader skips."""
    entry = struct.pack("<HHQQ", 1000, 99, 1, 0)
    return b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, num_entries) + entry * num_entries


def jpeg_of_picture_indexes(num_indexes: int) -> bytes:
    """A JPEG of multi-picture indexes, each of which holds all that follow it in the next 64 kB."""
    data = good("JPEG")
    return data[:2] + b"\xff\xe2\xff\xffMPF\0II*\0\x08\0\0\0\xff\xff" * num_indexes + data[2:]


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    """A good JPEG without JFIF head, after the segments (marker, data)."""
    data = good("JPEG")
    parts = [b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(body)) + body for marker, body in segments]
    return data[:2] + b"".join(parts) + data[2 + 2 + int.from_bytes(data[4:6], "big") :]


def exif_parts(exif: bytes) -> list[tuple[int, bytes]]:
    size = 65_000
    return [(0xE1, b"Exif\0\0" + exif[start : start + size]) for start in range(0, len(exif), size)]


def jpeg_of_scans(num_scans: int, size: tuple[int, int] = (2000, 2000)) -> bytes:
    """A progressive JPEG whose last scan comes many times."""
    data = good("JPEG", size, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * num_scans + data[-2:]


def bmp(width: int, height: int, compression: int = 0, data: bytes = bytes(64), depth: int = 8) -> bytes:
    palette = bytes(1024) if depth == 8 else b""
    offset = 54 + len(palette)
    head = b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, compression, 0, 0, 0, 0, 0) + palette + data


def jpeg_of(width: int, height: int) -> bytes:
    """A good JPEG with another size in its frame's head."""
    data = bytearray(good("JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_BIG = zlib.compress(bytes(50_000_000), 9)

_OTHERS = {
    "empty": b"", "one byte": b"\xff", "zeros": bytes(1000), "text": b"hello",
    "html": b"<!DOCTYPE html><script>alert(1)</script>", "php": b"<?php system('id'); ?>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "svg with entities": b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
    "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj", "zip": b"PK\x03\x04" + bytes(100),
    "gzip": b"\x1f\x8b\x08" + bytes(100), "elf": b"\x7fELF" + bytes(100), "exe": b"MZ" + bytes(100),
    "script": b"#!/bin/sh\nid\n", "pickle": b"\x80\x04\x95\x10", "mvg": b"push graphic-context\nimage over 0,0 0,0 'x'",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    "ppm": b"P6 2 2 255\n" + bytes(12), "xbm": b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {0};",
    "xpm": b'/* XPM */\nstatic char *a[] = {"1 1 1 1","a c #000","a"};', "fits": b"SIMPLE  =                    T",
    "ico": b"\0\0\1\0\1\0" + bytes(16), "psd": b"8BPS\0\1" + bytes(40), "webm": b"\x1aE\xdf\xa3" + bytes(40),
    "mp4": b"\0\0\0\x18ftypmp42" + bytes(40), "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(40), "tar": b"ustar" + bytes(600), "html before jpeg": b"<html>" + good("JPEG"),
    "zip before png": b"PK\x03\x04" + good("PNG"), "gif mark and script": b"GIF89a=1;alert(1)//",
}  # fmt: skip


def bad_images() -> dict[str, tuple[bytes, str]]:
    """Files by name, each with the reason for which it must be refused at the default limits."""
    bad = {name: (data, UNDECODABLE) for name, data in _OTHERS.items()}
    for file_format in FORMATS:
        data = good(file_format)
        for num_bytes in (2, 12, 30, len(data) // 2):
            bad[f"{file_format} cut at {num_bytes}"] = data[:num_bytes], UNDECODABLE
    many = 6000
    return bad | {
        "png 100000 x 100000": (png(png_head(100_000, 100_000), (b"IDAT", b"")), OVERSIZED),
        "png 1 x 2**31-1": (png(png_head(1, 2**31 - 1), (b"IDAT", b"")), OVERSIZED),
        "png 1e9 x 1e9": (png(png_head(10**9, 10**9), (b"IDAT", b"")), OVERSIZED),
        "png 0 x 0": (png(png_head(0, 0), (b"IDAT", b""), (b"IEND", b"")), UNDECODABLE),
        "png 0 x 4": (png(png_head(0, 4), (b"IDAT", b""), (b"IEND", b"")), UNDECODABLE),
        "png without data": (png(png_head(4, 4), (b"IEND", b"")), UNDECODABLE),
        "png of a wrong depth": (png(png_head(4, 4, depth=77), (b"IDAT", b""), (b"IEND", b"")), UNDECODABLE),
        "png whose pixels end early": (png(png_head(4000, 4000), (b"IDAT", zlib.compress(b"a"))), UNDECODABLE),
        "png with a wrong checksum": (good("PNG")[:29] + b"abcd" + good("PNG")[33:], UNDECODABLE),
        "png zTXt bomb": (png_with((b"zTXt", b"a\0\0" + _BIG)), UNDECODABLE),
        "png iTXt bomb": (png_with((b"iTXt", b"a\0\1\0\0\0" + _BIG)), UNDECODABLE),
        "png iCCP bomb": (png_with((b"iCCP", b"a\0\0" + _BIG)), UNDECODABLE),
        "png of many texts": (
            png_with(*[(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000), 9))] * 80),
            UNDECODABLE,
        ),
        "png with a chunk too long": (good("PNG")[:33] + b"\x7f\xff\xff\xffIDAT" + bytes(40), UNDECODABLE),
        "gif 65535 x 65535": (gif((65535, 65535)), OVERSIZED),
        "gif of a frame larger than its screen": (gif((1, 1), (65535, 65535)), OVERSIZED),
        "gif 0 x 0": (gif((0, 0)), UNDECODABLE),
        "webp 16777216 x 256": (webp(1 << 24, 256), OVERSIZED),
        "webp 16384 x 16384": (webp(1 << 14, 1 << 14), OVERSIZED),
        "webp of a wrong chunk": (b"RIFF\x20\0\0\0WEBPVP8 " + bytes(20), UNDECODABLE),
        "tiff 100000 x 100000": (tiff(100_000, 100_000), OVERSIZED),
        "tiff 1 x 1e9": (tiff(1, 10**9), OVERSIZED),
        "tiff 0 x 0": (tiff(0, 0), UNDECODABLE),
        "tiff of a huge tile": (tiled_tiff(20_000), OVERSIZED),
        "tiff of overlapping tags": (overlapping(many, 1_000_000), UNDECODABLE),
        "tiff of overlapping rationals": (overlapping(20, 1_000_000, kind=5), UNDECODABLE),
        "tiff whose directory is itself": (directory((0x8769, 4, 1, 8)), UNDECODABLE),
        "tiff of directories within each other": (nested(5000), UNDECODABLE),
        "tiff of entries of an unknown kind": (of_unknown_kind(200_000), UNDECODABLE),
        "tiff without pixels": (tiff(4000, 4000, data=b""), UNDECODABLE),
        "bmp 100000 x 100000": (bmp(100_000, 100_000), OVERSIZED),
        "bmp of negative width": (bmp(-4, 4), OVERSIZED),
        "bmp 0 x 0": (bmp(0, 0), UNDECODABLE),
        "bmp run-length jump": (bmp(60_000_000, 1, 1, b"\0\2\xff\xff" * 4), UNDECODABLE),
        "jpeg 65500 x 65500": (jpeg_of(65500, 65500), OVERSIZED),
        "jpeg 0 x 0": (jpeg_of(0, 0), UNDECODABLE),
        "jpeg of hundreds of scans": (jpeg_of_scans(600), UNDECODABLE),
        "jpeg with overlapping EXIF": (jpeg_with(*exif_parts(overlapping(many, 1_000_000))), UNDECODABLE),
        "jpeg with EXIF in many parts": (jpeg_with(*[(0xE1, b"Exif\0\0II*\0")] * 5000), UNDECODABLE),
        "jpeg with an overlapping picture index": (
            jpeg_with((0xE2, b"MPF\0" + overlapping(3000, 29_000))),
            UNDECODABLE,
        ),
        "jpeg with a thousand picture indexes": (jpeg_of_picture_indexes(1000), UNDECODABLE),
    }  # fmt: skip
