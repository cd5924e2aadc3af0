"""Where an RBM's training samples come from: a feature store, or the encoder inside the worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from raycap.config import Config
from raycap.data.features import FeatureStore, read_features
from raycap.data.rows import Chunk, Rows, decode_images, read_chunk
from raycap.hardware import Precision
from raycap.predictor import EncoderStage
from raycap.train.stream import Arrays, Batch, to_tensors


class StoredFeatures(Config):
    """Embeddings from a feature store of jobs/extract.py."""

    kind: Literal["store"] = "store"

    path: str
    """Directory or s3:// prefix of the store."""


class OnlineFeatures(Config):
    """Embeddings made by the encoder inside the training workers, nothing stored."""

    kind: Literal["online"] = "online"

    rows: str
    """Directory or s3:// prefix of jobs/ingest.py."""

    model: str
    """BLIP directory, s3:// prefix or hub name."""

    precision: Precision = Precision.AUTO
    """Of the encoder."""

    batch_size: int = Field(default=16, ge=1)
    """Images the encoder takes at once."""

    statistics_images: int = Field(default=512, ge=16)
    """Training images from which mean and scale are measured before training."""


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


class OnlineEmbeddings:
    """Embeddings that the encoder makes, in the worker, of images read by Ray Data.

    Args:
        rows: the images.
        settings: the encoder.
        tokens: as of :class:`StoredEmbeddings`.
    """

    def __init__(self, rows: Rows, settings: OnlineFeatures, tokens: slice | None = None) -> None:
        self.rows, self.settings, self.tokens = rows, settings, tokens
        stage = EncoderStage.from_pretrained(settings.model, settings.precision)
        self.samples_per_row = stage.encoder.num_tokens if tokens is None else 1
        self.image_size = stage.image_size
        self.bytes_per_row = stage.image_size**2 * 3
        self._stage: EncoderStage | None = stage

    def __getstate__(self) -> dict[str, Any]:
        # The reading tasks get a copy of this source; they need no encoder.
        return self.__dict__ | {"_stage": None}

    def chunks(self, split: str) -> list[Chunk]:
        return self.rows.chunks(split)

    def read(self, chunks: Sequence[Chunk], rng: np.random.Generator) -> Arrays:  # noqa: ARG002 - nothing is drawn
        """``images`` (n, H, W, 3) uint8."""
        return {"images": np.concatenate([_read_images(chunk, self.image_size) for chunk in chunks])}

    def to_samples(self, arrays: Arrays) -> Batch:
        assert self._stage is not None, "only the worker encodes"
        embeds = _encode(self._stage, arrays["images"], self.settings.batch_size)  # (n, N, D)
        return {"image_embeds": embeds.flatten(0, 1) if self.tokens is None else embeds[:, self.tokens]}


def _read_images(chunk: Chunk, image_size: int) -> np.ndarray:
    return decode_images(chunk, read_chunk(chunk, ["image_id", "image_bytes"]), image_size)


def _encode(stage: EncoderStage, images: np.ndarray, batch_size: int) -> torch.Tensor:
    """(n, N, D) float16, as a store would hold it."""
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    return torch.cat([stage(batch).half() for batch in batches])


def measure_statistics(
    rows: Rows, split: str, stage: EncoderStage, settings: OnlineFeatures
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each embedding dimension over the first training images."""
    count = 0
    total = squares = torch.zeros((), dtype=torch.float64, device=stage.device)
    for chunk in rows.chunks(split):
        embeds = _encode(stage, _read_images(chunk, stage.image_size), settings.batch_size).double().flatten(0, 1)
        count += len(embeds)
        total, squares = total + embeds.sum(0), squares + embeds.square().sum(0)
        if count >= settings.statistics_images * stage.encoder.num_tokens:
            break
    mean = total / count
    return mean.cpu().numpy(), (squares / count - mean.square()).clamp(min=0).sqrt().cpu().numpy()
