"""One token after another for all requests that are there."""

import asyncio
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

import torch

from raycap.errors import UserError
from raycap.models.blip import BlipCaptionDecoder
from raycap.models.caption_search import Caption, count_rows
from raycap.models.continuous_decoding import ContinuousDecoder, DecodingRequest
from raycap.models.decoding import Decoding

ResultT = TypeVar("ResultT")

# Of the time that others had. With all of it, loops that wait for one another would keep the longest turn of any.
_SHARE = 0.9


@dataclass
class _Request:
    request_id: int
    image_embeds: torch.Tensor
    decoding: Decoding
    num_captions: int
    num_rows: int
    on_token: Callable[[int], None] | None
    result: "Future[list[Caption]]" = field(default_factory=Future)


class DecodingLoop:
    """Asynchronous view of a :class:`~raycap.models.continuous_decoding.ContinuousDecoder`.

    Requests that find no free rows wait in the order they came. One that is cancelled leaves before the next token.

    Args:
        decoder: not used by anyone else meanwhile.
        max_rows: captions being written at once; each beam counts as one.
        executor: one thread that computes. If others ask things of it, tokens get about as much of its time as they.
    """

    def __init__(self, decoder: BlipCaptionDecoder, max_rows: int, executor: Executor) -> None:
        self.decoder, self.max_rows, self._executor = decoder, max_rows, executor
        self._continuous = ContinuousDecoder(decoder, max_rows)
        # What others ask for: only the executor's thread touches what follows.
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: deque[_Request] = deque()
        self._active: dict[Hashable, _Request] = {}
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._is_at_work = False

    async def decode(
        self,
        image_embeds: torch.Tensor,
        decoding: Decoding,
        num_captions: int = 1,
        on_token: Callable[[int], None] | None = None,
    ) -> list[Caption]:
        """Captions of an image, the best first.

        Args:
            image_embeds: (N, D) of any float type, on any device.
            decoding: with at most ``max_rows`` rows.
            on_token: called in the event loop with each token of a search of one row, as it is found.

        Raises:
            UserError: prompt and longest caption do not fit the decoder's positions, or there are never so many rows.
        """
        # Here, and not where it joins others: its mistake is not theirs.
        self.decoder.require_room(decoding)
        num_rows = count_rows(decoding, num_captions)
        if num_rows > self.max_rows:
            raise UserError(f"decoding: {num_rows} captions side by side; max_rows allows {self.max_rows}, raise it")
        loop = asyncio.get_running_loop()

        def tell(token_id: int) -> None:
            if on_token is not None:
                loop.call_soon_threadsafe(on_token, token_id)

        told = None if on_token is None else tell
        request = _Request(next(self._ids), image_embeds, decoding, num_captions, num_rows, told)
        self._ask(lambda: self._waiting.append(request))
        try:
            return await asyncio.wrap_future(request.result)
        except asyncio.CancelledError:
            self._ask(lambda: self._forget(request))
            raise

    @property
    def num_rows(self) -> int:
        """Rows that the next step computes; any thread may ask."""
        return sum(request.num_rows for request in tuple(self._active.values()))

    @property
    def num_waiting(self) -> int:
        """Requests that find no free rows; any thread may ask."""
        return len(self._waiting)

    async def between_steps(self, function: Callable[[], ResultT]) -> ResultT:
        """Run something else that uses the decoder."""
        result: Future[ResultT] = Future()

        def run() -> None:
            if result.set_running_or_notify_cancel():
                try:
                    result.set_result(function())
                except Exception as error:
                    result.set_exception(error)

        self._ask(run)
        return await asyncio.wrap_future(result)

    @property
    def num_unfinished(self) -> int:
        """Requests that are being written or wait; any thread may ask."""
        return len(self._active) + len(self._waiting)

    def _ask(self, function: Callable[[], None]) -> None:
        self._inbox.put(function)
        with self._lock:
            if self._is_at_work:
                return
            self._is_at_work = True
        self._executor.submit(self._turn, perf_counter())

    def _turn(self, asked: float) -> None:
        """Tokens for about as long as others had the thread since it was asked for, at least one."""
        began = token_began = perf_counter()
        until = began + _SHARE * (began - asked)
        while self._goes_on():
            now = perf_counter()
            # One more, as long as the last, would take too long.
            if 2 * now - token_began > until:
                self._executor.submit(self._turn, now)
                return
            token_began = now

    def _goes_on(self) -> bool:
        """A token for each; whether there is more to do."""
        try:
            while not self._inbox.empty():
                self._inbox.get()()
            self._admit()
            if self._active:
                self._step()
        except Exception as error:
            # Out of memory, say: those that were there are told, those to come start afresh.
            lost, self._active = list(self._active.values()), {}
            self._continuous = ContinuousDecoder(self.decoder, self.max_rows)
            for request in lost:
                _fail(request, error)
        with self._lock:
            self._is_at_work = bool(self._active or self._waiting) or not self._inbox.empty()
            return self._is_at_work

    def _admit(self) -> None:
        joining: list[_Request] = []
        free = self._continuous.num_free_rows
        while self._waiting and self._waiting[0].num_rows <= free:
            request = self._waiting.popleft()
            free -= request.num_rows
            joining.append(request)
        if not joining:
            return
        self._active |= {request.request_id: request for request in joining}
        weights = self.decoder.text_decoder
        self._continuous.add_all(
            [
                DecodingRequest(
                    request.request_id,
                    # To the device in this thread: a copy waits for what the device computes.
                    request.image_embeds.to(weights.device, weights.dtype),
                    request.decoding,
                    request.num_captions,
                )
                for request in joining
            ]
        )

    def _step(self) -> None:
        for of_request in self._continuous.step():
            request = self._active[of_request.request_id]
            if request.on_token is not None:
                for token_id in of_request.new_token_ids:
                    request.on_token(token_id)
            if of_request.captions is not None:
                del self._active[of_request.request_id]
                if request.result.set_running_or_notify_cancel():
                    request.result.set_result(of_request.captions)

    def _forget(self, request: _Request) -> None:
        if request in self._waiting:
            self._waiting.remove(request)
        elif self._active.pop(request.request_id, None) is not None:
            self._continuous.cancel(request.request_id)


def _fail(request: _Request, error: Exception) -> None:
    if request.result.set_running_or_notify_cancel():
        request.result.set_exception(error)
