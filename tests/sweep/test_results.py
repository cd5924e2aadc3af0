"""Which trial is chosen, and how the others are named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from raycap.errors import UserError
from raycap.sweep.config import SweepConfig
from raycap.sweep.results import FinishedTrial, read_trials, trained_trials
from raycap.sweep.trial import note_result


def trial(value: float, epoch: int = 3, **result: Any) -> FinishedTrial:
    return FinishedTrial({"task.sigma": value}, {"log_likelihood": value, "epoch": epoch, **result}, epochs=3)


def test_a_trial_that_was_stopped_is_never_chosen_however_likely() -> None:
    stopped, trained = trial(-1.0, epoch=1), trial(-2.0)
    assert stopped.outcome == "stopped"
    assert trained_trials([stopped, trained, trial(-3.0)])[0] is trained


def test_a_trial_that_ended_early_by_itself_is_trained_to_the_end() -> None:
    assert trial(-1.0, epoch=2, trained_to_end=True).outcome == "trained"


def test_without_a_trained_trial_the_error_says_why() -> None:
    failed = FinishedTrial({}, {"log_likelihood": -math.inf, "failure": "it diverged"}, epochs=3)
    with pytest.raises(UserError, match="none of 3 trials was trained to the end; one failed with: it diverged"):
        trained_trials([trial(-1.0, epoch=1), failed], [RuntimeError("lost")])
    with pytest.raises(UserError, match="none of 1 trials was trained to the end; one failed with: lost"):
        trained_trials([], [RuntimeError("first line\nlost")])


def test_noted_trials_come_back_the_most_likely_first(tmp_path: Path) -> None:
    task = {"kind": "contrastive_divergence", "features": {"kind": "store", "path": "somewhere"}}
    space = {"task.sigma": {"kind": "uniform", "low": 0.3, "high": 1.0}}
    config = SweepConfig.model_validate({"output": str(tmp_path), "base": {"task": task}, "space": space})
    assert read_trials(config) == []
    for sigma, value in ((0.4, -3.0), (0.5, -1.0), (0.6, -math.inf), (0.4, -3.0)):
        note_result(config.output, {"task.sigma": sigma}, {"log_likelihood": value, "epoch": 1})
    assert [found.settings["task.sigma"] for found in read_trials(config)] == [0.5, 0.4, 0.6]
