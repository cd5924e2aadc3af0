"""An LSTM captioner's decoder, with which requests that ask for the same kind of search write in batches.

A whole caption takes it a few milliseconds: nobody gains from joining others half-way.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import torch

from raycap.errors import UserError
from raycap.models.caption_search import count_rows
from raycap.models.decoding import Decoding
from raycap.models.lstm_caption_decoder import LstmCaptionDecoder
from raycap.models.written_caption import WrittenCaption
from raycap.serve.stages.batching import Batcher
from raycap.serve.stages.pipeline import CaptionTask, Encoded


class _Search(NamedTuple):
    """What images must have in common to be captioned together."""

    decoding: Decoding
    num_captions: int
    explain: bool


class _Image(NamedTuple):
    image_embeds: torch.Tensor
    on_word: Callable[[str], None] | None


class LstmWriter:
    """A :class:`~raycap.serve.stages.writing.Writer`.

    Args:
        decoder: not used by anyone else meanwhile.
        max_rows: captions being written at once; each beam counts as one.
        executor: one thread that computes.
    """

    def __init__(self, decoder: LstmCaptionDecoder, max_rows: int, executor: Executor) -> None:
        self.decoder, self.max_rows = decoder, max_rows
        self._batcher: Batcher[_Image, list[WrittenCaption]] = Batcher(self._write, executor, max_rows)
        self._num_rows = 0

    async def write(
        self, encoded: Encoded, task: CaptionTask, on_text: Callable[[str], None] | None
    ) -> list[WrittenCaption]:
        # Here, and not in the batch: its mistake is not theirs.
        self.decoder.require_room(task.decoding)
        num_rows = count_rows(task.decoding, task.num_captions)
        if num_rows > self.max_rows:
            raise UserError(f"decoding: {num_rows} captions side by side; max_rows allows {self.max_rows}, raise it")
        on_word = None if on_text is None else _text_of(on_text, asyncio.get_running_loop())
        search = _Search(task.decoding, task.num_captions, task.explain)
        return await self._batcher(_Image(encoded.image_embeds, on_word), search)

    @property
    def num_rows(self) -> int:
        return self._num_rows

    @property
    def num_waiting(self) -> int:
        return len(self._batcher.waiting)

    @property
    def num_unfinished(self) -> int:
        return self._batcher.num_unfinished

    def _write(self, search: Any, images: Sequence[_Image]) -> list[list[WrittenCaption]]:
        rows_each = count_rows(search.decoding, search.num_captions)
        at_once = self.max_rows // rows_each
        written = []
        try:
            for start in range(0, len(images), at_once):
                part = images[start : start + at_once]
                self._num_rows = rows_each * len(part)
                written += self._write_part(search, part)
        finally:
            self._num_rows = 0
        return written

    def _write_part(self, search: _Search, images: Sequence[_Image]) -> list[list[WrittenCaption]]:
        def tell(index: int, word: str) -> None:
            if (on_word := images[index].on_word) is not None:
                on_word(word)

        image_embeds = torch.stack([image.image_embeds for image in images]).to(self.decoder.lstm.embedding.weight)
        on_word = tell if any(image.on_word is not None for image in images) else None
        return self.decoder.write(image_embeds, *search, on_word)


def _text_of(on_text: Callable[[str], None], loop: asyncio.AbstractEventLoop) -> Callable[[str], None]:
    """From words, in the thread that decodes, to text in the event loop."""
    space = ""

    def on_word(word: str) -> None:
        nonlocal space
        loop.call_soon_threadsafe(on_text, f"{space}{word}")
        space = " "

    return on_word
