"""Concurrent requests' items on their way to another process: one message costs as much for many as for one."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic

from raycap.serve.stages.batching import InputT, OutputT, Waiting, take


class Parcels(Generic[InputT, OutputT]):
    """One item's view of a call with many.

    While few parcels are away an item goes at once, with those that came in the same moment. What comes later would
    wait there: it waits here for company, until a parcel is full or another is back (as RFC 896 does with bytes).

    Args:
        send: from a group and its items to as many results, or the errors in their place. It is cancelled when nobody
            waits for any of them.
        size: most items in a parcel: as many as are computed together there.
        num_away: parcels that need not be full: as many as are computed at once there.
    """

    def __init__(
        self,
        send: Callable[[Hashable, list[InputT]], Awaitable[Sequence[OutputT | Exception]]],
        size: int,
        num_away: int = 1,
    ) -> None:
        self.send, self.size, self.num_away = send, size, num_away
        self._waiting: deque[Waiting[InputT, OutputT]] = deque()
        self._sending: set[asyncio.Task[None]] = set()
        self._will_pack = False

    async def __call__(self, item: InputT, group: Hashable = None) -> OutputT:
        """What comes of an item; it travels with others of its group only."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[OutputT] = loop.create_future()
        self._waiting.append(Waiting(group, item, result))
        if not self._will_pack:
            self._will_pack = True
            loop.call_soon(self._pack)
        return await result

    def _pack(self) -> None:
        self._will_pack = False
        while self._waiting and (len(self._sending) < self.num_away or len(self._waiting) >= self.size):
            parcel = take(self._waiting, self.size)
            if parcel:
                # In a context of its own: Serve would cancel it with the request in whose context it began.
                sending = asyncio.get_running_loop().create_task(self._send(parcel), context=contextvars.Context())
                self._sending.add(sending)
                sending.add_done_callback(self._unpack)

    def _unpack(self, sending: asyncio.Task[None]) -> None:
        self._sending.discard(sending)
        self._pack()

    async def _send(self, parcel: list[Waiting[InputT, OutputT]]) -> None:
        sending = asyncio.current_task()

        def give_up(result: asyncio.Future[OutputT]) -> None:
            if result.cancelled() and sending is not None and all(each.result.cancelled() for each in parcel):
                sending.cancel()

        for each in parcel:
            each.result.add_done_callback(give_up)
        try:
            outcomes: Sequence[OutputT | Exception] = await self.send(parcel[0].group, [each.item for each in parcel])
        except Exception as error:
            outcomes = [error] * len(parcel)
        for each, outcome in zip(parcel, outcomes, strict=True):
            if each.result.done():
                continue
            if isinstance(outcome, Exception):
                each.result.set_exception(outcome)
            else:
                each.result.set_result(outcome)
