"""The policy as Serve's controller runs it, against a clock of its own."""

import math
import subprocess
import sys

import pytest
from ray.serve import autoscaling_policy
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from raycap.serve.autoscaling import OWN_WORK
from raycap.serve.config import DeploymentOptions

TARGET = 10
OPTIONS = DeploymentOptions(num_replicas=1, max_replicas=8, target_ongoing_requests=TARGET)


@pytest.fixture
def controller(monkeypatch):
    """A function from loads, one a second, to the replicas after each: as the controller asks, all delays applied."""
    config = AutoscalingConfig(**OPTIONS.for_serve()["autoscaling_config"])
    policy = autoscaling_policy._apply_autoscaling_config(config.policy.get_policy())
    now = [0.0]
    monkeypatch.setattr(autoscaling_policy.time, "time", lambda: now[0])

    def replicas(loads, begin=1, share=None, queued=0.0):
        count, state, counts = begin, {}, []
        for load in loads:
            now[0] += 1
            metrics = {} if share is None else {OWN_WORK: {"only": (load - queued) * share}}
            context = AutoscalingContext(
                None, "d", "a", count, count, [], load, queued, metrics, {}, 1, 8, state, None, None, now[0], config
            )
            count, state = policy(context)
            count = max(config.min_replicas, min(config.max_replicas, count))
            counts.append(count)
        return counts

    return replicas


@pytest.mark.parametrize("begin", [1, 2, 4])
@pytest.mark.parametrize("period_seconds", [5, 60, 300])
def test_a_load_that_swings_by_30_percent_around_a_threshold_changes_nothing(controller, begin, period_seconds):
    loads = [begin * TARGET * (1 + 0.29 * math.sin(2 * math.pi * t / period_seconds)) for t in range(1800)]
    assert set(controller(loads, begin)) == {begin}


def test_a_load_that_doubles_brings_replicas_after_the_delay_and_not_before(controller):
    counts = controller([2 * TARGET] * 60, begin=1)
    first = counts.index(2)
    assert OPTIONS.scale_up_seconds - 1 <= first <= OPTIONS.scale_up_seconds + 1
    assert set(counts[first:]) == {2}


def test_a_burst_shorter_than_the_delay_changes_nothing(controller):
    assert set(controller([TARGET] * 30 + [5 * TARGET] * 20 + [TARGET] * 30)) == {1}


def test_idle_replicas_go_after_the_delay_and_not_before(controller):
    counts = controller([0] * 700, begin=4)
    first = counts.index(1)
    assert OPTIONS.scale_down_seconds - 1 <= first <= OPTIONS.scale_down_seconds + 1
    assert set(counts[:first]) == {4}


def test_requests_that_wait_for_another_stage_add_no_replicas(controller):
    loads = [6 * TARGET] * 60
    assert set(controller(loads, share=0.1)) == {1}
    assert controller(loads, share=1.0)[-1] == 6
    assert set(controller(loads, share=0.1, queued=20.0)) == {1}, "nor do those that queue behind them"


def test_requests_that_bring_several_images_count_as_so_many(controller):
    assert controller([TARGET] * 60, share=3.0)[-1] == 3
    assert controller([TARGET] * 60, share=3.0, queued=TARGET / 2)[-1] == 3, "as do those that queue behind them"


def test_a_deployment_without_stats_is_scaled_by_all_its_requests(controller):
    assert controller([3 * TARGET] * 60)[-1] == 3


def test_the_controller_needs_nothing_of_ours_to_run_it(tmp_path):
    config = AutoscalingConfig(**OPTIONS.for_serve()["autoscaling_config"])
    pickled = tmp_path / "policy"
    pickled.write_bytes(config.policy.get_serialized_policy_def())
    script = (
        "import sys; sys.modules['raycap'] = None; from ray import cloudpickle; "
        f"print(cloudpickle.loads(open({str(pickled)!r}, 'rb').read()).__name__)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert found.stdout.strip() == "by_own_work", found.stderr
