"""The threads that compute, and torch's helpers in them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from raycap.checkpoint.captioner import CaptionerShape
from raycap.serve.stages.threads import compute_elsewhere, compute_thread, cpu_threads

SMALL = CaptionerShape("blip", 128, 65, 256)
BASE = CaptionerShape("blip", 384, 577, 768)
RESNET = CaptionerShape("lstm_captioner", 256, 196, 2048)


@pytest.mark.parametrize(
    ("num_cores", "shapes", "threads"),
    [(8, [SMALL], 4), (1, [SMALL], 1), (8, [BASE], 8), (8, [RESNET], 8), (8, [SMALL, BASE], 8)],
)
def test_narrow_models_share_the_cores_and_wide_ones_take_turns_with_all(monkeypatch, num_cores, shapes, threads):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(num_cores)), raising=False)
    assert cpu_threads(shapes) == threads


def test_only_the_thread_that_computes_has_helpers():
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1) as caller, compute_thread("compute", 3) as computes:
            caller.submit(compute_elsewhere).result(10)
            assert computes.submit(torch.get_num_threads).result(10) == 3
            assert caller.submit(torch.get_num_threads).result(10) == 1
    finally:
        torch.set_num_threads(before)
