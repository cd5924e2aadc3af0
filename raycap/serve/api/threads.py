"""Work of requests that takes long, beside the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from raycap.hardware import num_cores

ResultT = TypeVar("ResultT")

# A thread whose image takes too long cannot be stopped, and must not stop the others.
_SPARE_THREADS = 2
# Every replica has its own, wherever it runs and however little it reserves: they must not crowd out the
# models beside it, and each holds up to a few hundred megabytes of pixels.
_MAX_THREADS = 8


class Threads:
    """So many threads, and no more work at once: what asyncio's own would take, others' short work would wait for."""

    def __init__(self) -> None:
        num_threads = min(num_cores() + _SPARE_THREADS, _MAX_THREADS)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="raycap-images")
        self._free = asyncio.Semaphore(num_threads)

    async def run(self, work: Callable[[], ResultT], seconds: float | None = None) -> ResultT:
        """The work's result.

        Args:
            seconds: it may take from when it has a thread; waiting for one is no fault of its own.

        Raises:
            TimeoutError: it took longer; the thread ends it nevertheless.
        """
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        working = self._pool.submit(work)

        def release(_: Future[ResultT]) -> None:
            # Only now, also after a timeout: until then the thread is taken.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._free.release)

        working.add_done_callback(release)
        return await asyncio.wait_for(asyncio.wrap_future(working), seconds)
