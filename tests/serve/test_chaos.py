"""Replicas of every stage, and a whole node, killed under load. benchmarks/chaos.py does it for longer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from serve import private_network
from serve.faults import NODE, STAGES, check, in_pairs, inflict, kill_replica, saturation
from serve.load import Load
from serve.local_cluster import LocalCluster, wait_until
from serve.tiny_models import Served

pytestmark = pytest.mark.integration

# Seen: within seconds. A busy machine of two cores needs longer.
PATIENCE_SECONDS = 60.0
NUM_CLIENTS = 16


def test_no_wrong_answer_and_no_lasting_harm_whatever_is_killed(models, files):
    model = Served.of(models, files)
    with LocalCluster() as cluster:
        cluster.deploy(in_pairs(model))
        cluster.wait_until_running(300)
        rate = saturation(cluster.url, files, NUM_CLIENTS, seconds=3) / 3
        with Load(cluster.url, files, NUM_CLIENTS, rate=rate) as load:
            load.wait_for(lambda result: len(result.answered) > 3 * rate)
            faults = []
            for stage in STAGES:
                faults.append(inflict(stage, load, kill_replica(cluster, stage), rate, PATIENCE_SECONDS))
                wait_until(lambda: len(cluster.replicas().get(stage, {})) == 2, 120, cluster.log)  # noqa: B023
        check(load.result, model)
        assert [fault.name for fault in faults] == list(STAGES)
        assert max(fault.longest_gap_seconds for fault in faults) < PATIENCE_SECONDS / 2


@pytest.mark.skipif(private_network.unavailable() is not None, reason=str(private_network.unavailable()))
def test_no_wrong_answer_and_no_lasting_harm_when_a_node_is_lost():
    script = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
    # By a program of its own, which can move into the network that two nodes need.
    options = ["--nodes", "2", "--faults", "--seconds", "1", "--warm-seconds", "3", "--clients", "8"]
    done = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    (fault,) = json.loads(done.stdout.splitlines()[-1])["faults"]
    assert fault["name"] == NODE
    assert fault["num_requests"] > 0
    assert fault["longest_gap_seconds"] < PATIENCE_SECONDS / 2
