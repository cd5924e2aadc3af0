"""What a process tells of its work: metrics, traces and log records, from one place in the code of each stage."""

import asyncio
import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple

from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from raycap.errors import UserError
from raycap.serve.errors import Overloaded, RequestError
from raycap.serve.stages.weights import in_replica
from raycap.serve.telemetry.logs import log_request
from raycap.serve.telemetry.metrics import REJECTED, REQUEST_SECONDS, REQUESTS, NoRecorder, RayRecorder, Recorder
from raycap.serve.telemetry.tracing import Tracer, Tracing, trace_of

# Told to the client; no fault of ours.
_ANSWERS = (Overloaded, RequestError, UserError)


class EndedRequest(NamedTuple):
    """What is told of a request in the end."""

    request_id: str
    method: str
    endpoint: str
    """The route's path, with names in the place of what clients may write."""

    status: int
    seconds: float
    model: str | None
    error: str | None
    """Type of the error that it was answered with."""


class Telemetry:
    """Of one process. As it is made without arguments it keeps logs only.

    Args:
        recorder: of metrics.
        tracer: of spans; None traces nothing.
    """

    def __init__(self, recorder: Recorder | None = None, tracer: Tracer | None = None) -> None:
        self.recorder: Recorder = recorder or NoRecorder()
        self.tracer = tracer

    @classmethod
    def of_replica(cls, tracing: Tracing | None) -> "Telemetry":
        """Of a deployment's replica; metrics go nowhere where the same object stands outside of Serve."""
        return cls(RayRecorder() if in_replica() else None, None if tracing is None else Tracer(tracing))

    @contextmanager
    def stage(self, name: str, request_id: str, trace: Mapping[str, str]) -> Generator[dict[str, Any], None, None]:
        """Around one stage's work on one image: a span, and a log record that names the request.

        Args:
            name: the stage's.
            trace: of the task.

        Returns:
            a dictionary for what turns out: strings and numbers, for the span and the record.
        """
        details: dict[str, Any] = {}
        span = self.tracer.start(name, trace) if self.tracer is not None and trace else None
        began = perf_counter()
        try:
            yield details
        except asyncio.CancelledError:
            details["cancelled"] = True
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            level = logging.WARNING if isinstance(error, _ANSWERS) else logging.ERROR
            # Without the traceback, which Serve logs once where the request ends.
            failed = {"stage": name}
            log_request(level, request_id, "%s failed: %s: %s", name, type(error).__name__, reason, details=failed)
            if span is not None:
                span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {reason}"))
            raise
        finally:
            if span is not None:
                span.set_attributes(details)
                span.end()
            seconds = perf_counter() - began
            details |= {"stage": name, "stage_seconds": round(seconds, 4)}
            log_request(logging.DEBUG, request_id, "%s %.1f ms", name, seconds * 1000, details=details)

    def start_request(self, method: str, headers: Mapping[str, str]) -> tuple[Span | None, dict[str, str]]:
        """Begin a request's span, below the client's own if it sent a ``traceparent``.

        Returns:
            the span, None without tracing; what the request's tasks carry of it.
        """
        if self.tracer is None:
            return None, {}
        span = self.tracer.start(method, headers, SpanKind.SERVER)
        return span, trace_of(span)

    def end_request(self, span: Span | None, ended: EndedRequest) -> None:
        """Record an answered request.

        Args:
            span: of :meth:`start_request`.
        """
        model = ended.model or "none"
        self.recorder.add(REQUESTS, endpoint=ended.endpoint, status=str(ended.status), model=model)
        self.recorder.add(REQUEST_SECONDS, ended.seconds, endpoint=ended.endpoint)
        if ended.error is not None:
            self.recorder.add(REJECTED, reason=ended.error)
        if span is None:
            return
        span.update_name(f"{ended.method} {ended.endpoint}")
        span.set_attributes(
            {
                "http.request.method": ended.method,
                "http.route": ended.endpoint,
                "http.response.status_code": ended.status,
                "raycap.request_id": ended.request_id,
                "raycap.model": model,
            }
        )
        if ended.status >= 500:
            span.set_status(Status(StatusCode.ERROR, ended.error))
        span.end()

    def close(self) -> None:
        """Send what is left; the process may end."""
        if self.tracer is not None:
            self.tracer.close()
