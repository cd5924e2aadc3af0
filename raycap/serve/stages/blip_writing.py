"""A BLIP's decoder, with which requests write side by side, joining and leaving between any two tokens."""

from collections.abc import Callable
from concurrent.futures import Executor

from raycap.models.blip import BlipCaptionDecoder
from raycap.models.caption_attention import word_attention
from raycap.models.caption_search import Caption, best_first
from raycap.models.written_caption import Attention, WrittenCaption
from raycap.reranker import Candidate, Reranker
from raycap.serve.stages.decoding import DecodingLoop
from raycap.serve.stages.pipeline import CaptionTask, Encoded


class BlipWriter:
    """A :class:`~raycap.serve.stages.writing.Writer`.

    Args:
        decoder: not used by anyone else meanwhile.
        reranker: None for the search's own best.
        max_rows: captions being written at once; each beam counts as one.
        executor: one thread that computes.
    """

    def __init__(
        self, decoder: BlipCaptionDecoder, reranker: Reranker | None, max_rows: int, executor: Executor
    ) -> None:
        self.loop, self.reranker = DecodingLoop(decoder, max_rows, executor), reranker

    async def write(
        self, encoded: Encoded, task: CaptionTask, on_text: Callable[[str], None] | None
    ) -> list[WrittenCaption]:
        decoder, prompt = self.loop.decoder, task.decoding.prompt
        if self.reranker is None:
            captions = await self._search(encoded, task, on_text)
        else:
            captions = await self._rerank(self.reranker, encoded, task)
        best, *others = decoder.read(captions, prompt)
        if task.explain:

            def explain() -> Attention:
                num_given = len(decoder.prompt_ids(prompt))
                return word_attention(decoder, encoded.image_embeds, captions[0].token_ids, num_given)

            best = best._replace(attention=await self.loop.between_steps(explain))
        return [best, *others]

    @property
    def num_rows(self) -> int:
        return self.loop.num_rows

    @property
    def num_waiting(self) -> int:
        return self.loop.num_waiting

    @property
    def num_unfinished(self) -> int:
        return self.loop.num_unfinished

    async def _search(
        self, encoded: Encoded, task: CaptionTask, on_text: Callable[[str], None] | None
    ) -> list[Caption]:
        on_token = None if on_text is None else _words_of(self.loop.decoder, task.decoding.prompt, on_text)
        captions = await self.loop.decode(encoded.image_embeds, task.decoding, task.num_captions, on_token)
        return best_first(captions, task.decoding)

    async def _rerank(self, reranker: Reranker, encoded: Encoded, task: CaptionTask) -> list[Caption]:
        decoder = self.loop.decoder
        proposed = await self.loop.decode(encoded.image_embeds, task.decoding, reranker.settings.num_candidates)
        features = None if encoded.image_features is None else encoded.image_features[None]

        def judge() -> list[Candidate]:
            token_ids = decoder.pad([caption.token_ids for caption in proposed])[None]
            image_embeds = encoded.image_embeds[None].to(token_ids.device, decoder.text_decoder.dtype)
            return reranker.judge(decoder, image_embeds, token_ids, task.decoding, features)[0]

        candidates = sorted(await self.loop.between_steps(judge), key=reranker.score, reverse=True)
        return [Caption(chosen.token_ids, chosen.log_probability) for chosen in candidates[: task.num_captions]]


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
