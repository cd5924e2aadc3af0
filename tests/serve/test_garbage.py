"""How often Python looks for garbage where requests are answered."""

import gc

import pytest

from raycap.serve.config import CaptionerOptions
from raycap.serve.deployments import CaptionerDeployment


@pytest.fixture(autouse=True)
def _thresholds():
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def test_a_replica_looks_at_young_objects_seldom_and_at_old_ones_as_before():
    CaptionerDeployment(CaptionerOptions())
    young, *older = gc.get_threshold()
    assert young >= 10_000
    assert older == [10, 10]
