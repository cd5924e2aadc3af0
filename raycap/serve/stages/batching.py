"""Batches made of concurrent requests, computed in one thread while the next batch gathers.

A batch is closed when it is full, when its time is up, or, without a waiting time, as soon as the thread is free: an
idle stage answers a single request at once, a busy one fills its batches by itself. (Serve's own batching
always waits for a second request, works in replicas only, and mixes what must not be computed together.)
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from typing import Generic, NamedTuple, TypeVar

InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")


class Waiting(NamedTuple, Generic[InputT, OutputT]):
    """An item, and who waits for what comes of it."""

    group: Hashable
    item: InputT
    result: "asyncio.Future[OutputT]"


def take(waiting: deque[Waiting[InputT, OutputT]], most: int) -> list[Waiting[InputT, OutputT]]:
    """Take the first that waits and, in their order, those of its group; whoever gave up is left out."""
    live = [each for each in waiting if not each.result.done()]
    taken = [each for each in live if each.group == live[0].group][:most]
    left = set(map(id, taken))
    waiting.clear()
    waiting.extend(each for each in live if id(each) not in left)
    return taken


class Batcher(Generic[InputT, OutputT]):
    """One item's view of a function of many.

    Args:
        compute: from a group and its items to as many results; runs in the executor, one batch at a time.
        executor: of one thread, which may be shared: its turns then decide who computes.
        batch_size: most items in a batch.
        wait_seconds: how long a batch that is not full waits for more.
        observe: told of each batch's size as it begins.
    """

    def __init__(
        self,
        compute: Callable[[Hashable, Sequence[InputT]], Sequence[OutputT]],
        executor: Executor,
        batch_size: int,
        wait_seconds: float = 0.0,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self.compute, self.executor = compute, executor
        self.batch_size, self.wait_seconds, self.observe = batch_size, wait_seconds, observe
        self.waiting: deque[Waiting[InputT, OutputT]] = deque()
        self.num_computing = 0
        self.full = asyncio.Event()
        self.worker: asyncio.Task[None] | None = None

    @property
    def num_unfinished(self) -> int:
        """Items that wait or are being computed; any thread may ask."""
        return len(self.waiting) + self.num_computing

    async def __call__(self, item: InputT, group: Hashable = None) -> OutputT:
        """Compute an item together with others of its group; a cancelled caller's item is left out."""
        result: asyncio.Future[OutputT] = asyncio.get_running_loop().create_future()
        self.waiting.append(Waiting(group, item, result))
        if len(self.waiting) >= self.batch_size:
            self.full.set()
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self._work())
        return await result

    async def _work(self) -> None:
        while self.waiting:
            if self.wait_seconds and len(self.waiting) < self.batch_size:
                self.full.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.full.wait(), self.wait_seconds)
            batch = take(self.waiting, self.batch_size)
            if batch:
                await self._compute(batch)

    async def _compute(self, batch: list[Waiting[InputT, OutputT]]) -> None:
        if self.observe is not None:
            self.observe(len(batch))
        loop = asyncio.get_running_loop()
        self.num_computing = len(batch)
        try:
            items = [waiting.item for waiting in batch]
            outputs = await loop.run_in_executor(self.executor, self.compute, batch[0].group, items)
        except Exception as error:
            for waiting in batch:
                if not waiting.result.done():
                    waiting.result.set_exception(error)
            return
        finally:
            self.num_computing = 0
        for waiting, output in zip(batch, outputs, strict=True):
            if not waiting.result.done():
                waiting.result.set_result(output)
