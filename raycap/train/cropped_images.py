"""Rows as images, in training windows of them, and the ids of whole words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from raycap.data.crops import random_crops
from raycap.data.rows import Chunk, Rows, decode_images, draw_captions, read_chunk
from raycap.data.vocabulary import encode_references, encode_words
from raycap.train.blocks import Arrays, Batch, to_tensors


class CroppedImages:
    """The block's generator draws one of an image's captions and, of images to be augmented, the window.

    Args:
        rows: of images and captions.
        vocabulary: of their words.
        augmented_split: whose images give drawn windows, mirrored half the time; those of others are seen whole,
            as the predictor sees them.
        resize: edge, in pixels, of the images that windows are cut out of.
        image_size: edge of what is given, in pixels; at most ``resize``.
        max_tokens: T.
        num_references: K; so many of an image's captions are given beside the drawn one.
    """

    samples_per_row = 1

    def __init__(
        self,
        rows: Rows,
        vocabulary: PreTrainedTokenizerBase,
        *,
        augmented_split: str,
        resize: int,
        image_size: int,
        max_tokens: int,
        num_references: int = 0,
    ) -> None:
        self.rows, self.vocabulary = rows, vocabulary
        self.resize, self.image_size, self.max_tokens = resize, image_size, max_tokens
        self.num_references = num_references
        self.bytes_per_row = image_size**2 * 3 + max_tokens * 8 * (1 + num_references)
        self._augmented_files = {chunk.file for chunk in rows.chunks(augmented_split)}

    def chunks(self, split: str) -> list[Chunk]:
        return self.rows.chunks(split)

    def read(self, chunks: Sequence[Chunk], rng: np.random.Generator) -> Arrays:
        """``images`` (n, H, W, 3) uint8, ``input_ids`` (n, T) int64, and ``reference_ids`` (n, K, T) where K > 0."""
        images: list[np.ndarray] = []
        drawn: list[str] = []
        tables = []
        for chunk in chunks:
            table = read_chunk(chunk, ["image_id", "image_bytes", "captions"])
            if chunk.file in self._augmented_files:
                larger = decode_images(chunk, table, self.resize)
                images.append(random_crops(larger, self.image_size, rng))
            else:
                images.append(decode_images(chunk, table, self.image_size))
            drawn += draw_captions(table, rng)
            tables.append(table.select(["captions"]))  # not the files of the images
        words = encode_texts(self.vocabulary, drawn, tables, self.max_tokens, self.num_references)
        return {"images": np.concatenate(images), **words}

    def views(self, chunk: Chunk, some: slice) -> Arrays:
        """``images`` (n, H, W, 3) uint8, some of a chunk's images, whole."""
        table = read_chunk(chunk, ["image_id", "image_bytes"]).slice(some.start, some.stop - some.start)
        return {"images": decode_images(chunk, table, self.image_size)}

    def to_samples(self, arrays: Arrays) -> Batch:
        return to_tensors(arrays)


def encode_texts(
    vocabulary: PreTrainedTokenizerBase,
    drawn: Sequence[str],
    tables: Sequence[pa.Table],
    max_tokens: int,
    num_references: int,
) -> Arrays:
    """Drawn captions, one an image, and of the tables' ``captions`` the images' references, where there are to be
    any."""
    words = {"input_ids": encode_words(vocabulary, drawn, max_tokens)}
    if num_references:
        captions = [texts for table in tables for texts in table["captions"].to_pylist()]
        words["reference_ids"] = encode_references(vocabulary, captions, num_references, max_tokens)
    return words
