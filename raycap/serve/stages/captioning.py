"""The last stage: asks for an image's embeddings and writes captions of them."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import NamedTuple

import torch

from raycap.checkpoint import encoder_fingerprint, load_blip, pair_id
from raycap.models.blip import BlipCaptionDecoder
from raycap.models.caption_attention import word_attention
from raycap.models.decoding import Decoding
from raycap.predictor import DecoderStage, Refinement
from raycap.rerank import Candidate, Reranker
from raycap.serve.config import DecoderOptions
from raycap.serve.stages.decoding import DecodingLoop
from raycap.serve.stages.pipeline import Captioned, CaptionTask, EmbeddingSource, Encoded, ImageTask, version_name
from raycap.serve.stages.weights import Weights, resident
from raycap.serve.telemetry.metrics import DECODER_ROWS, QUEUE_LENGTH, STAGE_SECONDS, TOKENS
from raycap.serve.telemetry.telemetry import Telemetry


@dataclass(frozen=True)
class _Decoding:
    loop: DecodingLoop
    reranker: Reranker | None
    encoder_fingerprint: str
    fingerprint: str


class Decoder:
    """A :class:`~raycap.serve.stages.pipeline.Captioner`.

    Args:
        source: of the embeddings.
        options: how many captions at once.
        telemetry: told of each request.
    """

    def __init__(
        self,
        source: EmbeddingSource,
        options: DecoderOptions,
        telemetry: Telemetry = Telemetry(),  # noqa: B008 - keeps nothing
    ) -> None:
        self.source, self.options, self.telemetry = source, options, telemetry
        self.models = resident(self._load, options.max_models)
        self._loops: tuple[weakref.ref[DecodingLoop], ...] = ()
        telemetry.recorder.watch(QUEUE_LENGTH, lambda: sum(loop.num_waiting for loop in self.loops), stage="decode")
        telemetry.recorder.watch(DECODER_ROWS, lambda: sum(loop.num_rows for loop in self.loops))

    @property
    def loops(self) -> list[DecodingLoop]:
        """Of the models that are loaded or still in use; any thread may ask."""
        return [loop for known in self._loops if (loop := known()) is not None]

    async def caption(self, task: CaptionTask) -> Captioned:
        return await self._caption(task, None)

    async def stream(self, task: CaptionTask) -> AsyncIterator[str | Captioned]:
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

    async def embed(self, task: ImageTask) -> tuple[Encoded, Encoded]:
        before = await self.source(replace(task, refinement=Refinement(gate=0)))
        if Weights.from_key(task.weights).rbm is None or task.refinement.gate == 0:
            return before, before
        return before, await self.source(task)

    async def prepare(self, weights: str) -> None:
        await asyncio.gather(self.source.prepare(weights), self.models(weights))

    @property
    def num_unfinished(self) -> int:
        """Requests that the models decode, or that wait for that."""
        return sum(loop.num_unfinished for loop in self.loops)

    def _load(self, weights: Weights) -> _Decoding:
        encoder, decoder = load_blip(weights.model)
        # Before the stage casts the weights: fingerprints, and the RBM that re-ranks, know them as they were.
        pair = pair_id(weights.model, encoder, decoder)
        of_encoder = encoder_fingerprint(encoder)
        reranker = None if weights.rerank is None else Reranker(weights.rerank, pair)
        stage = DecoderStage(decoder, weights.precision)
        stage(torch.zeros(1, encoder.num_tokens, encoder.embed_dim), Decoding(max_new_tokens=2))
        loaded = _Decoding(DecodingLoop(decoder, self.options.max_rows), reranker, of_encoder, pair.fingerprint)
        # A model that makes room ends when the last request that uses it does.
        weakref.finalize(loaded, loaded.loop.close)
        # Replaced, not changed: others may be reading.
        self._loops = (*(known for known in self._loops if known() is not None), weakref.ref(loaded.loop))
        return loaded

    async def _caption(self, task: CaptionTask, on_text: Callable[[str], None] | None) -> Captioned:
        encoded, loaded = await asyncio.gather(self.source(task), self.models(task.weights))
        if encoded.versions["encoder"] != loaded.encoder_fingerprint:
            raise RuntimeError(
                f"model = {Weights.from_key(task.weights).model}: its files changed while it was served; "
                "give the new ones a path or a version of their own"
            )
        with self.telemetry.stage("decode", task.request_id, task.trace) as details:
            captioned = await self._decode(task, encoded, loaded, on_text)
            details |= {"tokens": captioned.num_tokens, "model_version": captioned.version}
        self.telemetry.recorder.add(TOKENS, captioned.num_tokens)
        self.telemetry.recorder.add(STAGE_SECONDS, captioned.seconds["decode"], stage="decode")
        return captioned

    async def _decode(
        self, task: CaptionTask, encoded: Encoded, loaded: _Decoding, on_text: Callable[[str], None] | None
    ) -> Captioned:
        began = perf_counter()
        decoder = loaded.loop.decoder
        if loaded.reranker is None:
            written = await self._search(loaded.loop, encoded, task, on_text)
        else:
            written = await self._rerank(loaded.loop, loaded.reranker, encoded, task)
        num_given = len(decoder.prompt_ids(task.decoding.prompt))
        attention = None
        if task.explain:
            best_ids, embeds = written[0].token_ids, encoded.image_embeds
            attention = await loaded.loop.between_steps(lambda: word_attention(decoder, embeds, best_ids, num_given))
        return Captioned(
            captions=[caption.text for caption in written],
            log_probabilities=[caption.log_probability for caption in written],
            num_tokens=sum(len(caption.token_ids) - num_given for caption in written),
            finished=[caption.token_ids[-1] == decoder.eos_id for caption in written],
            version=version_name(encoded.versions | {"decoder": loaded.fingerprint}),
            seconds=encoded.seconds | {"decode": perf_counter() - began},
            attention=attention,
        )

    async def _search(
        self, loop: DecodingLoop, encoded: Encoded, task: CaptionTask, on_text: Callable[[str], None] | None
    ) -> list["_Written"]:
        on_token = None if on_text is None else _words_of(loop.decoder, task.decoding.prompt, on_text)
        captions = await loop.decode(encoded.image_embeds, task.decoding, task.num_captions, on_token)
        if task.decoding.do_sample:  # beams come the best first, by their own measure
            captions.sort(key=lambda caption: caption.log_probability, reverse=True)
        texts = loop.decoder.texts([caption.token_ids for caption in captions])
        return [
            _Written(text, caption.log_probability, caption.token_ids)
            for text, caption in zip(texts, captions, strict=True)
        ]

    async def _rerank(
        self, loop: DecodingLoop, reranker: Reranker, encoded: Encoded, task: CaptionTask
    ) -> list["_Written"]:
        proposed = await loop.decode(encoded.image_embeds, task.decoding, reranker.settings.num_candidates)
        features = None if encoded.image_features is None else encoded.image_features[None]

        def judge() -> list[Candidate]:
            token_ids = loop.decoder.pad([caption.token_ids for caption in proposed])[None]
            image_embeds = encoded.image_embeds[None].to(token_ids.device, loop.decoder.text_decoder.dtype)
            return reranker.judge(loop.decoder, image_embeds, token_ids, task.decoding, features)[0]

        candidates = sorted(await loop.between_steps(judge), key=reranker.score, reverse=True)
        return [
            _Written(candidate.caption, candidate.log_probability, candidate.token_ids)
            for candidate in candidates[: task.num_captions]
        ]


class _Written(NamedTuple):
    text: str
    log_probability: float
    token_ids: list[int]


def _words_of(decoder: BlipCaptionDecoder, prompt: str, on_text: Callable[[str], None]) -> Callable[[int], None]:
    """From tokens to text, given out word by word: a later token may change the last one, never those before it."""
    token_ids = decoder.prompt_ids(prompt)
    sent = ""

    def on_token(token_id: int) -> None:
        nonlocal sent
        token_ids.append(token_id)
        (text,) = decoder.texts([token_ids])
        whole_words = text[: text.rfind(" ")] if " " in text else ""
        if len(whole_words) > len(sent) and whole_words.startswith(sent):
            on_text(whole_words.removeprefix(sent))
            sent = whole_words

    return on_token
