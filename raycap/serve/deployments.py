"""The stages as Serve deployments. Each loads the models of its ``user_config`` before it is ready, and others when
a request first names them."""

import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from ray.serve.handle import DeploymentHandle

from raycap.serve.captioning import Decoder
from raycap.serve.config import CaptionerOptions, ComputeOptions, DecoderOptions, EncoderOptions, RefinerOptions
from raycap.serve.handles import RemoteSource
from raycap.serve.models import Routing
from raycap.serve.pipeline import Captioned, CaptionTask, Encoded, ImageTask
from raycap.serve.stages import Encoder, Refiner


class _Source:
    """Encoder or refiner as a deployment."""

    stage: Encoder | Refiner

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        for weights in _weights_of(user_config, self.stage.options):
            await self.stage.models(weights)

    async def __call__(self, task: ImageTask) -> Encoded:
        return await self.stage(task)

    async def prepare(self, weights: str) -> None:
        await self.stage.prepare(weights)


class EncoderDeployment(_Source):
    """Pixels to image embeddings."""

    def __init__(self, options: EncoderOptions) -> None:
        _set_threads(options.torch_threads)
        self.stage = Encoder(options, _one_thread())


class RefinerDeployment(_Source):
    """Pixels to refined image embeddings, with the encoder's help."""

    def __init__(self, options: RefinerOptions, encoder: DeploymentHandle) -> None:
        _set_threads(options.torch_threads)
        self.stage = Refiner(RemoteSource(encoder), options, _one_thread())


class _Captioner:
    """What the ingress asks, as a deployment."""

    stage: Decoder

    async def caption(self, task: CaptionTask) -> Captioned:
        return await self.stage.caption(task)

    async def stream(self, task: CaptionTask) -> AsyncIterator[str | Captioned]:
        async for piece in self.stage.stream(task):
            yield piece

    async def embed(self, task: ImageTask) -> tuple[Encoded, Encoded]:
        return await self.stage.embed(task)

    async def prepare(self, weights: str) -> None:
        await self.stage.prepare(weights)


class DecoderDeployment(_Captioner):
    """Pixels to captions, with the refiner's help."""

    def __init__(self, options: DecoderOptions, refiner: DeploymentHandle) -> None:
        _set_threads(options.torch_threads)
        self.stage = Decoder(RemoteSource(refiner), options, _one_thread())

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        for weights in _weights_of(user_config, self.stage.options):
            await self.stage.models(weights)


class CaptionerDeployment(_Captioner):
    """Pixels to captions, all in one process."""

    def __init__(self, options: CaptionerOptions, all_cores: bool) -> None:
        _set_threads(options.torch_threads or (os.cpu_count() if all_cores else None))
        computes = _one_thread()
        self.stage = Decoder(Refiner(Encoder(options, computes), options, computes), options, computes)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        for weights in _weights_of(user_config, self.stage.options):
            await self.stage.prepare(weights)


def _weights_of(user_config: dict[str, Any], options: ComputeOptions) -> list[str]:
    models = Routing.model_validate(user_config).models.values()
    return list(dict.fromkeys(model.weights.key for model in models))[: options.max_models]


def _one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="compute")


def _set_threads(torch_threads: int | None) -> None:
    if torch_threads is not None:
        torch.set_num_threads(torch_threads)
