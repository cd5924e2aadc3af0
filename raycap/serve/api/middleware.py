"""Around every request: its id, its headers, its log line, and the last resort when we fail."""

import logging
import time
from typing import Any

from ray.exceptions import TaskCancelledError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raycap.serve.api.errors import answer_error
from raycap.serve.api.record import RequestRecord
from raycap.serve.errors import Overloaded, RequestError
from raycap.serve.guard.limits import Limits
from raycap.serve.telemetry.logs import log_request
from raycap.serve.telemetry.telemetry import EndedRequest, Telemetry

# What a proxy logs for a client that left; nobody reads it.
_CLIENT_GONE = 499


class RecordRequests:
    """ASGI middleware.

    Args:
        limits: of its headers, and how long it may take.
        telemetry: told of each.
        echoes_id: False where a proxy sends back the X-Request-ID that came in, as Serve's does: a header given
            twice is read as one with both values.
    """

    def __init__(self, app: ASGIApp, limits: Limits, telemetry: Telemetry, echoes_id: bool = True) -> None:
        self.app, self.limits, self.telemetry, self.echoes_id = app, limits, telemetry, echoes_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope)
        given_id = given.get("x-request-id")
        record = RequestRecord.start(given_id, self.limits.request_seconds)
        sends_id = self.echoes_id or record.request_id != given_id
        span, record.trace = self.telemetry.start_request(scope["method"], given)
        scope.setdefault("state", {})["record"] = record
        started_at, status = time.perf_counter(), None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in record.headers(sends_id).items():
                    headers[name] = value
            await send(message)

        async def receive_or_leave() -> Message:
            try:
                return await receive()
            except TaskCancelledError:
                # Serve asks its proxy for what the client sends, and cancels that when the client has left.
                return {"type": "http.disconnect"}

        try:
            self._require_fit(scope)
            await self.app(scope, receive_or_leave, send_with_headers)
        except (RequestError, Overloaded) as refusal:
            await answer_error(refusal, record)(scope, receive, send_with_headers)
        except Exception as error:
            line = (scope["method"], scope["path"])
            log_request(logging.ERROR, record.request_id, "%s %s failed", *line, error=error)
            if status is not None:
                raise
            await answer_error(error, record)(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            ended = EndedRequest(
                record.request_id,
                scope["method"],
                route,
                status or _CLIENT_GONE,
                time.perf_counter() - started_at,
                record.model,
                record.error,
            )
            self.telemetry.end_request(span, ended)
            _log(ended, record)

    def _require_fit(self, scope: Scope) -> None:
        lines = sum(len(name) + len(value) for name, value in scope["headers"])
        num_bytes = lines + len(scope["path"]) + len(scope.get("query_string", b""))
        if num_bytes > self.limits.max_header_bytes:
            message = f"headers: {num_bytes} bytes with path and query; send at most {self.limits.max_header_bytes}"
            raise RequestError(431, "headers_too_large", message)


def _log(ended: EndedRequest, record: RequestRecord) -> None:
    details: dict[str, Any] = {
        "key": record.key,
        "endpoint": ended.endpoint,
        "status": ended.status,
        "error": ended.error,
        "model": record.model,
        "version": record.version,
        "num_images": record.num_images,
        "seconds": {stage: round(seconds, 4) for stage, seconds in record.seconds.items()},
        "total_seconds": round(ended.seconds, 4),
        "cache": record.cache,
    }
    line = (ended.method, ended.endpoint, ended.status, ended.seconds * 1000)
    log_request(logging.INFO, record.request_id, "%s %s %d %.1f ms", *line, details=details)
