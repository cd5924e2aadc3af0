"""The learning-rate schedule, and the checks of a training's settings."""

from __future__ import annotations

import itertools

import pytest
import torch

from raycap.train.config import Schedule


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_the_schedule_warms_up_then_decays_to_zero(kind: str) -> None:
    schedule = Schedule(kind=kind, warmup_steps=4)  # type: ignore[arg-type]
    factors = [schedule.factor(step, 20, 5) for step in range(21)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4] == 1.0
    assert factors[20] == pytest.approx(1.0 if kind == "constant" else 0.0)
    assert all(after <= before for before, after in itertools.pairwise(factors[4:]))


def test_the_cosine_equals_torch_s_own() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([parameter], lr=1.0), T_max=30)
    schedule = Schedule(kind="cosine")
    for step in range(30):
        assert schedule.factor(step, 30, 10) == pytest.approx(peer.get_last_lr()[0], abs=1e-12)
        peer.optimizer.step()
        peer.step()


def test_the_stairs_equal_torch_s_own() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    peer = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([parameter], lr=1.0), step_size=3, gamma=0.5)
    schedule = Schedule(kind="stairs", stair_epochs=3)
    for epoch in range(12):
        assert {schedule.factor(4 * epoch + step, 48, 4) for step in range(4)} == {peer.get_last_lr()[0]}
        peer.optimizer.step()
        peer.step()
