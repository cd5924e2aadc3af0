"""The second stage of an evaluation, in Ray's workers: spoiled pixels to captions."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from raycap.batch.pool import usable_threads
from raycap.hardware import Precision
from raycap.models.decoding import Decoding
from raycap.models.refinement import Refinement
from raycap.models.refiner import RbmRefiner
from raycap.models.written_caption import WrittenCaption
from raycap.predictor import CaptionPredictor, RefinerStage, load_clip_image_encoder
from raycap.rerank import Rerank
from raycap.reranker import Reranker


class Variant(Refinement):
    """One way of captioning that is compared with the others."""

    name: str
    """Stands in the report and in file names."""

    model: str | None = None
    """Captioner of either kind: directory, s3:// prefix or hub name; null is the evaluation's."""

    decoding: Decoding | None = None
    """How its captions are searched; null is the evaluation's."""

    refiner: str = "rbm"
    """Which refiner changes the embeddings: rbm, or one of ``refiners`` by its name."""

    rerank: str | None = None
    """Which of ``rerankers`` chooses among candidates; null takes the search's own best."""


class Models(NamedTuple):
    """What the variants of an evaluation are made of; everything by the name that the configuration has for it."""

    captioners: dict[str, str]
    """Directories, s3:// prefixes or hub names, as any process finds them."""

    refiners: dict[str, str]
    """Directories or s3:// prefixes, likewise."""

    rerankers: dict[str, Rerank]
    precision: Precision


class VariantStages:
    """Captions images with each variant, embeddings and CLIP's features made once for all that share them.

    Args:
        variants: each with its ``model`` and ``decoding``.
        models: of which those are loaded that the variants name.

    Raises:
        UserError: what is wrong with a model.
    """

    def __init__(self, variants: Sequence[Variant], models: Models) -> None:
        self.variants = variants
        names = dict.fromkeys(_of(variant.model) for variant in variants)
        self.predictors = {
            name: CaptionPredictor.from_pretrained(models.captioners[name], precision=models.precision)
            for name in names
        }
        self.refiners: dict[tuple[str, str], RefinerStage] = {}
        self.rerankers: dict[str | None, Reranker] = {}
        for variant in variants:
            pair = (_of(variant.model), variant.refiner)
            if variant.refiner in models.refiners and variant.gate and pair not in self.refiners:
                encoder = self.predictors[pair[0]].encoder.id
                self.refiners[pair] = RefinerStage(models.refiners[variant.refiner], encoder)
            if variant.rerank is not None and variant.rerank not in self.rerankers:
                self.rerankers[variant.rerank] = Reranker(models.rerankers[variant.rerank])
        clips = {reranker.settings.clip for reranker in self.rerankers.values()} - {None}
        self.clips = {clip: load_clip_image_encoder(clip) for clip in clips if clip is not None}

    @property
    def image_sizes(self) -> list[int]:
        """Of the images that :meth:`__call__` wants."""
        return sorted({predictor.encoder.image_size for predictor in self.predictors.values()})

    def __call__(self, images: Mapping[int, np.ndarray]) -> tuple[dict[str, list[str]], dict[str, list[float]]]:
        """
        Args:
            images: the same ones by their size, (b, size, size, 3) uint8.

        Returns:
            The captions of each variant, and of an RBM's the images' summed mean free energies before and after each
            pass.
        """
        image_embeds = {
            name: predictor.encode(images[predictor.encoder.image_size]) for name, predictor in self.predictors.items()
        }
        features: dict[tuple[int, str], torch.Tensor] = {}
        captions, free_energies = {}, {}
        for variant in self.variants:
            name = _of(variant.model)
            predictor = self.predictors[name]
            refined, means = self._refine(variant, image_embeds[name])
            if means is not None:
                free_energies[variant.name] = (means * len(refined)).tolist()
            reranker, image_features = self.rerankers.get(variant.rerank), None
            if reranker is not None and reranker.settings.clip is not None:
                key = (predictor.encoder.image_size, reranker.settings.clip)
                if key not in features:
                    features[key] = self.clips[key[1]](images[key[0]])
                image_features = features[key]
            assert variant.decoding is not None
            captions[variant.name] = predictor.decoder(refined, variant.decoding, reranker, image_features)
        return captions, free_energies

    def explain(self, images: Mapping[int, np.ndarray]) -> dict[str, list[WrittenCaption]]:
        """The captions of each variant with the attention of their words, none re-ranked; arguments as above."""
        written = {}
        for variant in self.variants:
            predictor = self.predictors[_of(variant.model)]
            embeds = predictor.encode(images[predictor.encoder.image_size])
            refined, _ = self._refine(variant, embeds)
            assert variant.decoding is not None
            found = predictor.decoder.write(refined, variant.decoding, explain=True)
            written[variant.name] = [best for best, *_ in found]
        return written

    def _refine(self, variant: Variant, image_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        stage = self.refiners.get((_of(variant.model), variant.refiner))
        if stage is None:
            return image_embeds, None
        if isinstance(stage.refiner, RbmRefiner):
            return stage.refiner.with_free_energies(image_embeds, variant.gate, variant.passes)
        return stage(image_embeds, variant), None


def _of(model: str | None) -> str:
    assert model is not None, "a variant's model is filled in before the work begins"
    return model


class CaptionBatch:
    """Captions a batch once with each variant; an actor of the pool.

    Args:
        variants, models: as of :class:`VariantStages`.
        torch_threads: at most; never more than this machine has cores.
    """

    def __init__(self, variants: Sequence[Variant], models: Models, torch_threads: int) -> None:
        torch.set_num_threads(usable_threads(torch_threads))
        self.stages = VariantStages(variants, models)
        self.ready_at = time.time()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of :func:`~raycap.batch.reading.read_spoiled` to its ``error`` and to ``result``, JSON with captions by
        variant and, for the RBM's, the images' summed mean free energies before and after each pass."""
        if row["error"]:
            return {"result": "", "error": row["error"]}
        # Copied, because Ray's memory is read-only, which torch has no notion of.
        captions, free_energies = self.stages({size: row[f"images_{size}"].copy() for size in self.stages.image_sizes})
        predictor = next(iter(self.stages.predictors.values()))
        result = {
            "corruption": row["corruption"],
            "image_ids": list(row["image_ids"]),
            "captions": captions,
            "free_energies": free_energies,
            "ready_at": self.ready_at,
            "finished_at": time.time(),
            "device": predictor.encoder.device.type,
            "precision": str(predictor.decoder.dtype).removeprefix("torch."),
        }
        return {"result": json.dumps(result), "error": ""}
