"""The first stage of every batch job on models, in Ray's tasks: items to decoded images.

The tasks import this module: it may not import torch, which takes longer than many an item.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from raycap.batch.caption_plan import Shard
from raycap.data.catalog import LeftOut
from raycap.data.corruptions import Corruption
from raycap.data.images import ImageError, decode_image, resize_image
from raycap.data.rows import Chunk, decode_images, read_chunk
from raycap.errors import UserError


def read_images(row: dict[str, Any], *, image_size: int, with_captions: bool = False) -> list[dict[str, Any]]:
    """Decode one chunk of rows.

    Args:
        row: ``file``, ``row_group`` and ``num_rows`` of the chunk; what else is in it goes along.

    Returns:
        One row: that of before with ``image_ids`` (n,), ``images`` (n, image_size, image_size, 3) uint8,
        ``captions``, a list of texts for each image as JSON (empty without captions), and ``error``; n is 0 if a
        file is no image.
    """
    image_ids, images, error = _decode_span(row, image_size)
    captions = []
    if with_captions and not error:
        chunk = Chunk(row["file"], int(row["row_group"]), int(row["num_rows"]))
        captions = read_chunk(chunk, ["captions"])["captions"].to_pylist()
    return [row | {"image_ids": image_ids, "images": images, "captions": json.dumps(captions), "error": error}]


def read_shard(row: dict[str, Any], *, image_size: int) -> list[dict[str, Any]]:
    """Read and decode the images of a shard.

    Args:
        row: ``shard``, JSON of a :class:`Shard`.

    Returns:
        One row: that of before with ``paths`` (n,) and ``images`` (n, image_size, image_size, 3) uint8 of those that
        are images, ``left_out``, JSON of the others, and ``error``, empty.
    """
    shard = Shard.model_validate_json(row["shard"])
    images = np.empty((shard.num_images, image_size, image_size, 3), np.uint8)
    paths: list[str] = []
    left_out: list[LeftOut] = []
    for path, data in shard.images.read():
        if isinstance(data, LeftOut):
            left_out.append(data)
            continue
        try:
            images[len(paths)] = resize_image(decode_image(data), image_size)
        except ImageError as error:
            left_out.append(LeftOut(error.reason, path, str(error)))
        else:
            paths.append(path)
    return [row | {"paths": paths, "images": images[: len(paths)], "left_out": json.dumps(left_out), "error": ""}]


def read_spoiled(
    row: dict[str, Any], *, image_sizes: Sequence[int], corruptions: Sequence[Corruption]
) -> list[dict[str, Any]]:
    """Decode one batch of a chunk of rows and spoil it in every way asked for.

    Args:
        row: ``file``, ``row_group`` and ``num_rows`` of the chunk, ``start`` and ``stop`` within it.

    Returns:
        For each corruption its name as ``corruption``, ``image_ids`` (b,), of every size ``images_SIZE``
        (b, size, size, 3) uint8, and ``error``; b is 0 if a file is no image.
    """
    spans = {size: _decode_span(row, size) for size in image_sizes}
    image_ids, _, error = spans[image_sizes[0]]
    return [
        {
            "corruption": corruption.name,
            "image_ids": image_ids,
            **{f"images_{size}": _spoil(images, image_ids, corruption) for size, (_, images, _) in spans.items()},
            "error": error,
        }
        for corruption in corruptions
    ]


def _decode_span(row: dict[str, Any], image_size: int) -> tuple[list[str], np.ndarray, str]:
    """Decode some rows of a chunk, a broken image told as an error that goes along.

    Args:
        row: ``file``, ``row_group`` and ``num_rows`` of the chunk; ``start`` and ``stop`` within it, if not all.

    Returns:
        image ids (n,), (n, image_size, image_size, 3) uint8, and the error; n is 0 if a file is no image.
    """
    chunk = Chunk(row["file"], int(row["row_group"]), int(row["num_rows"]))
    start, stop = int(row.get("start", 0)), int(row.get("stop", chunk.num_rows))
    table = read_chunk(chunk, ["image_id", "image_bytes"]).slice(start, stop - start)
    try:
        return table["image_id"].to_pylist(), decode_images(chunk, table, image_size), ""
    except UserError as reason:
        return [], np.empty((0, image_size, image_size, 3), np.uint8), str(reason)


def _spoil(images: np.ndarray, image_ids: Sequence[str], corruption: Corruption) -> np.ndarray:
    spoiled = [corruption.apply(*pair) for pair in zip(images, image_ids, strict=True)]
    return np.array(spoiled, np.uint8).reshape(images.shape)
