"""The last stage: asks for an image's embeddings and writes captions of them."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from time import perf_counter

import torch

from raycap.checkpoint.captioner import load_captioner
from raycap.checkpoint.identity import CaptionDecoder, encoder_fingerprint, pair_id
from raycap.models.decoding import Decoding
from raycap.models.lstm_caption_decoder import LstmCaptionDecoder
from raycap.models.refinement import Refinement
from raycap.predictor import DecoderStage
from raycap.reranker import Reranker
from raycap.serve.config import DecoderOptions
from raycap.serve.stages.blip_writing import BlipWriter
from raycap.serve.stages.lstm_writing import LstmWriter
from raycap.serve.stages.pipeline import (
    Captioned,
    CaptionTask,
    Embedded,
    EmbeddingSource,
    Encoded,
    ImageTask,
    version_name,
)
from raycap.serve.stages.weights import Weights, resident
from raycap.serve.stages.writing import Writer
from raycap.serve.telemetry.metrics import DECODER_ROWS, QUEUE_LENGTH, STAGE_SECONDS, TOKENS
from raycap.serve.telemetry.telemetry import Telemetry


@dataclass(frozen=True)
class _Loaded:
    writer: Writer
    encoder_fingerprint: str
    fingerprint: str


class Decoder:
    """A :class:`~raycap.serve.stages.pipeline.Captioner`.

    Args:
        source: of the embeddings.
        options: how many captions at once.
        executor: one thread that computes.
        telemetry: told of each request.
    """

    def __init__(
        self,
        source: EmbeddingSource,
        options: DecoderOptions,
        executor: Executor,
        telemetry: Telemetry = Telemetry(),  # noqa: B008 - keeps nothing
    ) -> None:
        self.source, self.options, self.executor, self.telemetry = source, options, executor, telemetry
        self.models = resident(self._load, options.max_models)
        self._writers: tuple[weakref.ref[Writer], ...] = ()
        telemetry.recorder.watch(QUEUE_LENGTH, lambda: sum(each.num_waiting for each in self.writers), stage="decode")
        telemetry.recorder.watch(DECODER_ROWS, lambda: sum(each.num_rows for each in self.writers))

    @property
    def writers(self) -> list[Writer]:
        """Of the models that are loaded or still in use; any thread may ask."""
        return [writer for known in self._writers if (writer := known()) is not None]

    async def caption(self, task: CaptionTask) -> Captioned:
        return await self._caption(task, None)

    async def stream(self, task: CaptionTask) -> AsyncGenerator[str | Captioned, None]:
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        captioning = asyncio.create_task(self._caption(task, pieces.put_nowait))
        captioning.add_done_callback(lambda _: pieces.put_nowait(None))
        sent = ""
        try:
            while (piece := await pieces.get()) is not None:
                sent += piece
                yield piece
            captioned = await captioning
            best = captioned.captions[0]
            if len(captioned.captions) == 1 and best.startswith(sent) and best != sent:
                yield best.removeprefix(sent)
            yield captioned
        finally:
            captioning.cancel()

    async def embed(self, task: ImageTask) -> Embedded:
        encoded = await self.source(replace(task, refinement=Refinement(gate=0)))
        before = encoded.image_embeds.numpy(force=True)
        if Weights.from_key(task.weights).rbm is None or task.refinement.gate == 0:
            return Embedded(before, before, version_name(encoded.versions), encoded.seconds)
        refined = await self.source(task)
        versions, seconds = encoded.versions | refined.versions, encoded.seconds | refined.seconds
        return Embedded(before, refined.image_embeds.numpy(force=True), version_name(versions), seconds)

    async def prepare(self, weights: str) -> None:
        await asyncio.gather(self.source.prepare(weights), self.models(weights))

    @property
    def num_unfinished(self) -> int:
        """Requests that the models decode, or that wait for that."""
        return sum(writer.num_unfinished for writer in self.writers)

    def _load(self, weights: Weights) -> _Loaded:
        encoder, decoder = load_captioner(weights.model)
        # Before the stage casts the weights: fingerprints, and the RBM that re-ranks, know them as they were.
        pair = pair_id(weights.model, encoder, decoder)
        of_encoder = encoder_fingerprint(encoder)
        reranker = None if weights.rerank is None else Reranker(weights.rerank, pair)
        stage = DecoderStage(decoder, weights.precision)
        stage(torch.zeros(1, encoder.num_tokens, encoder.embed_dim), Decoding(max_new_tokens=2))
        loaded = _Loaded(
            _writer_of(decoder, reranker, self.options.max_rows, self.executor), of_encoder, pair.fingerprint
        )
        # Replaced, not changed: others may be reading.
        self._writers = (*(known for known in self._writers if known() is not None), weakref.ref(loaded.writer))
        return loaded

    async def _caption(self, task: CaptionTask, on_text: Callable[[str], None] | None) -> Captioned:
        encoded, loaded = await asyncio.gather(self.source(task), self.models(task.weights))
        if encoded.versions["encoder"] != loaded.encoder_fingerprint:
            raise RuntimeError(
                f"model = {Weights.from_key(task.weights).model}: its files changed while it was served; "
                "give the new ones a path or a version of their own"
            )
        with self.telemetry.stage("decode", task.request_id, task.trace) as details:
            captioned = await self._write(task, encoded, loaded, on_text)
            details |= {"tokens": captioned.num_tokens, "model_version": captioned.version}
        self.telemetry.recorder.add(TOKENS, captioned.num_tokens)
        self.telemetry.recorder.add(STAGE_SECONDS, captioned.seconds["decode"], stage="decode")
        return captioned

    async def _write(
        self, task: CaptionTask, encoded: Encoded, loaded: _Loaded, on_text: Callable[[str], None] | None
    ) -> Captioned:
        began = perf_counter()
        written = await loaded.writer.write(encoded, task, on_text)
        return Captioned(
            captions=[caption.text for caption in written],
            log_probabilities=[caption.log_probability for caption in written],
            num_tokens=sum(caption.num_tokens for caption in written),
            finished=[caption.finished for caption in written],
            version=version_name(encoded.versions | {"decoder": loaded.fingerprint}),
            seconds=encoded.seconds | {"decode": perf_counter() - began},
            attention=written[0].attention,
        )


def _writer_of(decoder: CaptionDecoder, reranker: Reranker | None, max_rows: int, executor: Executor) -> Writer:
    if isinstance(decoder, LstmCaptionDecoder):
        return LstmWriter(decoder, max_rows, executor)
    return BlipWriter(decoder, reranker, max_rows, executor)
