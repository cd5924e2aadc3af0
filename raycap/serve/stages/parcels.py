"""Concurrent requests' items on their way to another process: one message costs as much for many as for one."""

import asyncio
import contextvars
import functools
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic

from raycap.serve.stages.batching import InputT, OutputT, Waiting, take


class Parcels(Generic[InputT, OutputT]):
    """One item's view of a call with many.

    While few parcels of its group are away an item goes at once, with those that came in the same moment. What comes
    later would wait there: it waits here for company, until a parcel is full or another is back (as RFC 896 does with
    bytes).

    Args:
        send: from a group and its items to as many results, or the errors in their place. It is cancelled when nobody
            waits for any of them.
        size: of a group, most items in a parcel: as many as are computed together there, and as one message may hold.
        num_away: parcels of a group that need not be full: as many as are computed at once there.
    """

    def __init__(
        self,
        send: Callable[[Hashable, list[InputT]], Awaitable[Sequence[OutputT | Exception]]],
        size: Callable[[Hashable], int],
        num_away: int = 1,
    ) -> None:
        self.send, self.size, self.num_away = send, size, num_away
        self._waiting: defaultdict[Hashable, deque[Waiting[InputT, OutputT]]] = defaultdict(deque)
        self._away: defaultdict[Hashable, set[asyncio.Task[None]]] = defaultdict(set)
        self._will_pack = False

    async def __call__(self, item: InputT, group: Hashable = None) -> OutputT:
        """What comes of an item; it travels with others of its group only."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[OutputT] = loop.create_future()
        self._waiting[group].append(Waiting(group, item, result))
        if not self._will_pack:
            self._will_pack = True
            loop.call_soon(self._pack)
        return await result

    def _pack(self) -> None:
        self._will_pack = False
        for group in list(self._waiting):
            self._pack_group(group)

    def _pack_group(self, group: Hashable) -> None:
        waiting, away, size = self._waiting[group], self._away[group], self.size(group)
        while waiting and (len(away) < self.num_away or len(waiting) >= size):
            parcel = take(waiting, size)
            if parcel:
                # In a context of its own: Serve would cancel it with the request in whose context it began.
                sending = asyncio.get_running_loop().create_task(self._send(parcel), context=contextvars.Context())
                away.add(sending)
                sending.add_done_callback(functools.partial(self._unpack, group))
        if not waiting:
            del self._waiting[group]
        if not away:
            del self._away[group]

    def _unpack(self, group: Hashable, sending: asyncio.Task[None]) -> None:
        self._away[group].discard(sending)
        self._pack_group(group)

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
