"""Concurrent requests' items on their way to another process: one message costs as much for many as for one."""

import asyncio
import contextvars
import logging
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Hashable, Sequence
from typing import Any, Generic

from raycap.errors import UserError
from raycap.serve.errors import Overloaded
from raycap.serve.stages.batching import InputT, OutputT, Waiting, take

logger = logging.getLogger("ray.serve")


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
                sending = in_background(self._send(parcel), away)
                sending.add_done_callback(lambda _: self._pack_group(group))
        if not waiting:
            del self._waiting[group]
        if not away:
            del self._away[group]

    async def _send(self, parcel: list[Waiting[InputT, OutputT]]) -> None:
        _cancelled_with(parcel)
        try:
            outcomes: Sequence[OutputT | Exception] = await self.send(parcel[0].group, [each.item for each in parcel])
        except Exception as error:
            outcomes = [error] * len(parcel)
        for each, outcome in zip(parcel, outcomes, strict=True):
            settle(each, outcome)


class StreamedParcels(Generic[InputT, OutputT]):
    """One item's view of a call with many, of which each has its answer as soon as there is one.

    Args:
        send: sees to it that each of a group's items has its result. It is cancelled when nobody waits for any of them
            any more.
        most_seconds: that an item waits for company.
    """

    def __init__(self, send: Callable[[list[Waiting[InputT, OutputT]]], Awaitable[None]], most_seconds: float) -> None:
        self.send, self.most_seconds = send, most_seconds
        self._waiting: defaultdict[Hashable, deque[Waiting[InputT, OutputT]]] = defaultdict(deque)
        self._timers: dict[Hashable, asyncio.TimerHandle] = {}
        self._away: set[asyncio.Task[None]] = set()

    async def __call__(self, item: InputT, group: Hashable, size: int) -> OutputT:
        """What comes of an item; it travels with others of its group only, as soon as there are so many."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[OutputT] = loop.create_future()
        waiting = self._waiting[group]
        waiting.append(Waiting(group, item, result))
        if len(waiting) >= size:
            self._pack(group)
        elif len(waiting) == 1:
            self._timers[group] = loop.call_later(self.most_seconds, self._pack, group)
        return await result

    def _pack(self, group: Hashable) -> None:
        if (timer := self._timers.pop(group, None)) is not None:
            timer.cancel()
        waiting = self._waiting.pop(group)
        parcel = take(waiting, len(waiting))
        if parcel:
            in_background(self._send(parcel), self._away)

    async def _send(self, parcel: list[Waiting[InputT, OutputT]]) -> None:
        _cancelled_with(parcel)
        lost: Exception = RuntimeError("a parcel came back without an answer to each")
        try:
            await self.send(parcel)
        except Exception as error:
            lost = error
        for each in parcel:
            settle(each, lost)


class Unpacked(Generic[InputT, OutputT]):
    """The other end of :class:`StreamedParcels`: each item of a parcel on its own.

    Args:
        compute: of one item.
    """

    def __init__(self, compute: Callable[[InputT], Coroutine[Any, Any, OutputT]]) -> None:
        self.compute = compute
        self._computing: dict[tuple[str, int], asyncio.Task[OutputT]] = {}

    async def answers(
        self, parcel_id: str, items: Sequence[InputT]
    ) -> AsyncGenerator[list[tuple[int, OutputT | Exception]], None]:
        """First nothing, which says that they are here; then of each item, by its index, what came of it, or the error
        in its place: those of a moment together."""
        index_of = {asyncio.create_task(self.compute(item)): index for index, item in enumerate(items)}
        self._computing |= {(parcel_id, index): computing for computing, index in index_of.items()}
        left = set(index_of)
        try:
            yield []
            while left:
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                answers = [(index_of[each], _outcome(each)) for each in done if not each.cancelled()]
                if answers:
                    yield answers
        finally:
            for computing, index in index_of.items():
                computing.cancel()
                self._computing.pop((parcel_id, index), None)

    def give_up(self, parcel_id: str, index: int) -> None:
        """Nobody waits for this item any more; if it is here, it is cancelled."""
        computing = self._computing.get((parcel_id, index))
        if computing is not None:
            computing.cancel()


def in_background(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> asyncio.Task[None]:
    """A task that is among the tasks while it lasts, in a context of its own: Serve would cancel it with the request in
    whose context it began."""
    task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


def settle(waiting: Waiting[InputT, OutputT], outcome: OutputT | Exception) -> None:
    """Tell whoever waits, if nobody did and he did not give up."""
    if waiting.result.done():
        return
    if isinstance(outcome, Exception):
        waiting.result.set_exception(outcome)
    else:
        waiting.result.set_result(outcome)


def _cancelled_with(parcel: list[Waiting[InputT, OutputT]]) -> None:
    """Cancel the task that calls this when the last of those who wait has given up."""
    sending = asyncio.current_task()

    def give_up(result: asyncio.Future[OutputT]) -> None:
        if result.cancelled() and sending is not None and all(each.result.done() for each in parcel):
            sending.cancel()

    for each in parcel:
        each.result.add_done_callback(give_up)


def _outcome(computing: "asyncio.Task[OutputT]") -> OutputT | Exception:
    error = computing.exception()
    if error is None:
        return computing.result()
    if isinstance(error, Overloaded | UserError):
        return error
    # Whose class the other end may not have, or whose state may not travel.
    logger.error("an item of a parcel failed", exc_info=error)
    return RuntimeError(f"{type(error).__name__}: {error}")
