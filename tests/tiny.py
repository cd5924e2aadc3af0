"""Things small enough for a test: a BLIP's shape, images, rows."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
from PIL import Image

from raycap.data.rows import SCHEMA, write_manifest, write_rows
from raycap.models.blip import BlipShape

CAPTIONS = ["a red circle", "a blue square", "a green circle above a red square", "there is a blue circle"]
TINY = BlipShape(
    image_size=16, patch_size=8, embed_dim=16, num_heads=2, num_vision_layers=1, num_text_layers=1, max_text_tokens=16
)


def png(seed: int, size: int = 20) -> bytes:
    """A PNG of four coloured squares with a little noise."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 220, (2, 2, 3)).repeat(size // 2, 0).repeat(size // 2, 1)
    pixels = (corners + rng.integers(0, 36, corners.shape)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_rows(uri: str, num_train: int = 200, num_dev: int = 40) -> str:
    """Write rows of noise images with captions, in two splits."""
    files, first = [], 0
    for split, count in (("train", num_train), ("dev", num_dev)):
        records = [
            {
                "image_id": f"{split}-{index}",
                "image_bytes": png(first + index),
                "width": 20,
                "height": 20,
                "captions": [CAPTIONS[index % 4], CAPTIONS[(index + 1) % 4]],
                "split": split,
            }
            for index in range(count)
        ]
        files.append(write_rows(uri, f"{split}-00000.parquet", pa.Table.from_pylist(records, schema=SCHEMA)))
        first += count
    write_manifest(uri, files)
    return uri
