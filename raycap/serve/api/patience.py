"""How long work goes on: until its time is up or its client has left."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request

from raycap.serve.api.record import record_of
from raycap.serve.errors import RequestError

ResultT = TypeVar("ResultT")


@asynccontextmanager
async def within_deadline(request: Request) -> AsyncGenerator[None, None]:
    """Cancels what is inside when the request's time is up.

    Raises:
        RequestError: 504, it is.
    """
    try:
        async with asyncio.timeout_at(record_of(request).deadline) as timeout:
            yield
    except TimeoutError:
        # A timeout of something inside is another matter.
        if not timeout.expired():
            raise
        message = "the request took too long and was cancelled; send fewer or smaller images, or try again later"
        raise RequestError(504, "timeout", message) from None


async def unless_gone(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The work's result; the work is cancelled as soon as the client leaves. The body must have been read.

    Raises:
        RequestError: 499, the client has left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RequestError(499, "client_gone", "the client left before the answer; nothing to do")
        return working.result()
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            # Until the work has seen it: only then have the stages been told.
            await asyncio.wait((working,))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
