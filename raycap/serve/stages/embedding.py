"""The predictor's encoder and refiner with batches made from concurrent requests: the same objects whether each is a
deployment of its own or all are in one replica."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch

from raycap.checkpoint.captioner import load_captioner
from raycap.checkpoint.identity import refiner_fingerprint
from raycap.checkpoint.refiner import load_refiner
from raycap.models.clip import ClipImageEncoder
from raycap.predictor import EncoderStage, RefinerStage, load_clip_image_encoder
from raycap.serve.config import BatchedOptions, EncoderOptions, RefinerOptions
from raycap.serve.stages.batching import Batcher
from raycap.serve.stages.cache import ByteCache
from raycap.serve.stages.pipeline import EmbeddingSource, Encoded, ImageTask
from raycap.serve.stages.weights import Weights, resident
from raycap.serve.telemetry.metrics import BATCH_SIZE, CACHE, QUEUE_LENGTH, Recorder, timed
from raycap.serve.telemetry.telemetry import Telemetry


@dataclass(frozen=True)
class _Encoding:
    stage: EncoderStage
    clip: ClipImageEncoder | None
    fingerprint: str


class Encoder:
    """Pixels to image embeddings, and, where a CLIP re-ranks, its features of the same pixels.

    Args:
        options: sizes of batch and cache.
        executor: one thread that computes.
        telemetry: told of each request and batch.
        to_cpu: whether embeddings leave the process: then they leave the GPU by batches, in the thread that computes.
    """

    def __init__(
        self,
        options: EncoderOptions,
        executor: Executor,
        telemetry: Telemetry = Telemetry(),  # noqa: B008 - keeps nothing
        to_cpu: bool = False,
    ) -> None:
        self.options, self.telemetry, self.to_cpu = options, telemetry, to_cpu
        self.cache: ByteCache[Encoded] = ByteCache(options.cache_bytes)
        self.models = resident(self._load, options.max_models)
        self.batcher = _batcher(self._encode, executor, options, telemetry.recorder, "encode")

    async def __call__(self, task: ImageTask) -> Encoded:
        with self.telemetry.stage("encode", task.request_id, task.trace) as details:
            return await self._cached_or_encoded(task, details)

    async def _cached_or_encoded(self, task: ImageTask, details: dict[str, Any]) -> Encoded:
        key = (task.weights, task.digest)
        may_come_again = bool(task.digest and self.options.cache_bytes)
        if may_come_again:
            cached = self.cache.get(key)
            details["cache"] = "miss" if cached is None else "hit"
            self.telemetry.recorder.add(CACHE, cache="embeddings", result=details["cache"])
            if cached is not None:
                return cached
        encoded = await self.batcher(task.pixels, await self.models(task.weights))
        details |= {"batch_size": encoded.batch_size, "model_version": encoded.versions["encoder"]}
        if may_come_again:
            # Of a batch's embeddings, which one tensor holds, only this image's are kept.
            kept = replace(encoded, image_embeds=encoded.image_embeds.clone(), seconds={"encode": 0.0})
            self.cache.put(key, kept, kept.image_embeds.nbytes)
        return encoded

    async def prepare(self, weights: str) -> None:
        await self.models(weights)

    @property
    def num_unfinished(self) -> int:
        """Images in a batch, or waiting for one."""
        return self.batcher.num_unfinished

    def _load(self, weights: Weights) -> _Encoding:
        encoder, _ = load_captioner(weights.model)
        stage = EncoderStage(encoder, weights.model, weights.precision)
        if weights.rbm is not None:
            # Refused here, where the encoder's weights are at hand, if it was trained on another's embeddings.
            load_refiner(weights.rbm, stage.id)
        clip_source = None if weights.rerank is None else weights.rerank.clip
        clip = None if clip_source is None else load_clip_image_encoder(clip_source)
        loaded = _Encoding(stage, clip, stage.id.fingerprint)
        self._encode(loaded, [np.zeros((stage.image_size, stage.image_size, 3), np.uint8)])
        return loaded

    def _encode(self, loaded: Any, images: Sequence[np.ndarray]) -> list[Encoded]:
        began = perf_counter()
        pixels = np.stack(images)
        image_embeds = loaded.stage(pixels).half()
        features: Any = [None] * len(images) if loaded.clip is None else loaded.clip(pixels)
        image_embeds = _finish(image_embeds, self.to_cpu)
        seconds = {"encode": perf_counter() - began}
        return [
            Encoded(of_image, {"encoder": loaded.fingerprint}, of_clip, seconds, len(images))
            for of_image, of_clip in zip(image_embeds, features, strict=True)
        ]


@dataclass(frozen=True)
class _Refining:
    stage: RefinerStage
    fingerprint: str


class Refiner:
    """Image embeddings to refined ones; without an RBM, and with gate 0, those that came.

    Args:
        source: of the embeddings.
        options: size of a batch.
        executor: one thread that computes.
        telemetry: told of each request and batch.
        to_cpu: whether embeddings leave the process: then they leave the GPU by batches, in the thread that computes.
    """

    def __init__(
        self,
        source: EmbeddingSource,
        options: RefinerOptions,
        executor: Executor,
        telemetry: Telemetry = Telemetry(),  # noqa: B008 - keeps nothing
        to_cpu: bool = False,
    ) -> None:
        self.source, self.options, self.telemetry, self.to_cpu = source, options, telemetry, to_cpu
        self.models = resident(self._load, options.max_models)
        self.batcher = _batcher(self._refine, executor, options, telemetry.recorder, "refine")

    async def __call__(self, task: ImageTask) -> Encoded:
        return await self.refine(task, await self.source(task))

    async def refine(self, task: ImageTask, encoded: Encoded) -> Encoded:
        """What comes of embeddings that are there already."""
        if Weights.from_key(task.weights).rbm is None or task.refinement.gate == 0:
            return encoded
        with self.telemetry.stage("refine", task.request_id, task.trace) as details:
            loaded = await self.models(task.weights)
            refined = await self.batcher(encoded, (loaded, task.refinement))
            details |= {"batch_size": refined.batch_size, "model_version": loaded.fingerprint}
        return refined

    async def prepare(self, weights: str) -> None:
        await self.source.prepare(weights)
        if Weights.from_key(weights).rbm is not None:
            await self.models(weights)

    @property
    def num_unfinished(self) -> int:
        """Images in a batch, or waiting for one."""
        return self.batcher.num_unfinished

    def _load(self, weights: Weights) -> _Refining:
        assert weights.rbm is not None
        stage = RefinerStage(weights.rbm)
        return _Refining(stage, refiner_fingerprint(stage.refiner))

    def _refine(self, group: Any, batch: Sequence[Encoded]) -> list[Encoded]:
        began = perf_counter()
        loaded, refinement = group
        image_embeds = torch.stack([encoded.image_embeds for encoded in batch]).to(loaded.stage.device)
        refined = loaded.stage(image_embeds, refinement)
        refined = _finish(refined, self.to_cpu)
        seconds = {"refine": perf_counter() - began}
        return [
            replace(
                encoded,
                image_embeds=of_image,
                versions=encoded.versions | {"refiner": loaded.fingerprint},
                seconds=encoded.seconds | seconds,
                batch_size=len(batch),
            )
            for encoded, of_image in zip(batch, refined, strict=True)
        ]


def _batcher(
    compute: Callable[[Any, Sequence[Any]], Sequence[Encoded]],
    executor: Executor,
    options: BatchedOptions,
    recorder: Recorder,
    stage: str,
) -> Batcher[Any, Encoded]:
    def observe(batch_size: int) -> None:
        recorder.add(BATCH_SIZE, batch_size, stage=stage)

    compute = timed(compute, recorder, stage)
    batcher = Batcher(compute, executor, options.batch_size, options.batch_wait_seconds, observe)
    recorder.watch(QUEUE_LENGTH, lambda: len(batcher.waiting), stage=stage)
    return batcher


def _finish(result: torch.Tensor, to_cpu: bool) -> torch.Tensor:
    """A GPU computes on its own; its time is known, and its memory may be read by others, when it is done."""
    if to_cpu:
        return result.cpu()
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
    return result
