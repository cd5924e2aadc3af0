import re
import time

from raycap.serve.telemetry import metrics
from raycap.serve.telemetry.metrics import ALL, RayRecorder


def test_names_and_labels_are_what_ray_serve_and_prometheus_take():
    assert len({metric.name for metric in ALL}) == len(ALL)
    for metric in ALL:
        assert re.fullmatch(r"raycap_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert not {"route", "deployment", "replica", "application"} & set(metric.tags), "Serve's own"
        assert list(metric.boundaries) == sorted(metric.boundaries)
    every = [value for value in vars(metrics).values() if isinstance(value, metrics.Metric)]
    assert set(every) == set(ALL)


def test_ray_takes_every_measure_and_a_request_s_cost_is_not_seen():
    recorder = RayRecorder()
    adds = [(metric, dict.fromkeys(metric.tags, "x")) for metric in ALL if metric.kind != "gauge"]

    def request():
        # Of one request there are at most ten: three stages' seconds and batch sizes, two caches, tokens, the request.
        for metric, tags in (adds * 2)[:11]:
            recorder.add(metric, 1.0, **tags)

    request()
    seconds = []
    for _ in range(200):
        began = time.perf_counter()
        request()
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 50e-6
    recorder.add(metrics.TOKENS, 0)  # Ray itself would raise


def test_gauges_are_read_by_themselves(monkeypatch):
    monkeypatch.setattr(metrics, "_SAMPLE_SECONDS", 0.01)
    reads = []
    recorder = RayRecorder()
    recorder.watch(metrics.QUEUE_LENGTH, lambda: reads.append(1) or 3.0, stage="encode")
    deadline = time.monotonic() + 10
    while len(reads) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(reads) >= 3
