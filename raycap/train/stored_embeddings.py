"""Embeddings that were extracted beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raycap.data.features import FeatureStore, read_features
from raycap.data.rows import Chunk
from raycap.train.blocks import Arrays, Batch, to_tensors


class StoredEmbeddings:
    """Embeddings of a feature store.

    Args:
        store: where they lie.
        tokens: which of an image's tokens make up a sample; None makes each of them one.
    """

    def __init__(self, store: FeatureStore, tokens: slice | None = None) -> None:
        self.store, self.tokens = store, tokens
        self.samples_per_row = store.num_tokens if tokens is None else 1
        self.bytes_per_row = store.num_tokens * store.embed_dim * 2

    def chunks(self, split: str) -> list[Chunk]:
        return self.store.chunks(split)

    def read(self, chunks: Sequence[Chunk], rng: np.random.Generator) -> Arrays:  # noqa: ARG002 - nothing is drawn
        """``image_embeds`` float16, (n * N, D) or of some tokens of each image (n, tokens, D)."""
        if self.tokens is not None:
            return {"image_embeds": np.concatenate([read_features(chunk)[:, self.tokens] for chunk in chunks])}
        embeds = np.concatenate([read_features(chunk) for chunk in chunks])
        return {"image_embeds": embeds.reshape(-1, self.store.embed_dim)}

    def to_samples(self, arrays: Arrays) -> Batch:
        return to_tensors(arrays)
