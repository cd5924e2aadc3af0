"""Captions under steady load for long: latency by the minute, memory, and what is seen of killed replicas.

    python benchmarks/chaos.py [--seconds 600] [--load 0.8] [--faults] [--nodes 2] [--clients 16]

Starts a cluster on this machine, with two replicas of encoder, refiner, decoder and ingress and tiny models; measures
how many captions per second it gives at most; then asks for a share of that, at a fixed rate, for the time given.
Without --faults memory is watched: the resident memory of all replicas and proxies, every 5 s, and the slope of a line
through it after the first fifth. With --faults a replica of each stage in turn is killed every 15 s; with --nodes 2, in
a network of its own, first the second node as a whole, and another takes its place. Every caption is compared with the
predictor's. Exits with 1 where one is wrong, where an error is no invitation to ask again, or where memory grows faster
than --max-growth. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

# In the place of this folder, whose serve.py would be taken for the tests' serve.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from serve import private_network
from serve.faults import NODE, STAGES, Fault, check, in_pairs, inflict, kill_replica, lose_node, saturation
from serve.load import Load, LoadResult
from serve.local_cluster import HOST, LocalCluster, wait_until
from serve.tiny_models import Served, make_files, make_models

MIB = 1024 * 1024
_SAMPLE_SECONDS = 5.0
_BETWEEN_FAULTS_SECONDS = 15.0
_PATIENCE_SECONDS = 120.0


def main() -> None:
    arguments = _parse()
    if arguments.nodes > 1:
        private_network.enter()
    host = HOST if arguments.nodes == 1 else private_network.ADDRESSES[0]
    files = make_files()
    with tempfile.TemporaryDirectory() as directory, LocalCluster(host=host) as cluster:
        second = cluster.add_node(private_network.ADDRESSES[1]) if arguments.nodes > 1 else None
        model = Served.of(make_models(Path(directory)), files)
        cluster.deploy(in_pairs(model))
        cluster.wait_until_running(300)
        most = saturation(cluster.url, files, arguments.clients, seconds=arguments.warm_seconds)
        rate = arguments.load * most
        print(f"at most {most:.1f} captions/s; asking for {rate:.1f}/s for {arguments.seconds:g} s", flush=True)
        memory = Memory(cluster)
        faults: list[Fault] = []
        began_at = time.monotonic()
        with memory, Load(cluster.url, files, arguments.clients, rate=rate) as load:
            if arguments.faults:
                faults = _kill_in_turn(cluster, second, load, rate, began_at + arguments.seconds)
            time.sleep(max(0.0, began_at + arguments.seconds - time.monotonic()))
    result = {
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("ray", "torch")},
        "seconds": arguments.seconds,
        "most_per_second": round(most, 1),
        "rate": round(rate, 1),
        "num_requests": len(load.result.samples),
        "errors": load.result.errors(),
        "by_minute": _by_minute(load.result, began_at),
        "memory_mib": [round(num_bytes / MIB) for _, num_bytes in memory.samples],
        "growth_mib_per_minute": round(memory.growth_mib_per_minute(), 2),
        "faults": [fault.as_json() for fault in faults],
    }
    failure = _failure(load.result, model, result, None if arguments.faults else arguments.max_growth)
    result["failure"] = failure
    print(json.dumps(result))
    sys.exit(failure is not None)


class Memory:
    """Resident memory of replicas and proxies, looked at while in the context."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.samples: list[tuple[float, int]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="memory")

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stopped.wait(_SAMPLE_SECONDS):
            self.samples.append((time.monotonic(), self.cluster.memory_bytes()))

    def growth_mib_per_minute(self) -> float:
        """Slope after the first fifth of the time, in which buffers and arenas fill."""
        settled = self.samples[len(self.samples) // 5 :]
        if len(settled) < 3:
            return float("nan")
        at, num_bytes = np.array(settled, dtype=float).T
        return float(np.polyfit((at - at[0]) / 60, num_bytes / MIB, 1)[0])


def _kill_in_turn(
    cluster: LocalCluster, second: subprocess.Popen[bytes] | None, load: Load, rate: float, until: float
) -> list[Fault]:
    faults: list[Fault] = []

    def wait(stage: str) -> None:
        wait_until(lambda: len(cluster.replicas().get(stage, {})) == 2, 120, cluster.log)

    time.sleep(5)
    if second is not None:
        host = private_network.ADDRESSES[1]
        faults.append(inflict(NODE, load, lose_node(cluster, second, host), rate, _PATIENCE_SECONDS))
        print(json.dumps(faults[-1].as_json()), flush=True)
        cluster.add_node(host)
        for stage in STAGES:
            wait(stage)
    while True:
        for stage in STAGES:
            if time.monotonic() > until:
                return faults
            faults.append(inflict(stage, load, kill_replica(cluster, stage), rate, _PATIENCE_SECONDS))
            print(json.dumps(faults[-1].as_json()), flush=True)
            wait(stage)
            time.sleep(min(_BETWEEN_FAULTS_SECONDS, max(0.0, until - time.monotonic())))


def _by_minute(result: LoadResult, began_at: float) -> list[dict[str, Any]]:
    rows = []
    for minute in range(int((result.samples[-1].ended_at - began_at) // 60) + 1):
        part = result.between(began_at + 60 * minute, began_at + 60 * (minute + 1))
        if part.samples:
            rows.append({"minute": minute, "answered": len(part.answered), **part.percentiles(50, 95, 99, 100)})
    return rows


def _failure(result: LoadResult, model: Served, summary: dict[str, Any], max_growth: float | None) -> str | None:
    try:
        check(result, model)
    except AssertionError as error:
        return str(error)
    if max_growth is not None and not summary["growth_mib_per_minute"] <= max_growth:
        return f"memory grows by {summary['growth_mib_per_minute']} MiB per minute, more than {max_growth:g}"
    return None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="of steady load")
    parser.add_argument("--load", type=float, default=0.8, help="share of what was measured as the most")
    parser.add_argument("--clients", type=int, default=16, help="requests at once, at most")
    parser.add_argument("--warm-seconds", type=float, default=15, help="of measuring the most")
    parser.add_argument("--faults", action="store_true", help="kill replicas of each stage in turn")
    parser.add_argument("--nodes", type=int, default=1, choices=(1, 2), help="of the cluster")
    parser.add_argument(
        "--max-growth", type=float, default=4.0, help="of memory, MiB per minute, all replicas together"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
