"""Rows as images, with the token ids of captions or without."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from raycap.data.rows import Chunk, Rows, decode_images, draw_captions, read_chunk
from raycap.data.text import encode_captions
from raycap.train.blocks import Arrays, Batch, to_tensors


class CaptionedImages:
    """Rows as images and token ids; of an image's captions one is drawn by the block's generator."""

    samples_per_row = 1

    def __init__(
        self,
        rows: Rows,
        image_size: int,
        tokenizer: PreTrainedTokenizerBase,
        bos_id: int,
        prompt: str,
        max_tokens: int,
    ) -> None:
        self.rows, self.image_size = rows, image_size
        self.bytes_per_row = image_size**2 * 3 + max_tokens * 8
        self.tokenizer, self.bos_id, self.prompt, self.max_tokens = tokenizer, bos_id, prompt, max_tokens

    def chunks(self, split: str) -> list[Chunk]:
        return self.rows.chunks(split)

    def read(self, chunks: Sequence[Chunk], rng: np.random.Generator) -> Arrays:
        """``images`` (n, H, W, 3) uint8 and ``input_ids`` (n, T) int64."""
        images: list[np.ndarray] = []
        captions: list[str] = []
        for chunk in chunks:
            table = read_chunk(chunk, ["image_id", "image_bytes", "captions"])
            images.append(decode_images(chunk, table, self.image_size))
            captions += draw_captions(table, rng)
        input_ids = encode_captions(self.tokenizer, captions, self.bos_id, self.prompt, self.max_tokens)
        return {"images": np.concatenate(images), "input_ids": input_ids}

    def to_samples(self, arrays: Arrays) -> Batch:
        return to_tensors(arrays)


def read_images(chunks: Sequence[Chunk], rng: np.random.Generator | None = None, *, image_size: int) -> Arrays:  # noqa: ARG001
    """``images`` (n, H, W, 3) uint8; nothing is drawn."""
    tables = ((chunk, read_chunk(chunk, ["image_id", "image_bytes"])) for chunk in chunks)
    return {"images": np.concatenate([decode_images(chunk, table, image_size) for chunk, table in tables])}
