"""The threads that compute, and torch's helpers in them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from raycap.checkpoint.captioner_shape import CaptionerShape
from raycap.serve.stages.threads import compute_elsewhere, compute_thread, cores_of_replica, cpu_threads

SMALL = CaptionerShape("blip", 128, 65, 256)
BASE = CaptionerShape("blip", 384, 577, 768)
RESNET = CaptionerShape("lstm_captioner", 256, 196, 2048)


@pytest.mark.parametrize(
    ("cores", "shapes", "threads"),
    [(8, [SMALL], 4), (1, [SMALL], 1), (8, [BASE], 8), (8, [RESNET], 8), (8, [SMALL, BASE], 8)],
)
def test_narrow_models_share_the_cores_and_wide_ones_take_turns_with_all(cores, shapes, threads):
    assert cpu_threads(shapes, cores) == threads


@pytest.mark.parametrize(("num_cpus", "cores"), [(0, 8), (0.1, 8), (1, 1), (2.5, 2)])
def test_a_replica_keeps_the_whole_cpus_busy_that_it_reserves_and_all_where_it_reserves_none(
    monkeypatch, num_cpus, cores
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores_of_replica(num_cpus) == cores


def test_only_the_thread_that_computes_has_helpers():
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1) as caller, compute_thread("compute", 3) as computes:
            caller.submit(compute_elsewhere).result(10)
            assert computes.submit(torch.get_num_threads).result(10) == 3
            assert caller.submit(torch.get_num_threads).result(10) == 1
    finally:
        torch.set_num_threads(before)
