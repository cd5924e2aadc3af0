"""Replicas killed under load, and how the service comes through; for tests and for benchmarks."""

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from serve.load import Load, LoadResult
from serve.local_cluster import LocalCluster, disaggregated, kill_tree
from serve.tiny_models import Served

STAGES = ("encoder", "refiner", "decoder", "ingress")
NODE = "node"
REQUEST_SECONDS = 20.0
_WINDOW_SECONDS = 3.0


@dataclass(frozen=True)
class Fault:
    """What clients saw of one."""

    name: str
    at: float
    """By ``time.monotonic``."""

    num_requests: int
    errors: dict[str, int]
    longest_gap_seconds: float
    """Without any answer."""

    slowest_seconds: float
    """Of all requests until it was over."""

    recovered_seconds: float
    """Until the answers of the last seconds were 0.9 of the rate before."""

    def as_json(self) -> dict[str, Any]:
        return {name: round(v, 2) if isinstance(v, float) else v for name, v in asdict(self).items()}


def in_pairs(model: Served) -> dict[str, Any]:
    """Two replicas of each stage."""
    return disaggregated(
        model.values,
        encoder={"num_replicas": 2},
        refiner={"num_replicas": 2},
        decoder={"num_replicas": 2},
        ingress={"num_replicas": 2},
        limits={"request_seconds": REQUEST_SECONDS},
    )


def saturation(url: str, files: list[bytes], clients: int, seconds: float) -> float:
    """Answers per second with that many clients, each asking again at once."""
    with Load(url, files, clients) as load:
        time.sleep(1 + seconds)
        end = time.monotonic()
    return load.result.throughput(end - seconds, end)


def kill_replica(cluster: LocalCluster, stage: str) -> Callable[[], None]:
    """A function that kills one replica of a stage; found before, so that the time counts from the kill."""
    pid = min(cluster.replicas()[stage])
    return lambda: os.kill(pid, signal.SIGKILL)


def lose_node(cluster: LocalCluster, node: subprocess.Popen[bytes], host: str) -> Callable[[], None]:
    """A function that kills a node with all that runs on it.

    Raises:
        AssertionError: no replica of some stage runs there: its loss would show nothing.
    """
    node_id = cluster.node_of(host)
    spared = [stage for stage, replicas in cluster.replicas().items() if node_id not in replicas.values()]
    assert not spared, f"nothing of {', '.join(spared)} runs on the node"
    return lambda: kill_tree(node)


def inflict(name: str, load: Load, fault: Callable[[], None], rate: float, patience_seconds: float) -> Fault:
    """Do it, and wait until the load is answered as before.

    Args:
        load: running at a fixed rate.
        rate: of answers per second, before.

    Raises:
        AssertionError: it is not, in that time.
    """
    began_at = time.monotonic()
    fault()
    time.sleep(_WINDOW_SECONDS)

    def recovered(result: LoadResult) -> bool:
        now = time.monotonic()
        return result.throughput(now - _WINDOW_SECONDS, now) >= 0.9 * rate

    load.wait_for(recovered, patience_seconds)
    over_at = time.monotonic()
    seen = LoadResult(list(load.result.samples)).between(began_at, over_at)
    ends = [began_at, *(sample.ended_at for sample in seen.answered)]
    return Fault(
        name=name,
        at=began_at,
        num_requests=len(seen.samples),
        errors=seen.errors(),
        longest_gap_seconds=max((after - before for before, after in itertools.pairwise(ends)), default=0.0),
        slowest_seconds=max((sample.seconds for sample in seen.samples), default=0.0),
        recovered_seconds=over_at - began_at - _WINDOW_SECONDS,
    )


def check(result: LoadResult, model: Served) -> None:
    """No wrong answer, none too late, and no error but those after which a client may ask again.

    Raises:
        AssertionError: one of them.
    """
    for sample in result.answered:
        assert (sample.version, sample.gate) == (model.version, model.gate)
        assert sample.caption == model.captions[sample.image], f"a wrong caption of image {sample.image}"
    final = LoadResult([sample for sample in result.failed if not sample.is_retryable])
    assert not final.samples, f"errors after which a client cannot ask again: {final.errors()}"
    slowest = max(sample.seconds for sample in result.samples)
    assert slowest < REQUEST_SECONDS + 5, f"a request took {slowest:.1f} s"
