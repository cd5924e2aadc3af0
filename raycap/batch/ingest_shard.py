"""One shard of an ingest, in a Ray worker: read its images, check each, write one Parquet file, report."""

from __future__ import annotations

import io
import resource
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from PIL import Image

from raycap import storage
from raycap.config import Config
from raycap.data.catalog import LeftOut, Record
from raycap.data.images import ImageError, decode_image
from raycap.data.readers import SourceConfig
from raycap.data.rows import SCHEMA, RowsFile, write_rows

INDEX = "_index"
_READ_THREADS = 8
_JPEG_QUALITY = 92


class ShardReport(Config):
    """What became of one shard."""

    digest: str
    """Of the index it was made from."""

    num_images: int
    """Images tried."""

    file: RowsFile | None
    """None where no image of the shard could be kept."""

    num_captions: int
    left_out: tuple[LeftOut, ...]
    peak_rss_mb: float


def index_file(output: str, name: str) -> str:
    return storage.join(output, INDEX, f"{name}.json")


def report_file(output: str, name: str) -> str:
    return storage.join(output, INDEX, f"{name}.done")


def write_shard(
    row: dict[str, Any], *, source: SourceConfig, output: str, max_pixels: int, resize_longest_edge: int | None
) -> dict[str, Any]:
    """Write one shard's Parquet file, then its report.

    Args:
        row: ``name`` of the shard and ``digest`` of its index.
        output: directory of the rows.

    Returns:
        ``{"report": JSON of a ShardReport}``.
    """
    name = row["name"]
    index = storage.read_json(index_file(output, name))
    columns: dict[str, list[Any]] = {field: [] for field in SCHEMA.names}
    left_out = []
    for record, future in _read_ahead(source, [Record(*record) for record in index["records"]]):
        try:
            data, width, height = _check(future.result(), max_pixels, resize_longest_edge)
        except ImageError as error:
            left_out.append(LeftOut(error.reason, record.image_id, str(error)))
        except FileNotFoundError:
            left_out.append(LeftOut("missing_image", record.image_id, "gone since the folder was listed"))
        except PermissionError as error:  # any other OSError is the storage's failure: the job must not go on
            left_out.append(LeftOut("unreadable", record.image_id, str(error)))
        else:
            values = (record.image_id, data, width, height, record.captions, index["split"])
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    num_captions = sum(map(len, columns["captions"]))
    if columns["image_id"]:
        file = write_rows(output, f"{name}.parquet", _table(columns))
    else:
        file = None
        storage.delete(storage.join(output, f"{name}.parquet"))  # a run that was cut off may have kept some
    report = ShardReport(
        digest=row["digest"],
        num_images=len(index["records"]),
        file=file,
        num_captions=num_captions,
        left_out=tuple(left_out),
        peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
    text = report.model_dump_json()
    storage.write_bytes(report_file(output, name), text.encode())
    return {"report": text}


def _table(columns: dict[str, list[Any]]) -> pa.Table:
    table = pa.table(columns, schema=SCHEMA)
    columns["image_bytes"].clear()  # they are in the table now: hold them once
    return table


def _read_ahead(source: SourceConfig, records: Sequence[Record]) -> Iterator[tuple[Record, Future[bytes]]]:
    """Read a few images ahead of the decoder: S3 answers each request late."""
    waiting = deque[tuple[Record, Future[bytes]]]()
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        for record in records:
            waiting.append((record, pool.submit(source.read_image, record.image_id)))
            if len(waiting) > _READ_THREADS:
                yield waiting.popleft()
        yield from waiting


def _check(data: bytes, max_pixels: int, resize_longest_edge: int | None) -> tuple[bytes, int, int]:
    """The bytes to store, with the upright image's width and height."""
    image = decode_image(data, max_pixels)
    if resize_longest_edge is not None and max(image.size) > resize_longest_edge:
        image.thumbnail((resize_longest_edge, resize_longest_edge), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
        data = buffer.getvalue()
    return data, image.width, image.height
