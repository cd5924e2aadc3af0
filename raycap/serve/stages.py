"""The predictor's three stages as Serve deployments, with batches made from concurrent requests.

Between them travel image embeddings (N, D) as float16 NumPy arrays: half the bytes of float32, and
BLIP's last layer normalises them to far within float16's range. bfloat16 has no NumPy type.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
import torch
from ray import serve

from raycap.checkpoint import load_blip, load_refiner, pair_id
from raycap.hardware import Precision
from raycap.models.blip import Decoding
from raycap.predictor import DecoderStage, EncoderStage, Refinement, RefinerStage
from raycap.rerank import Rerank, Reranker
from raycap.serve.config import BatchedStageOptions, StageOptions

InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")


class Encoder:
    """Pixels to image embeddings.

    Args:
        rbm: the refiner that follows; one that was trained on another encoder is refused here, where
            the encoder's weights are at hand.
    """

    def __init__(self, model: str, rbm: str | None, precision: Precision, options: BatchedStageOptions) -> None:
        _limit_threads(options)
        self.stage = EncoderStage.from_pretrained(model, precision)
        if rbm is not None:
            load_refiner(rbm, self.stage.id)
        self.encode = _batched(self.encode_batch, options)

    def encode_batch(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """(H, W, 3) uint8 each to (N, D) float16 each."""
        return list(_to_wire(self.stage(np.stack(images))))

    async def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return await self.encode(pixels)


class Refiner:
    """Image embeddings to refined ones. No batches: one image's tokens fill a matrix product already."""

    def __init__(self, rbm: str, refinement: Refinement, options: StageOptions) -> None:
        _limit_threads(options)
        self.stage, self.refinement = RefinerStage(rbm), refinement

    def refine(self, image_embeds: np.ndarray) -> np.ndarray:
        """(N, D) float16 to the same."""
        return _to_wire(self.stage(_from_wire([image_embeds]), self.refinement))[0]

    async def __call__(self, image_embeds: np.ndarray) -> np.ndarray:
        return await asyncio.to_thread(self.refine, image_embeds)


class Decoder:
    """Image embeddings to a caption.

    Args:
        rerank: how to choose among candidates; an RBM that was trained on another BLIP's pairs is refused here.
    """

    def __init__(
        self,
        model: str,
        decoding: Decoding,
        rerank: Rerank | None,
        precision: Precision,
        options: BatchedStageOptions,
    ) -> None:
        _limit_threads(options)
        encoder, decoder = load_blip(model)
        # Before the stage casts the weights: the RBM knows them as they were.
        self.reranker = (
            Reranker(rerank, pair_id(model, encoder, decoder), "args.rerank") if rerank is not None else None
        )
        self.stage, self.decoding = DecoderStage(decoder, precision), decoding
        self.stage.decoder.require_room(decoding, "args.decoding")
        self.decode = _batched(self.decode_batch, options)

    def decode_batch(self, image_embeds: list[np.ndarray]) -> list[str]:
        """(N, D) float16 each to a caption each."""
        return self.stage(_from_wire(image_embeds), self.decoding, self.reranker)

    async def __call__(self, image_embeds: np.ndarray) -> str:
        return await self.decode(image_embeds)


def _to_wire(image_embeds: torch.Tensor) -> np.ndarray:
    return image_embeds.half().cpu().numpy()


def _from_wire(image_embeds: list[np.ndarray]) -> torch.Tensor:
    # Stacking copies, which it must: arrays out of Ray's object store are read-only.
    return torch.from_numpy(np.stack(image_embeds))  # (B, N, D)


def _batched(
    compute: Callable[[list[InputT]], list[OutputT]], options: BatchedStageOptions
) -> Callable[[InputT], Awaitable[OutputT]]:
    """One request's view of a function of many: concurrent calls share a batch.

    The function runs in a thread, so that the next batch gathers meanwhile. With batch_size 1
    Serve's batching stays out of it; it needs a replica around it, and a test may have none.
    """
    if options.batch_size == 1:
        one_at_a_time = asyncio.Semaphore(1)

        async def alone(item: InputT) -> OutputT:
            async with one_at_a_time:
                return (await asyncio.to_thread(compute, [item]))[0]

        return alone

    async def together(items: list[InputT]) -> list[OutputT]:
        return await asyncio.to_thread(compute, items)

    batch: Any = serve.batch(max_batch_size=options.batch_size, batch_wait_timeout_s=options.batch_wait_seconds)
    batched: Callable[[InputT], Awaitable[OutputT]] = batch(together)
    return batched


def _limit_threads(options: StageOptions) -> None:
    if options.torch_threads is not None:
        torch.set_num_threads(options.torch_threads)
