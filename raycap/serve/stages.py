"""The predictor's three stages as Serve deployments, with batches made from concurrent requests.

Between them travel image embeddings as float16 NumPy arrays: half the bytes of float32, and BLIP's last layer
normalises them to far within float16's range. bfloat16 has no NumPy type.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from ray import serve

from raycap.checkpoint import load_blip, load_refiner, pair_id
from raycap.hardware import Precision
from raycap.models.blip import Decoding
from raycap.predictor import DecoderStage, EncoderStage, Refinement, RefinerStage, load_clip_image_encoder
from raycap.rerank import Rerank, Reranker
from raycap.serve.config import BatchedStageOptions, StageOptions

InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")


class Encoded(NamedTuple):
    """What the decoder is to know of an image."""

    image_embeds: np.ndarray
    """(N, D) float16."""

    image_features: np.ndarray | None
    """CLIP's, (E,) float32, if one re-ranks."""


class Encoder:
    """Pixels to image embeddings.

    Args:
        rbm: the refiner that follows; one that was trained on another encoder is refused here, where
            the encoder's weights are at hand.
        clip: the CLIP that re-ranks; its half that reads images works here.
    """

    def __init__(
        self, model: str, rbm: str | None, clip: str | None, precision: Precision, options: BatchedStageOptions
    ) -> None:
        _limit_threads(options)
        self.stage = EncoderStage.from_pretrained(model, precision)
        if rbm is not None:
            load_refiner(rbm, self.stage.id)
        self.clip = load_clip_image_encoder(clip, "args.rerank.clip") if clip is not None else None
        self.encode = _batched(self.encode_batch, options)

    def encode_batch(self, images: list[np.ndarray]) -> list[Encoded]:
        """(H, W, 3) uint8 each."""
        pixels = np.stack(images)
        image_embeds = _to_wire(self.stage(pixels))
        image_features = [None] * len(images) if self.clip is None else self.clip(pixels).cpu().numpy()
        return [Encoded(*of_image) for of_image in zip(image_embeds, image_features, strict=True)]

    async def __call__(self, pixels: np.ndarray) -> Encoded:
        return await self.encode(pixels)


class Refiner:
    """Image embeddings to refined ones. No batches: one image's tokens fill a matrix product already."""

    def __init__(self, rbm: str, refinement: Refinement, options: StageOptions) -> None:
        _limit_threads(options)
        self.stage, self.refinement = RefinerStage(rbm), refinement

    def refine(self, encoded: Encoded) -> Encoded:
        """CLIP's features stay as they are."""
        image_embeds = self.stage(_from_wire([encoded.image_embeds]), self.refinement)
        return encoded._replace(image_embeds=_to_wire(image_embeds)[0])

    async def __call__(self, encoded: Encoded) -> Encoded:
        return await asyncio.to_thread(self.refine, encoded)


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

    def decode_batch(self, encoded: list[Encoded]) -> list[str]:
        """To a caption each."""
        image_embeds = _from_wire([of_image.image_embeds for of_image in encoded])
        features = [of_image.image_features for of_image in encoded if of_image.image_features is not None]
        return self.stage(image_embeds, self.decoding, self.reranker, _from_wire(features) if features else None)

    async def __call__(self, encoded: Encoded) -> str:
        return await self.decode(encoded)


def _to_wire(image_embeds: torch.Tensor) -> np.ndarray:
    return image_embeds.half().cpu().numpy()


def _from_wire(arrays: list[np.ndarray]) -> torch.Tensor:
    # Stacking copies, which it must: arrays out of Ray's object store are read-only.
    return torch.from_numpy(np.stack(arrays))  # (B, ...)


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
