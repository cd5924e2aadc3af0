"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Send

from raycap.serve.api.errors import as_request_error, error_body
from raycap.serve.api.patience import unless_gone, within_deadline
from raycap.serve.api.record import record_of

logger = logging.getLogger("ray.serve")

# Nothing between us and the client may hold pieces back.
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

_DONE = "data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Answers with events; however the answer ends, their source is closed with it."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__(events, headers=_HEADERS)
        self.events = events

    async def stream_response(self, send: Send) -> None:
        """Send all of them."""
        try:
            await super().stream_response(send)
        finally:
            await self.events.aclose()


async def stream_events(request: Request, messages: AsyncGenerator[BaseModel | dict[str, Any], None]) -> EventStream:
    """An answer of one event a message, then ``[DONE]``. The first message is awaited here, so that what fails before
    it has its own status; what fails later is an event ``error``, the last one."""
    try:
        async with within_deadline(request):
            first = await unless_gone(request, anext(messages))
    except BaseException:
        await messages.aclose()
        raise
    return EventStream(_events(request, first, messages))


async def _events(
    request: Request, first: BaseModel | dict[str, Any], messages: AsyncGenerator[BaseModel | dict[str, Any], None]
) -> AsyncGenerator[str, None]:
    try:
        yield _event(first)
        while True:
            # Around each piece, not around all: a generator must not be suspended inside a timeout.
            async with within_deadline(request):
                message = await anext(messages, None)
            if message is None:
                break
            yield _event(message)
        yield _DONE
    except Exception as error:
        record = record_of(request)
        told = as_request_error(error)
        record.error = told.kind
        if told.status == 500:
            logger.error("%s %s failed after its start", request.method, request.url.path, exc_info=error)
        yield f"event: error\n{_event(error_body(error, record.request_id))}"
    finally:
        await messages.aclose()


def _event(message: BaseModel | dict[str, Any]) -> str:
    # ASCII JSON has no line break that would end the event.
    text = message.model_dump_json() if isinstance(message, BaseModel) else json.dumps(message)
    return f"data: {text}\n\n"
