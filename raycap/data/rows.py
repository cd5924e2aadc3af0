"""The rows that every raw format becomes: Parquet files of images and captions, read in chunks.

    {uri}/train-00000.parquet ...   one file per shard, row groups of at most CHUNK_ROWS images
    {uri}/manifest.json             written last: a directory without it is not finished

A chunk is one row group: the unit of reading, shuffling, extracting and resuming.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycap import storage
from raycap.config import Config
from raycap.data.images import ImageError, decode_image, resize_image
from raycap.errors import UserError

CHUNK_ROWS = 64
MANIFEST = "manifest.json"
_FORMAT = "raycap-rows"

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image_bytes", pa.binary(), nullable=False),  # the file as it was: JPEG, PNG, ...
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)


class Chunk(NamedTuple):
    """One row group of one Parquet file."""

    file: str
    row_group: int
    num_rows: int


class RowsFile(Config):
    """One Parquet file of rows."""

    name: str
    """File name below the directory."""

    split: str

    row_groups: tuple[int, ...]
    """Number of rows of each row group."""


class Rows(Config):
    """A finished directory of rows, as its manifest describes it."""

    uri: str
    files: tuple[RowsFile, ...]

    @property
    def splits(self) -> list[str]:
        return sorted({file.split for file in self.files})

    def num_rows(self, split: str) -> int:
        return sum(chunk.num_rows for chunk in self.chunks(split))

    def chunks(self, split: str, field: str = "split") -> list[Chunk]:
        """Every chunk of a split, in the order of the files.

        Raises:
            UserError: the split is not there; ``field`` names the setting that asks for it.
        """
        require_split(split, self.splits, self.uri, field)
        return [
            Chunk(storage.join(self.uri, file.name), index, num_rows)
            for file in self.files
            if file.split == split
            for index, num_rows in enumerate(file.row_groups)
        ]


def require_split(split: str, splits: Sequence[str], uri: str, field: str) -> None:
    """Refuse a split that is not there, in one line for all kinds of data."""
    if split not in splits:
        raise UserError(f"{field} = {split!r}: not in {uri}; it has {', '.join(splits)}")


def open_rows(uri: str, field: str = "rows") -> Rows:
    """Open a directory of rows.

    Raises:
        UserError: it is missing or not finished; ``field`` names the setting that points to it.
    """
    uri = storage.absolute(uri)
    try:
        manifest = storage.read_json(storage.join(uri, MANIFEST))
    except FileNotFoundError:
        raise UserError(f"{field} = {uri}: no finished rows ({MANIFEST} is missing); run jobs/ingest.py") from None
    if manifest.get("format") != _FORMAT:
        raise UserError(f"{field} = {uri}: holds {manifest.get('format')}, not rows; give an output of jobs/ingest.py")
    return Rows(uri=uri, files=manifest["files"])


def write_manifest(uri: str, files: Sequence[RowsFile]) -> None:
    """Declare a directory of rows finished."""
    manifest = {"format": _FORMAT, "version": 1, "files": [file.model_dump() for file in files]}
    storage.write_json(storage.join(uri, MANIFEST), manifest)


def write_rows(uri: str, name: str, table: pa.Table) -> RowsFile:
    """Write one file of rows whole; all rows are of one split.

    Args:
        table: rows of SCHEMA, at least one.
    """
    sink = pa.BufferOutputStream()
    # Images are compressed already; the captions beside them are small.
    pq.write_table(table.cast(SCHEMA), sink, row_group_size=CHUNK_ROWS, compression="none")
    storage.write_bytes(storage.join(uri, name), sink.getvalue())
    return describe_file(uri, name, pa.BufferReader(sink.getvalue()))


def describe_file(uri: str, name: str, source: pa.NativeFile | None = None) -> RowsFile:
    """What the manifest says of a file, read from the file's own footer and first row group."""
    file = source if source is not None else storage.open_input(storage.join(uri, name))
    with file, pq.ParquetFile(file) as parquet:
        row_groups = tuple(parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups))
        split = parquet.read_row_group(0, columns=["split"])["split"][0].as_py()
    return RowsFile(name=name, split=split, row_groups=row_groups)


def read_chunk(chunk: Chunk, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one chunk, only the named columns."""
    with storage.open_input(chunk.file) as file, pq.ParquetFile(file) as parquet:
        return parquet.read_row_group(chunk.row_group, columns=list(columns) if columns else None)


def draw_captions(table: pa.Table, rng: np.random.Generator) -> list[str]:
    """One of each image's captions, by the generator.

    Args:
        table: with the column ``captions``, none of them empty.
    """
    return [captions[rng.integers(len(captions))] for captions in table["captions"].to_pylist()]


def decode_images(chunk: Chunk, table: pa.Table, image_size: int) -> np.ndarray:
    """The images of (some) rows of a chunk.

    Args:
        table: with columns ``image_id`` and ``image_bytes``.

    Returns:
        (n, image_size, image_size, 3) uint8.

    Raises:
        UserError: a file is no image; names the first.
    """
    images = np.empty((len(table), image_size, image_size, 3), np.uint8)
    for index, data in enumerate(table["image_bytes"]):
        try:
            images[index] = resize_image(decode_image(data.as_py()), image_size)
        except ImageError as reason:
            image_id = table["image_id"][index].as_py()
            raise UserError(f"rows = {chunk.file}: image {image_id}: {reason}; run jobs/ingest.py again") from None
    return images
