"""What a sweep's configuration refuses, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from raycap.config import parse_config
from raycap.errors import UserError
from raycap.sweep.config import SweepConfig

TASK = {"kind": "contrastive_divergence", "features": {"kind": "store", "path": "somewhere"}}
SIGMA = {"task.sigma": {"kind": "uniform", "low": 0.3, "high": 1.0}}


def sweep_config(space: dict[str, Any] = SIGMA, base: dict[str, Any] | None = None, **settings: Any) -> SweepConfig:
    values = {"output": "out", "base": {"task": TASK} | (base or {}), "space": space, **settings}
    return parse_config(SweepConfig, values, origin="sweep.yaml")


@pytest.mark.parametrize(
    ("key", "domain", "message"),
    [
        ("task.num_hiden", {"kind": "choice", "values": [4]}, "space.task.num_hiden = 4: unknown key; did you mean"),
        ("task.num_hidden", {"kind": "choice", "values": [4, 0]}, "space.task.num_hidden = 0: Input should be greater"),
        ("optimizer.momentum", {"kind": "uniform", "low": 0, "high": 0.9}, "space.optimizer.momentum = 0.0: unknown"),
        ("task.gibbs_steps", {"kind": "uniform", "low": 1.5, "high": 3}, "space.task.gibbs_steps = 1.5: Input should"),
        ("seed.more", {"kind": "choice", "values": [1]}, "space.seed.more = 1: its parent is a plain value"),
        ("epochs", {"kind": "choice", "values": [1]}, "space.epochs = 1: is the same for all trials"),
        ("task.features.path", {"kind": "choice", "values": ["a"]}, "space.task.features.path = 'a': is the same for"),
        ("task.sigma", {"kind": "uniform", "low": 2, "high": 1}, "low (2) must be below high (1)"),
        ("task.sigma", {"kind": "log_uniform", "low": 0, "high": 1}, "space.task.sigma.low = 0: Input should be"),
        ("task.sigma", {"kind": "normal"}, "Input tag 'normal'"),
    ],
)  # fmt: skip
def test_a_space_that_the_training_refuses_is_one_clear_line(key: str, domain: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        sweep_config({key: domain})
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_all_wrong_keys_of_a_space_are_reported_together() -> None:
    wrong = {"task.sigmoid": {"kind": "choice", "values": [1]}, "task.num_hidden": {"kind": "choice", "values": [-1]}}
    with pytest.raises(UserError) as caught:
        sweep_config(wrong)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"output": "x"}, "output is set by the sweep"),
        ({"num_workers": 2}, "num_workers (2) must be 1"),
        ({"strategy": {"kind": "ddp"}}, "strategy.kind (ddp) must be in_place"),
        ({"task": {"kind": "captioning", "rows": "r"}, "strategy": {"kind": "ddp"}}, "task.kind (captioning) must be"),
        ({"task": TASK | {"features": {"kind": "online", "rows": "r", "model": "m"}}}, "(online) must be store"),
        ({"task": TASK | {"num_hiden": 3}}, "base.task.num_hiden = 3: unknown key; did you mean num_hidden?"),
    ],
)
def test_a_base_that_no_trial_can_train_is_refused(base: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        sweep_config(base=base)
    assert message in str(caught.value)


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(UserError, match="space"):
        sweep_config({})


def test_a_trial_is_the_base_with_its_settings() -> None:
    config = sweep_config(cpus_per_trial=0.5)
    trial = config.trial_config({"task.sigma": 0.7, "optimizer.learning_rate": 0.5}, "there")
    assert (trial.task.sigma, trial.optimizer.learning_rate, trial.output) == (0.7, 0.5, "there")  # type: ignore[union-attr]
    assert (trial.strategy.kind, trial.cpus_per_worker) == ("in_place", 0.5)
    with pytest.raises(ValidationError):
        config.trial_config({"task.learn_variance": True, "task.sigma": 9.0})
