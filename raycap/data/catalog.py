"""A join on disk of image files, splits and captions: which images are kept, and why the others are not.

The join lives in a temporary SQLite file with a bounded page cache, so memory does not grow with
the data. Nothing that is left out is lost: it is kept by reason and name, next to the join.

    reason                  one per
    image_without_captions  image file for which no caption is left
    image_without_split     image file with captions that no split names
    conflicting_split       image that two splits name: in either it would leak into the other
    missing_image           image that a split or the annotations list, without a file; its captions go with it
    caption_without_image   caption of an image that is neither a file nor listed
    empty_caption           caption without a word
    malformed_row           row of an annotation file that cannot be read
    not_an_image            file in the image folder with another suffix, which no annotation names
    oversized, undecodable, unreadable: found when the image itself is read
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

MAX_NAMES = 10
_CACHE_KIB = 64 * 1024
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE images (name TEXT PRIMARY KEY, num_bytes INTEGER, looks_like_image INTEGER DEFAULT 0,
    listed INTEGER DEFAULT 0, split TEXT, conflict INTEGER DEFAULT 0, num_captions INTEGER DEFAULT 0) WITHOUT ROWID;
CREATE TABLE captions (id INTEGER PRIMARY KEY, image TEXT, caption TEXT);
CREATE TABLE aliases (alias TEXT PRIMARY KEY, name TEXT) WITHOUT ROWID;
CREATE TABLE left_out (id INTEGER PRIMARY KEY, reason TEXT, name TEXT, detail TEXT);
"""

_COUNT_CAPTIONS = """
CREATE INDEX IF NOT EXISTS captions_by_image ON captions (image);
UPDATE images SET num_captions = (SELECT count(*) FROM captions WHERE image = name);
"""

# A file that only an annotation calls an image is one too, whatever its suffix.
_FOUND = "num_bytes IS NOT NULL AND (looks_like_image OR listed OR num_captions)"
_KEPT = f"{_FOUND} AND num_captions AND split IS NOT NULL AND NOT conflict AND num_bytes <= :max_file_bytes"

_LEFT_OUT = [
    ("not_an_image", "''", f"num_bytes IS NOT NULL AND NOT ({_FOUND})"),
    ("missing_image", "'in ' || coalesce(split, 'no split') || ', ' || num_captions || ' captions'",
     "num_bytes IS NULL AND listed"),
    ("image_without_captions", "'in ' || coalesce(split, 'no split')", f"{_FOUND} AND NOT num_captions"),
    ("conflicting_split", "'in ' || split || ' and another'", f"{_FOUND} AND num_captions AND conflict"),
    ("image_without_split", "num_captions || ' captions'",
     f"{_FOUND} AND num_captions AND NOT conflict AND split IS NULL"),
    ("oversized", "num_bytes || ' bytes'",
     f"{_FOUND} AND num_captions AND NOT conflict AND split IS NOT NULL AND num_bytes > :max_file_bytes"),
]  # fmt: skip


class Record(NamedTuple):
    """A kept image."""

    image_id: str
    """The image's name below its folder: unique, and what ``read_image`` takes."""

    num_bytes: int
    """Size of the file; 0 where it is generated."""

    captions: list[str]
    """In the order of the annotations."""


class Shard(NamedTuple):
    """The records of one Parquet file."""

    name: str
    """``{split}-{index:05d}``."""

    split: str
    records: list[Record]


class LeftOut(NamedTuple):
    """One thing that did not become a row, or a part of one."""

    reason: str
    name: str
    detail: str


class Catalog:
    """Fill with ``add_*``, then ``settle``, then read; a context manager that deletes its file at the end."""

    def __init__(self, on_item: Callable[[int], None] | None = None) -> None:
        """
        Args:
            on_item: called with 1 for each file and caption added, to show progress.
        """
        self._on_item = on_item or (lambda _: None)
        self._folder = tempfile.TemporaryDirectory(prefix="raycap-catalog-")
        self._db = sqlite3.connect(os.path.join(self._folder.name, "catalog.sqlite"))
        self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._db.executescript(_TABLES)
        self._db.create_function("shuffle_key", 2, _shuffle_key, deterministic=True)
        self._max_file_bytes = 0
        self.num_mended_rows = 0

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._folder.cleanup()

    def add_file(self, name: str, num_bytes: int) -> None:
        """A file of the image folder."""
        self._on_item(1)
        if not is_text(name):
            self.leave_out("unreadable", name, "the file's name is not UTF-8")
            return
        values = (name, num_bytes, name.lower().endswith(IMAGE_SUFFIXES))
        self._db.execute(
            "INSERT INTO images (name, num_bytes, looks_like_image) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE"
            " SET num_bytes = excluded.num_bytes, looks_like_image = excluded.looks_like_image",
            values,
        )

    def has_file(self, name: str) -> bool:
        row = self._db.execute("SELECT 1 FROM images WHERE name = ? AND num_bytes IS NOT NULL", (name,)).fetchone()
        return row is not None

    def add_image(self, name: str, split: str | None = None, alias: str | None = None) -> None:
        """An image that a split file or the annotations list.

        Args:
            alias: another key by which the annotations refer to it, for :meth:`name_of`.
        """
        self._db.execute(
            "INSERT INTO images (name, split, listed) VALUES (?, ?, 1) ON CONFLICT (name) DO UPDATE"
            " SET listed = 1, conflict = conflict OR coalesce(split != excluded.split, 0),"
            " split = coalesce(split, excluded.split)",
            (name, split),
        )
        if alias is not None:
            self._db.execute("INSERT OR REPLACE INTO aliases VALUES (?, ?)", (alias, name))

    def name_of(self, alias: str) -> str | None:
        row = self._db.execute("SELECT name FROM aliases WHERE alias = ?", (alias,)).fetchone()
        return None if row is None else str(row[0])

    def add_caption(self, image: str, caption: str, where: str) -> None:
        """A caption as annotated; runs of white space become one space.

        Args:
            where: file and position, to name the caption when it is left out.
        """
        self._on_item(1)
        caption = " ".join(caption.split())
        if not is_text(caption + image):
            self.leave_out("malformed_row", where, "not UTF-8")
        elif not caption:
            self.leave_out("empty_caption", image, where)
        else:
            self._db.execute("INSERT INTO captions (image, caption) VALUES (?, ?)", (image, caption))

    def leave_out(self, reason: str, name: str, detail: str) -> None:
        values = [text.encode("utf-8", "backslashreplace").decode() for text in (reason, name, detail)]
        self._db.execute("INSERT INTO left_out (reason, name, detail) VALUES (?, ?, ?)", values)

    def mend(self) -> None:
        """Count a malformed row whose meaning was plain."""
        self.num_mended_rows += 1

    def assign_splits(self, fractions: Mapping[str, float], seed: int) -> None:
        """Divide the found images that have captions and no split yet, the same way for the same seed.

        Args:
            fractions: of the images, by split; they sum to 1.
        """
        self._db.executescript(_COUNT_CAPTIONS)
        self._db.execute(
            "CREATE TEMP TABLE ranks AS SELECT row_number() OVER (ORDER BY shuffle_key(?, name), name) AS rank, name"
            f" FROM images WHERE {_FOUND} AND num_captions AND split IS NULL",
            (seed,),
        )
        (count,) = self._db.execute("SELECT count(*) FROM ranks").fetchone()
        start, share = 0, 0.0
        for split, fraction in fractions.items():
            share += fraction
            end = round(count * share)
            self._db.execute(
                "UPDATE images SET split = ? WHERE name IN (SELECT name FROM ranks WHERE rank > ? AND rank <= ?)",
                (split, start, end),
            )
            start = end
        self._db.execute("DROP TABLE ranks")

    def settle(self, max_file_bytes: int) -> None:
        """Decide which images are kept, once all is added.

        Args:
            max_file_bytes: a larger file is oversized; a shard of images must fit in memory.
        """
        self._max_file_bytes = max_file_bytes
        self._db.executescript(_COUNT_CAPTIONS)
        for reason, detail, condition in _LEFT_OUT:
            self._db.execute(
                "INSERT INTO left_out (reason, name, detail)"
                f" SELECT '{reason}', name, {detail} FROM images WHERE {condition} ORDER BY name",
                {"max_file_bytes": max_file_bytes},
            )
        self._db.execute(
            "INSERT INTO left_out (reason, name, detail) SELECT 'caption_without_image', image, caption FROM captions"
            " WHERE NOT EXISTS (SELECT 1 FROM images WHERE name = image) ORDER BY image, id"
        )
        self._db.commit()

    @property
    def images_found(self) -> int:
        return int(self._db.execute(f"SELECT count(*) FROM images WHERE {_FOUND}").fetchone()[0])

    def shards(self, max_rows: int, max_bytes: int) -> Iterator[Shard]:
        """The kept images, split by split, shuffled by name, cut into shards of bounded rows and bytes."""
        # Shuffled, because neighbours in a file tend to be alike and training shuffles within reach only.
        rows = self._db.execute(
            "SELECT split, name, num_bytes, caption FROM images JOIN captions ON image = name"
            f" WHERE {_KEPT} ORDER BY split, shuffle_key(0, name), name, id",
            {"max_file_bytes": self._max_file_bytes},
        )
        for split, rows_of_split in groupby(rows, key=lambda row: str(row[0])):
            index, num_bytes, records = 0, 0, list[Record]()
            for (name, size), group in groupby(rows_of_split, key=lambda row: (str(row[1]), int(row[2]))):
                if records and (len(records) == max_rows or num_bytes + size > max_bytes):
                    yield Shard(f"{split}-{index:05d}", split, records)
                    index, num_bytes, records = index + 1, 0, []
                records.append(Record(name, size, [row[3] for row in group]))
                num_bytes += size
            yield Shard(f"{split}-{index:05d}", split, records)

    def left_out(self) -> Iterator[LeftOut]:
        """Everything left out, by reason and name."""
        rows = self._db.execute("SELECT reason, name, detail FROM left_out ORDER BY reason, name, detail, id")
        return (LeftOut(*row) for row in rows)

    def left_out_summary(self) -> dict[str, dict[str, Any]]:
        """``{reason: {"count": n, "names": the first MAX_NAMES different ones}}``."""
        counts = self._db.execute("SELECT reason, count(*) FROM left_out GROUP BY reason ORDER BY reason").fetchall()
        query = "SELECT DISTINCT name FROM left_out WHERE reason = ? ORDER BY name LIMIT ?"
        return {
            reason: {"count": count, "names": [row[0] for row in self._db.execute(query, (reason, MAX_NAMES))]}
            for reason, count in counts
        }


def _shuffle_key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big", signed=True)


def is_text(text: str) -> bool:
    """Whether it is free of lone surrogates: file names that are no UTF-8 have them, JSON escapes can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
