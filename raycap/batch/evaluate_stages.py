"""The two stages of an evaluation, in Ray's workers: rows to spoiled pixels, pixels to captions.

A user's error goes along as the row's ``error``: Ray would hide its type and its line in a trace.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from raycap.data.corruptions import Corruption
from raycap.data.images import ImageError, decode_image, resize_image
from raycap.data.rows import Chunk, read_chunk
from raycap.hardware import Precision
from raycap.models.blip import Decoding
from raycap.predictor import CaptionPredictor, Refinement


class Variant(Refinement):
    """One way of captioning that is compared with the others."""

    name: str
    """Stands in the report and in file names."""


def read_batch(row: dict[str, Any], *, image_size: int, corruptions: Sequence[Corruption]) -> list[dict[str, Any]]:
    """Decode one batch of a chunk of rows and spoil it in every way asked for.

    Args:
        row: ``file``, ``row_group`` and ``num_rows`` of the chunk, ``start`` and ``stop`` within it.

    Returns:
        For each corruption its name as ``corruption``, ``image_ids`` (b,), ``images``
        (b, image_size, image_size, 3) uint8, and ``error``, empty if every file is an image.
    """
    chunk = Chunk(row["file"], int(row["row_group"]), int(row["num_rows"]))
    start, stop = int(row["start"]), int(row["stop"])
    table = read_chunk(chunk, ["image_id", "image_bytes"]).slice(start, stop - start)
    image_ids = table["image_id"].to_pylist()
    images = np.zeros((len(image_ids), image_size, image_size, 3), np.uint8)
    error = ""
    for index, data in enumerate(table["image_bytes"]):
        try:
            images[index] = resize_image(decode_image(data.as_py()), image_size)
        except ImageError as reason:
            error = f"rows = {chunk.file}: image {image_ids[index]}: {reason}; run jobs/ingest.py again"
    return [
        {
            "corruption": corruption.name,
            "image_ids": image_ids,
            "images": np.stack([corruption.apply(*pair) for pair in zip(images, image_ids, strict=True)]),
            "error": error,
        }
        for corruption in corruptions
    ]


class CaptionBatch:
    """Captions a batch once with each variant, its embeddings made once for all; an actor of the pool.

    Args:
        model: BLIP directory, s3:// prefix or hub name.
        rbm: refiner directory or s3:// prefix; None if no variant needs one.
        variants: how the embeddings are refined.
        torch_threads: at most; never more than this machine has cores.
    """

    def __init__(
        self,
        model: str,
        rbm: str | None,
        precision: Precision,
        variants: Sequence[Variant],
        decoding: Decoding,
        torch_threads: int,
    ) -> None:
        torch.set_num_threads(min(torch_threads, len(os.sched_getaffinity(0))))
        self.variants, self.decoding = variants, decoding
        self.predictor = CaptionPredictor.from_pretrained(model, rbm, precision)
        self.ready_at = time.time()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of :func:`read_batch` to ``result``, JSON with captions by variant, and its ``error``."""
        if row["error"]:
            return {"result": "", "error": row["error"]}
        # Copied, because Ray's memory is read-only, which torch has no notion of.
        image_embeds = self.predictor.encode(row["images"].copy())
        captions = {
            variant.name: self.predictor.decode(self.predictor.refine(image_embeds, variant), self.decoding)
            for variant in self.variants
        }
        result = {
            "corruption": row["corruption"],
            "image_ids": list(row["image_ids"]),
            "captions": captions,
            "ready_at": self.ready_at,
            "finished_at": time.time(),
            "device": self.predictor.encoder.device.type,
            "precision": str(self.predictor.decoder.dtype).removeprefix("torch."),
        }
        return {"result": json.dumps(result), "error": ""}
