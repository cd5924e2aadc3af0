"""Where an RBM's training samples come from: a feature store, or the encoder inside the worker."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from raycap.config import Config
from raycap.data.rows import Chunk, Rows
from raycap.hardware import Precision
from raycap.predictor import EncoderStage
from raycap.train.blocks import Arrays, Batch
from raycap.train.captioned_images import read_images


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
        self.bytes_per_row = stage.image_size**2 * 3
        self.read = functools.partial(read_images, image_size=stage.image_size)
        self._stage = stage

    def chunks(self, split: str) -> list[Chunk]:
        return self.rows.chunks(split)

    def to_samples(self, arrays: Arrays) -> Batch:
        embeds = _encode(self._stage, arrays["images"], self.settings.batch_size)  # (n, N, D)
        return {"image_embeds": embeds.flatten(0, 1) if self.tokens is None else embeds[:, self.tokens]}


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
        images = read_images([chunk], image_size=stage.image_size)["images"]
        embeds = _encode(stage, images, settings.batch_size).double().flatten(0, 1)
        count += len(embeds)
        total, squares = total + embeds.sum(0), squares + embeds.square().sum(0)
        if count >= settings.statistics_images * stage.encoder.num_tokens:
            break
    mean = total / count
    return mean.cpu().numpy(), (squares / count - mean.square()).clamp(min=0).sqrt().cpu().numpy()
