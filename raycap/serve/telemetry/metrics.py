"""What is measured of serving, and how it reaches Prometheus: through Ray, which puts ``ray_`` before each name and
adds the deployment, the replica and the application.

No label holds what a client may choose freely, and none is called ``route``: Ray Serve keeps that one for itself.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from ray.serve import metrics as serve_metrics

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
_SAMPLE_SECONDS = 2.0  # several times in each of Ray's reports, every 10 s


class Metric(NamedTuple):
    """One measure."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()
    """Of a histogram's buckets."""


STAGE_SECONDS = Metric(
    "raycap_stage_seconds",
    "histogram",
    "Of prepare each image's, of encode and refine each batch's, waiting for it not included, of decode each image's, "
    "waiting for the decoder's rows included.",
    ("stage",),
    _SECONDS,
)
BATCH_SIZE = Metric("raycap_batch_size", "histogram", "Images computed together.", ("stage",), _SIZES)
QUEUE_LENGTH = Metric("raycap_queue_length", "gauge", "Images that wait for a batch or for decoder rows.", ("stage",))
DECODER_ROWS = Metric("raycap_decoder_rows", "gauge", "Captions being written; each beam counts as one.")
TOKENS = Metric("raycap_tokens_total", "counter", "Tokens of finished captions.")
CACHE = Metric("raycap_cache_total", "counter", "Lookups of embeddings and captions.", ("cache", "result"))
REQUESTS = Metric("raycap_requests_total", "counter", "Answered requests.", ("endpoint", "status", "model"))
REQUEST_SECONDS = Metric(
    "raycap_request_seconds", "histogram", "From a request's head to its answer's end.", ("endpoint",), _SECONDS
)
REJECTED = Metric("raycap_rejected_total", "counter", "Requests answered with an error, by its type.", ("reason",))
MODELS_LOADED = Metric("raycap_models_loaded", "gauge", "Models that gave a caption and take requests.")

ALL = (
    STAGE_SECONDS,
    BATCH_SIZE,
    QUEUE_LENGTH,
    DECODER_ROWS,
    TOKENS,
    CACHE,
    REQUESTS,
    REQUEST_SECONDS,
    REJECTED,
    MODELS_LOADED,
)


class Recorder(Protocol):
    """Where measures go; any thread may call."""

    def add(self, metric: Metric, value: float = 1.0, **tags: str) -> None:
        """To a counter's sum, or as one more of a histogram's values."""

    def watch(self, metric: Metric, read: Callable[[], float], **tags: str) -> None:
        """Read a gauge's value from time to time: what changes with each token costs nothing as it changes."""


class NoRecorder:
    """Outside of Ray Serve."""

    def add(self, metric: Metric, value: float = 1.0, **tags: str) -> None:
        pass

    def watch(self, metric: Metric, read: Callable[[], float], **tags: str) -> None:
        pass


class RayRecorder:
    """In a replica; one for the process."""

    def __init__(self) -> None:
        self._add = {metric: _adder(metric) for metric in ALL if metric.kind != "gauge"}
        self._gauges = {
            metric: serve_metrics.Gauge(metric.name, metric.description, _tags_of(metric))
            for metric in ALL
            if metric.kind == "gauge"
        }
        self._watched: list[Callable[[], None]] = []

    def add(self, metric: Metric, value: float = 1.0, **tags: str) -> None:
        # Ray refuses to count nothing.
        if value or metric.kind == "histogram":
            self._add[metric](value, tags=tags)

    def watch(self, metric: Metric, read: Callable[[], float], **tags: str) -> None:
        gauge = self._gauges[metric]
        self._watched.append(lambda: gauge.set(read(), tags=tags))
        if len(self._watched) == 1:
            threading.Thread(target=self._sample, name="gauges", daemon=True).start()

    def _sample(self) -> None:
        while True:
            for sample in tuple(self._watched):
                sample()
            time.sleep(_SAMPLE_SECONDS)


def _adder(metric: Metric) -> Callable[..., None]:
    if metric.kind == "counter":
        return serve_metrics.Counter(metric.name, metric.description, _tags_of(metric)).inc
    boundaries = list(metric.boundaries)
    return serve_metrics.Histogram(metric.name, metric.description, boundaries, _tags_of(metric)).observe


def _tags_of(metric: Metric) -> Any:
    return metric.tags  # Ray's annotation says one tag, its code takes any number


def timed(
    compute: Callable[[Any, Sequence[ItemT]], Sequence[ResultT]], recorder: Recorder, stage: str
) -> Callable[[Any, Sequence[ItemT]], Sequence[ResultT]]:
    """A batch's function that also records its seconds."""

    def run(group: Any, items: Sequence[ItemT]) -> Sequence[ResultT]:
        began = time.perf_counter()
        results = compute(group, items)
        recorder.add(STAGE_SECONDS, time.perf_counter() - began, stage=stage)
        return results

    return run
