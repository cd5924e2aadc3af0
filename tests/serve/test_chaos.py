"""Replicas of every stage killed under load. benchmarks/chaos.py does it for longer."""

import pytest
from serve.faults import STAGES, check, in_pairs, inflict, kill_replica, saturation
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
        check(load.result, model, faults)
        assert [fault.name for fault in faults] == list(STAGES)
        assert max(fault.longest_gap_seconds for fault in faults) < PATIENCE_SECONDS / 2
