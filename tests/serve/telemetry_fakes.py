"""What stands in for Prometheus and for a collector of traces."""

import gzip
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Remembering:
    """A recorder that keeps all it is told: how often, the sums, and what it may read."""

    def __init__(self):
        self.counts, self.sums, self.gauges = Counter(), Counter(), {}

    def add(self, metric, value=1.0, **tags):
        assert set(tags) == set(metric.tags)
        assert metric.kind != "gauge"
        key = (metric.name, *(tags[tag] for tag in metric.tags))
        self.counts[key] += 1
        self.sums[key] += value

    def watch(self, metric, read, **tags):
        assert set(tags) == set(metric.tags)
        assert metric.kind == "gauge"
        self.gauges[metric.name, *(tags[tag] for tag in metric.tags)] = read


class Collector:
    """Takes spans as OTLP over HTTP."""

    def __init__(self):
        self.spans, self.services = [], set()

    def take(self, body):
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {
                attribute.value.string_value
                for attribute in of_resource.resource.attributes
                if attribute.key == "service.name"
            }
            for of_scope in of_resource.scope_spans:
                self.spans += of_scope.spans

    def attributes(self, name):
        """Of the only span of this name."""
        (span,) = [span for span in self.spans if span.name == name]
        kinds = {attribute.key: attribute.value for attribute in span.attributes}
        return {key: getattr(value, value.WhichOneof("value")) for key, value in kinds.items()}


@contextmanager
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector and its endpoint on the loopback address."""
    collected = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            collected.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield collected, f"http://127.0.0.1:{server.server_port}/v1/traces"
    finally:
        server.shutdown()
        server.server_close()
