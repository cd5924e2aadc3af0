import os

import pytest

from raycap.serve.api.threads import Threads


@pytest.mark.parametrize(("num_cores", "num_threads"), [(1, 3), (4, 6), (64, 8)])
def test_threads_are_a_few_more_than_the_cores_given_to_this_process_and_never_many(
    monkeypatch, num_cores, num_threads
):
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cores)), raising=False)
    assert Threads()._pool._max_workers == num_threads


def test_without_affinity_the_machines_cores_are_counted(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert Threads()._pool._max_workers == 4
