"""Rows whose images were made regions of beforehand: what a frozen encoder need not compute in each epoch again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from raycap.data.features import FeatureStore, read_features, read_image_ids
from raycap.data.rows import Chunk, Rows, draw_captions, read_chunk
from raycap.errors import UserError
from raycap.train.blocks import Arrays, Batch, to_tensors
from raycap.train.cropped_images import encode_texts


class StoredRegions:
    """The block's generator draws one of an image's captions; of an image there is one view, the whole.

    Args:
        rows: of the captions.
        store: of the regions of the rows' images.
        splits: that are read.
        vocabulary: of the captions' words.
        max_tokens: T.
        num_references: K; so many of an image's captions are given beside the drawn one.

    Raises:
        UserError: the store was made of other rows.
    """

    samples_per_row = 1

    def __init__(
        self,
        rows: Rows,
        store: FeatureStore,
        splits: Sequence[str],
        vocabulary: PreTrainedTokenizerBase,
        max_tokens: int,
        num_references: int = 0,
    ) -> None:
        self.rows, self.store, self.vocabulary = rows, store, vocabulary
        self.max_tokens, self.num_references = max_tokens, num_references
        self.bytes_per_row = store.num_tokens * store.embed_dim * 2 + max_tokens * 8 * (1 + num_references)
        self._stored = pair_chunks(rows, store, splits)

    def chunks(self, split: str) -> list[Chunk]:
        return self.rows.chunks(split)

    def read(self, chunks: Sequence[Chunk], rng: np.random.Generator) -> Arrays:
        """``regions`` (n, R, D) float16, ``input_ids`` (n, T) int64, and ``reference_ids`` (n, K, T) where K > 0."""
        tables = [read_chunk(chunk, ["image_id", "captions"]) for chunk in chunks]
        for chunk, table in zip(chunks, tables, strict=True):
            if read_image_ids(self._stored[chunk]) != table["image_id"].to_pylist():
                raise _other_rows(self.store, self.rows, f"{chunk.file} has other images")
        drawn = [caption for table in tables for caption in draw_captions(table, rng)]
        regions = [read_features(self._stored[chunk]) for chunk in chunks]
        words = encode_texts(self.vocabulary, drawn, tables, self.max_tokens, self.num_references)
        return {"regions": np.concatenate(regions), **words}

    def views(self, chunk: Chunk, some: slice) -> Arrays:
        """``regions`` (n, R, D) float16 of some of a chunk's images."""
        return {"regions": read_features(self._stored[chunk])[some]}

    def to_samples(self, arrays: Arrays) -> Batch:
        return to_tensors(arrays)


def pair_chunks(rows: Rows, store: FeatureStore, splits: Sequence[str]) -> dict[Chunk, Chunk]:
    """For each chunk of rows that of the store.

    Raises:
        UserError: the store lacks a split, or was made of other rows.
    """
    paired: dict[Chunk, Chunk] = {}
    for split in splits:
        of_rows, of_store = rows.chunks(split), store.chunks(split, "task.regions.path")
        if [chunk.num_rows for chunk in of_rows] != [chunk.num_rows for chunk in of_store]:
            raise _other_rows(store, rows, f"split {split} has other chunks")
        paired |= dict(zip(of_rows, of_store, strict=True))
    return paired


def _other_rows(store: FeatureStore, rows: Rows, reason: str) -> UserError:
    return UserError(
        f"task.regions.path = {store.uri}: not made of the rows {rows.uri} as they are now ({reason}); "
        "run jobs/extract.py on them again"
    )
