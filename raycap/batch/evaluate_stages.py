"""The two stages of an evaluation, in Ray's workers: rows to spoiled pixels, pixels to captions."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from raycap.batch.pool import decode_span, usable_threads
from raycap.data.corruptions import Corruption
from raycap.hardware import Precision
from raycap.models.blip import Decoding
from raycap.models.refiner import RbmRefiner
from raycap.predictor import CaptionPredictor, Refinement, RefinerStage, load_clip_image_encoder
from raycap.rerank import Rerank, Reranker


class Variant(Refinement):
    """One way of captioning that is compared with the others."""

    name: str
    """Stands in the report and in file names."""

    refiner: str = "rbm"
    """Which refiner changes the embeddings: rbm, or one of ``refiners`` by its name."""

    rerank: str | None = None
    """Which of ``rerankers`` chooses among candidates; null takes the search's own best."""


def read_batch(row: dict[str, Any], *, image_size: int, corruptions: Sequence[Corruption]) -> list[dict[str, Any]]:
    """Decode one batch of a chunk of rows and spoil it in every way asked for.

    Args:
        row: ``file``, ``row_group`` and ``num_rows`` of the chunk, ``start`` and ``stop`` within it.

    Returns:
        For each corruption its name as ``corruption``, ``image_ids`` (b,), ``images``
        (b, image_size, image_size, 3) uint8, and ``error``; b is 0 if a file is no image.
    """
    image_ids, images, error = decode_span(row, image_size)
    return [
        {
            "corruption": corruption.name,
            "image_ids": image_ids,
            "images": np.array(
                [corruption.apply(*pair) for pair in zip(images, image_ids, strict=True)], np.uint8
            ).reshape(images.shape),
            "error": error,
        }
        for corruption in corruptions
    ]


class CaptionBatch:
    """Captions a batch once with each variant, BLIP's and CLIP's embeddings made once for all; an actor of the pool.

    Args:
        model: BLIP directory, s3:// prefix or hub name.
        refiners: directories or s3:// prefixes by name.
        rerankers: settings by name.
        variants: how the embeddings are refined, and the captions chosen.
        torch_threads: at most; never more than this machine has cores.
    """

    def __init__(
        self,
        model: str,
        refiners: Mapping[str, str],
        rerankers: Mapping[str, Rerank],
        precision: Precision,
        variants: Sequence[Variant],
        decoding: Decoding,
        torch_threads: int,
    ) -> None:
        torch.set_num_threads(usable_threads(torch_threads))
        self.variants, self.decoding = variants, decoding
        self.predictor = CaptionPredictor.from_pretrained(model, precision=precision)
        encoder = self.predictor.encoder.id
        self.refiners = {name: RefinerStage(source, encoder) for name, source in refiners.items()}
        self.rerankers: dict[str | None, Reranker] = {name: Reranker(given) for name, given in rerankers.items()}
        clips = {given.clip for given in rerankers.values() if given.clip is not None}
        self.clips = {clip: load_clip_image_encoder(clip) for clip in clips}
        self.ready_at = time.time()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of :func:`read_batch` to its ``error`` and to ``result``, JSON with captions by variant and, for
        the RBM's, the images' summed mean free energies before and after each pass."""
        if row["error"]:
            return {"result": "", "error": row["error"]}
        # Copied, because Ray's memory is read-only, which torch has no notion of.
        images = row["images"].copy()
        image_embeds = self.predictor.encode(images)
        features: dict[str | None, torch.Tensor] = {name: clip(images) for name, clip in self.clips.items()}
        captions, free_energies = {}, {}
        for variant in self.variants:
            stage = self.refiners.get(variant.refiner)
            if stage is None:
                refined = image_embeds
            elif isinstance(stage.refiner, RbmRefiner):
                refined, means = stage.refiner.with_free_energies(image_embeds, variant.gate, variant.passes)
                free_energies[variant.name] = (means * len(image_embeds)).tolist()
            else:
                refined = stage(image_embeds, variant)
            reranker = self.rerankers.get(variant.rerank)
            image_features = features.get(reranker.settings.clip) if reranker is not None else None
            captions[variant.name] = self.predictor.decoder(refined, self.decoding, reranker, image_features)
        result = {
            "corruption": row["corruption"],
            "image_ids": list(row["image_ids"]),
            "captions": captions,
            "free_energies": free_energies,
            "ready_at": self.ready_at,
            "finished_at": time.time(),
            "device": self.predictor.encoder.device.type,
            "precision": str(self.predictor.decoder.dtype).removeprefix("torch."),
        }
        return {"result": json.dumps(result), "error": ""}
