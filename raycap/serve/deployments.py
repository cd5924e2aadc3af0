"""The stages as Serve deployments. Each loads the models of its ``user_config`` before it is ready, and others when
a request first names them."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import torch
from ray.serve.handle import DeploymentHandle

from raycap.errors import UserError
from raycap.serve.autoscaling import OWN_WORK
from raycap.serve.config import (
    CaptionerOptions,
    ComputeOptions,
    DecoderOptions,
    EncoderOptions,
    RefinerOptions,
)
from raycap.serve.errors import Overloaded
from raycap.serve.garbage import collect_seldom
from raycap.serve.stages.bounded import BoundedCaptioner
from raycap.serve.stages.captioning import Decoder
from raycap.serve.stages.embedding import Encoder, Refiner
from raycap.serve.stages.fused import fused_stages
from raycap.serve.stages.handles import RemoteSource
from raycap.serve.stages.parcels import Unpacked
from raycap.serve.stages.pipeline import Captioned, CaptionTask, Embedded, Encoded, ImageTask
from raycap.serve.stages.threads import compute_elsewhere, compute_thread
from raycap.serve.stages.weights import Routing
from raycap.serve.telemetry.telemetry import Telemetry
from raycap.serve.telemetry.tracing import Tracing

logger = logging.getLogger("ray.serve")


class _Deployment:
    """What all have in common.

    Args:
        options: of its replicas.
        tracing: where its spans go.
    """

    stage: Encoder | Refiner | Decoder
    telemetry = Telemetry()

    def __init__(self, options: ComputeOptions, tracing: Tracing | None) -> None:
        if options.num_gpus == 0:
            # Ray leaves a GPU visible to those that reserved none of it.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self.num_threads = options.torch_threads or torch.get_num_threads()
        compute_elsewhere()
        collect_seldom()
        self.telemetry = Telemetry.of_replica(tracing)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve's call: load the models of a :class:`~raycap.serve.stages.weights.Routing`.

        One that cannot be loaded is left to the ingress, which serves none that gave no caption: it may long have been
        replaced by another as this replica starts.
        """
        for weights in _weights_of(user_config, self.stage.options):
            try:
                await self._load(weights)
            except UserError as error:
                logger.error("not loaded: %s", error)

    async def _load(self, weights: str) -> None:
        await self.stage.models(weights)

    async def prepare(self, weights: str) -> None:
        await self.stage.prepare(weights)

    async def num_unfinished(self) -> int:
        """Of this replica's requests; 0 where nothing is left of those that were given up."""
        return self.stage.num_unfinished

    async def check_health(self) -> None:
        """Serve's call: a replica whose GPU answers nothing any more, as after an error on it, is replaced."""
        if torch.cuda.is_initialized():
            await asyncio.to_thread(torch.cuda.synchronize)

    def __del__(self) -> None:
        # Serve's call as a replica stops, before its process is killed.
        self.telemetry.close()


class _Source(_Deployment):
    """Encoder or refiner as a deployment."""

    stage: Encoder | Refiner

    async def __call__(self, tasks: list[ImageTask]) -> list[Encoded | Exception]:
        """Of each image its embeddings, or why there are none; what is no answer to it is raised for all."""
        outcomes = await asyncio.gather(*map(self.stage, tasks), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Overloaded | UserError):
                raise outcome
        return outcomes  # type: ignore[return-value]

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's call, every few seconds."""
        return {OWN_WORK: self.stage.num_unfinished}


class EncoderDeployment(_Source):
    """Pixels to image embeddings."""

    def __init__(self, options: EncoderOptions, tracing: Tracing | None = None) -> None:
        super().__init__(options, tracing)
        self.stage = Encoder(options, compute_thread("encoding", self.num_threads), self.telemetry, to_cpu=True)


class RefinerDeployment(_Source):
    """Pixels to refined image embeddings, with the encoder's help."""

    def __init__(
        self,
        options: RefinerOptions,
        encoder: DeploymentHandle,
        parcel_size: int,
        num_parcels: int,
        tracing: Tracing | None = None,
    ) -> None:
        super().__init__(options, tracing)
        source = RemoteSource(encoder, parcel_size, num_parcels)
        computes = compute_thread("refining", self.num_threads)
        self.stage = Refiner(source, options, computes, self.telemetry, to_cpu=True)


class _Captioner(_Deployment):
    """What the ingress asks, as a deployment."""

    stage: Decoder

    def _serve(self, stage: Decoder, num_callers: int) -> None:
        self.stage = stage
        # By tasks, of which one call may bring many: Serve counts calls.
        options = stage.options
        self.bounded = BoundedCaptioner(stage, options.max_requests(num_callers), options.retry_after_seconds)
        self.unpacked: Unpacked[CaptionTask, Captioned] = Unpacked(self.bounded.caption)

    async def caption(self, task: CaptionTask) -> Captioned:
        return await self.bounded.caption(task)

    async def captions(
        self, parcel_id: str, tasks: list[CaptionTask]
    ) -> AsyncIterator[list[tuple[int, Captioned | Exception]]]:
        """First nothing, which says that they are here; then of each task, by its index, what came of it."""
        async with aclosing(self.unpacked.answers(parcel_id, tasks)) as unpacked:
            async for answers in unpacked:
                yield answers

    async def give_up(self, keys: list[tuple[str, int]]) -> None:
        """Nobody waits for these tasks of parcels any more; all replicas are told, one of which has them."""
        for parcel_id, index in keys:
            self.unpacked.give_up(parcel_id, index)

    async def stream(self, task: CaptionTask) -> AsyncIterator[str | Captioned]:
        async with aclosing(self.bounded.stream(task)) as pieces:
            async for piece in pieces:
                yield piece

    async def embed(self, task: ImageTask) -> Embedded:
        return await self.bounded.embed(task)


class DecoderDeployment(_Captioner):
    """Pixels to captions, with the help of what gives embeddings: the refiner, or the encoder where there is none."""

    def __init__(
        self,
        options: DecoderOptions,
        source: DeploymentHandle,
        parcel_size: int,
        num_parcels: int,
        tracing: Tracing | None = None,
        num_callers: int = 1,
    ) -> None:
        super().__init__(options, tracing)
        computes = compute_thread("decoding", self.num_threads)
        stage = Decoder(RemoteSource(source, parcel_size, num_parcels), options, computes, self.telemetry)
        self._serve(stage, num_callers)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's call, every few seconds."""
        return {OWN_WORK: self.stage.num_unfinished}


class CaptionerDeployment(_Captioner):
    """Pixels to captions, all in one process."""

    def __init__(self, options: CaptionerOptions, tracing: Tracing | None = None, num_callers: int = 1) -> None:
        super().__init__(options, tracing)
        self._serve(fused_stages(options, self.telemetry, self.num_threads), num_callers)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's call, every few seconds."""
        return {OWN_WORK: self.bounded.num_requests}

    async def _load(self, weights: str) -> None:
        await self.stage.prepare(weights)


def _weights_of(user_config: dict[str, Any], options: ComputeOptions) -> list[str]:
    models = Routing.model_validate(user_config).models.values()
    return list(dict.fromkeys(model.weights.key for model in models))[: options.max_models]
