"""What an extraction has to do: which chunks of the rows have no embeddings in the store yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import pyarrow.parquet as pq

from raycap import storage
from raycap.data.features import FeatureFile, feature_file_name, read_summaries
from raycap.data.rows import Chunk, Rows
from raycap.errors import UserError
from raycap.progress import say

_READ_THREADS = 16  # S3 answers each request late


class Item(NamedTuple):
    """A chunk of rows, the file its embeddings belong in, and what that file must have been made from."""

    chunk: Chunk
    file: FeatureFile
    source: str


def plan(rows: Rows, with_captions: bool = False) -> list[Item]:
    """Every chunk of every split, in the rows' order.

    Args:
        with_captions: the store holds a row for each caption of an image, not one for each image.

    Raises:
        UserError: captions are needed, and an image has none.
    """
    chunks = [(chunk, split) for split in rows.splits for chunk in rows.chunks(split)]
    files = sorted({chunk.file for chunk, _ in chunks})
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        sources = dict(zip(files, pool.map(partial(_sources, with_captions=with_captions), files), strict=True))
    items = []
    for chunk, split in chunks:
        source, num_rows = sources[chunk.file][chunk.row_group]
        items.append(Item(chunk, FeatureFile(name=feature_file_name(chunk), split=split, num_images=num_rows), source))
    return items


def _sources(file: str, with_captions: bool) -> list[tuple[str, int]]:
    """For each chunk of a rows file a hash of its image ids, of its images' bytes in all and, where they matter, of
    its captions; and how many rows of the store it makes.

    Rows written anew from others are noticed by it, without reading the images.
    """
    sources = []
    with storage.open_input(file) as source, pq.ParquetFile(source) as parquet:
        column = parquet.schema_arrow.get_field_index("image_bytes")
        for index in range(parquet.metadata.num_row_groups):
            table = parquet.read_row_group(index, columns=["image_id", *(["captions"] if with_captions else [])])
            image_ids, num_rows = table["image_id"].to_pylist(), len(table)
            num_bytes = parquet.metadata.row_group(index).column(column).total_uncompressed_size
            parts = [str(num_bytes), *image_ids]
            if with_captions:
                captions = table["captions"].to_pylist()
                if [] in captions:
                    image_id = image_ids[captions.index([])]
                    raise UserError(f"rows = {file}: image {image_id} has no caption; set embeddings: image")
                parts.append(json.dumps(captions))
                num_rows = sum(map(len, captions))
            sources.append((hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16], num_rows))
    return sources


def done_files(output: str, items: Sequence[Item]) -> set[str]:
    """Names of the files that are there and made from the rows as they are now."""
    try:
        there = {entry.name for entry in storage.list_files(output)}
    except FileNotFoundError:
        return set()
    candidates = [item for item in items if item.file.name in there]
    summaries = read_summaries(output, [item.file.name for item in candidates])
    done = {
        item.file.name for item, summary in zip(candidates, summaries, strict=True) if summary.source == item.source
    }
    if len(done) < len(candidates):
        say(f"extract: {len(candidates) - len(done)} files were made from other rows than these; made again")
    return done
