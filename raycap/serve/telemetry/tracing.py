"""Traces of requests through all stages, by OpenTelemetry: one span for the request, below it one for each stage.

Every stage's parent is the request itself, which the task names, wherever the stage runs: a stage that is asked again
because a replica died, or through another, finds its place all the same. A request that is not sampled names no
parent, and costs the stages nothing.
"""

import importlib.util
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import Field

from raycap.config import Config
from raycap.errors import UserError

_W3C = TraceContextTextMapPropagator()
_EXPORTER = "opentelemetry.exporter.otlp.proto.http"
# A collector that does not answer must hold up neither the exporter nor the end of a replica.
_EXPORT_SECONDS = 3.0


class Tracing(Config):
    """Where traces go, and how many."""

    endpoint: str = Field(default="http://localhost:4318/v1/traces", pattern="^https?://")
    """Of a collector that takes OTLP over HTTP."""

    sample_ratio: float = Field(default=0.01, ge=0, le=1)
    """Share of the requests that are traced, of those without a ``traceparent``: a client that sends one decides."""

    service_name: str = Field(default="raycap", min_length=1)

    def require_exporter(self) -> None:
        """Raises:
        UserError: the package that sends traces is not installed.
        """
        try:
            found = importlib.util.find_spec(f"{_EXPORTER}.trace_exporter") is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            raise UserError("tracing: no exporter is installed; run `pip install 'raycap[tracing]'`, or leave it out")


class Tracer:
    """A process's spans, sent in the background.

    Args:
        tracing: where to.
    """

    def __init__(self, tracing: Tracing) -> None:
        tracing.require_exporter()
        # Only who traces needs the package.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        sampler = ParentBased(TraceIdRatioBased(tracing.sample_ratio))
        resource = Resource.create({"service.name": tracing.service_name})
        # Not the process's own provider: that one is Ray's to set.
        self._provider: TracerProvider | None = TracerProvider(sampler, resource)
        exporter = OTLPSpanExporter(tracing.endpoint, timeout=_EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("raycap")

    def start(self, name: str, carrier: Mapping[str, str], kind: SpanKind = SpanKind.INTERNAL) -> Span:
        """Begin a span; end it with its own ``end()``.

        Args:
            carrier: a request's headers or a task's ``trace``, with the parent; where it has none, a trace begins.
        """
        return self._tracer.start_span(name, _W3C.extract(dict(carrier), Context()), kind)

    def close(self) -> None:
        """Send what is left."""
        provider, self._provider = self._provider, None
        if provider is not None:
            provider.shutdown()


def trace_of(span: Span) -> dict[str, str]:
    """What a task carries of its request's span; of one that is not sampled, nothing."""
    carrier: dict[str, str] = {}
    if span.get_span_context().trace_flags.sampled:
        _W3C.inject(carrier, set_span_in_context(span, Context()))
    return carrier
