"""The words of a split's captions, counted by Ray Data tasks."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import ray.data

from raycap import cluster
from raycap.data.rows import Rows, read_chunk
from raycap.data.vocabulary import count_words
from raycap.progress import Progress
from raycap.train.blocks import READER_CPUS

_CHUNKS_A_TASK = 32


def count_split_words(rows: Rows, split: str) -> Counter[str]:
    """How often each word occurs; the result does not depend on how the work is spread."""
    chunks = rows.chunks(split)
    parts = [chunks[start : start + _CHUNKS_A_TASK] for start in range(0, len(chunks), _CHUNKS_A_TASK)]

    def count(row: dict[str, Any]) -> dict[str, str]:
        captions = (
            caption
            for chunk in parts[row["id"]]
            for of_image in read_chunk(chunk, ["captions"])["captions"].to_pylist()
            for caption in of_image
        )
        return {"counts": json.dumps(count_words(captions))}

    cluster.quiet()
    counted = ray.data.range(len(parts), override_num_blocks=len(parts)).map(count, num_cpus=READER_CPUS)
    total: Counter[str] = Counter()
    progress = Progress("count words", "parts", len(parts))
    for row in counted.iter_rows():
        total.update(json.loads(row["counts"]))
        progress.advance(1)
    progress.finish()
    return total
