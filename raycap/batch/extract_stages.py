"""The second stage of an extraction, in Ray's workers: pixels to one file of embeddings."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field

from raycap.batch.pool import usable_threads
from raycap.checkpoint.identity import EncoderId, encoder_fingerprint, pair_id
from raycap.checkpoint.lstm_captioner import load_region_encoder
from raycap.checkpoint.pretrained import load_blip
from raycap.config import Config
from raycap.data.features import write_features
from raycap.errors import UserError
from raycap.hardware import Precision, keep_freed_memory
from raycap.models.blip import BlipCaptionDecoder, BlipImageEncoder
from raycap.models.resnet_regions import ResNetRegions
from raycap.predictor import DecoderStage, EncoderStage


def native_precision(device: torch.device) -> Precision:
    """What :attr:`Precision.AUTO` comes to on a device."""
    return Precision.BF16 if Precision.AUTO.dtype(device) is torch.bfloat16 else Precision.FP32


class RegionsView(Config):
    """What of an image a ResNet makes regions of: the whole, without the drawn windows of a training on images."""

    image_size: int | None = Field(default=None, ge=32)
    """Edge to which images are resized; null is an LSTM captioner's own, and 224 for a ResNet."""

    grid: int | None = Field(default=None, ge=1)
    """grid x grid regions; null is an LSTM captioner's own, and 7 for a ResNet."""


class Embedder(NamedTuple):
    """What makes embeddings of one kind."""

    encoder: BlipImageEncoder | ResNetRegions
    decoder: BlipCaptionDecoder | None
    """Of joint embeddings."""
    id: EncoderId


def load_embedder(model: str, with_captions: bool, regions: RegionsView | None) -> Embedder:
    """Load on the CPU, in float32.

    Raises:
        UserError: nothing there, or another model.
    """
    if regions is not None:
        of_regions = load_region_encoder(model, regions.image_size, regions.grid)
        return Embedder(of_regions, None, EncoderId(model, encoder_fingerprint(of_regions)))
    encoder, decoder = load_blip(model)
    if with_captions:
        return Embedder(encoder, decoder, pair_id(model, encoder, decoder))
    return Embedder(encoder, None, EncoderId(model, encoder_fingerprint(encoder)))


class EncodeChunk:
    """Encodes chunks of images and writes each as one file of the store; an actor of the pool.

    Several calls may run at once: one thread encodes, while the others write what it has encoded.

    Args:
        output: the store.
        model: BLIP directory, s3:// prefix or hub name.
        fingerprint: of what the store belongs to: the encoder, or both halves.
        batch_size: images that the encoder takes at once.
        with_captions: make joint embeddings of images and their captions.
        regions: make regions by a ResNet.
        torch_threads: of the encoder on the CPU, at most; never more than this machine has cores.
    """

    def __init__(
        self,
        output: str,
        model: str,
        fingerprint: str,
        precision: Precision,
        batch_size: int,
        with_captions: bool,
        regions: RegionsView | None,
        torch_threads: int,
    ) -> None:
        self.output, self.batch_size = output, batch_size
        self.torch_threads = usable_threads(torch_threads)
        # One thread for all of torch: each thread that computes would start its own team of OpenMP threads.
        self._encoding = ThreadPoolExecutor(1, initializer=lambda: torch.set_num_threads(self.torch_threads))
        self._encoding.submit(self._load, model, fingerprint, precision, with_captions, regions).result()
        self._ready_at = time.time()

    def _load(
        self, model: str, fingerprint: str, precision: Precision, with_captions: bool, regions: RegionsView | None
    ) -> None:
        keep_freed_memory()
        encoder, decoder, owner = load_embedder(model, with_captions, regions)
        if owner.fingerprint != fingerprint:
            raise ValueError(f"model = {model}: not the model that the job began with; leave it alone meanwhile")
        self._stage = EncoderStage(encoder, model, precision)
        self._decoder = DecoderStage(decoder, precision) if decoder else None
        self._shape = (1, 2 * encoder.embed_dim) if with_captions else (encoder.num_tokens, encoder.embed_dim)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            row: of :func:`~raycap.batch.reading.read_images`, with ``name`` of the file and ``source``, what it is made
                from.

        Returns:
            Counts and times; the embeddings are in the store.
        """
        image_ids, num_bytes, error = list(row["image_ids"]), 0, row["error"]
        num_images = len(image_ids)
        if not error:
            captions = json.loads(row["captions"])
            if captions:  # a row of the store for each
                image_ids = [name for name, texts in zip(image_ids, captions, strict=True) for _ in texts]
            try:
                image_embeds = self._encoding.submit(self._encode, row["images"], captions, image_ids).result()
                num_bytes = write_features(self.output, row["name"], image_ids, image_embeds, row["source"])
            except UserError as reason:
                error = str(reason)
        return {
            "num_images": num_images,
            "num_bytes": num_bytes,
            "ready_at": self._ready_at,
            "finished_at": time.time(),
            "torch_threads": self.torch_threads,
            "error": error,
        }

    def _encode(self, images: np.ndarray, captions: list[list[str]], image_ids: Sequence[str]) -> np.ndarray:
        """(n, H, W, 3) uint8, and the captions of each or none, to float16: (n, N, D), or (number of pairs, 1, 2D)."""
        image_embeds, done = torch.empty((len(image_ids), *self._shape), dtype=torch.float16), 0
        for start in range(0, len(images), self.batch_size):
            stop = start + self.batch_size
            # Copied, because Ray's memory is read-only, which torch has no notion of.
            batch = self._stage(images[start:stop].copy())  # (b, N, D)
            if self._decoder is not None:
                batch = self._decoder.embed(batch, captions[start:stop])[:, None]
            batch = batch.half()
            finite = batch.isfinite().flatten(1).all(dim=1)  # (b,)
            if not finite.all():
                image_id = image_ids[done + int(finite.int().argmin())]
                raise UserError(
                    f"model: an embedding of image {image_id} is no number or above 65504, the most that the store's "
                    "float16 holds; give an encoder that normalises its output"
                )
            image_embeds[done : done + len(batch)] = batch
            done += len(batch)
        return image_embeds.numpy()
