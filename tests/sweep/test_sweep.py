"""A real sweep on a small store: what it chooses, writes, and does not do twice."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from tiny import make_store

from raycap.batch.token_likelihood import held_out, rbm_likelihood
from raycap.checkpoint.refiner import load_refiner
from raycap.config import load_config
from raycap.data.features import open_store
from raycap.errors import UserError
from raycap.models.partition import LogPartition, exact_log_partition
from raycap.sweep.config import SweepConfig
from raycap.sweep.run import sweep
from raycap.train.config import TrainConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")

# The third diverges at once; the seed below draws it in one trial of four.
LEARNING_RATES = [0.01, 0.1, 1e30]


def sweep_config(root: Path, **settings: Any) -> SweepConfig:
    task = {"kind": "contrastive_divergence", "negatives": "pcd", "sigma": 0.8}
    task |= {"features": {"kind": "store", "path": str(root / "features")}}
    base = {"task": task, "epochs": 2, "batch_size_per_worker": 32, "precision": "fp32", "torch_threads": 1}
    base |= {"clip_norm": None, "shuffle_chunks": 1, "optimizer": {"kind": "sgd"}, "schedule": {"kind": "constant"}}
    space = {
        "task.num_hidden": {"kind": "choice", "values": [8, 12]},
        "optimizer.learning_rate": {"kind": "choice", "values": LEARNING_RATES},
    }
    defaults = {"num_trials": 4, "search": "random", "scheduler": {"kind": "none"}, "cpus_per_trial": 0.5, "seed": 10}
    defaults |= {"annealing": {"num_chains": 200, "num_betas": 200}, "max_concurrent_trials": 2}
    return SweepConfig.model_validate(
        {"output": str(root / "sweep"), "base": base, "space": space, **defaults, **settings}
    )


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and a finished sweep over it."""
    root = tmp_path_factory.mktemp("sweep")
    make_store(str(root / "features"))
    return root


@pytest.fixture(scope="module")
def metrics(root: Path, ray_cluster: None) -> dict[str, Any]:
    return sweep(sweep_config(root))


def test_the_most_likely_trial_is_chosen_and_its_config_is_one_to_train(root: Path, metrics: dict[str, Any]) -> None:
    output = root / "sweep"
    trained = [row for row in rows(output) if row["outcome"] == "trained"]
    assert len(trained) >= 2
    best = max(trained, key=lambda row: float(row["log_likelihood"]))
    assert metrics["log_likelihood_when_chosen"] == float(best["log_likelihood"])
    config = load_config(TrainConfig, str(output / "best.yaml"))
    assert config.task.num_hidden == int(best["task.num_hidden"]) == metrics["best"]["task.num_hidden"]  # type: ignore[union-attr]
    assert config.optimizer.learning_rate == float(best["optimizer.learning_rate"])
    assert config.output == str(output / "best")


def test_the_likelihood_is_the_exact_one_within_its_error(root: Path, metrics: dict[str, Any]) -> None:
    store = open_store(str(root / "features"))
    data = held_out(store, "dev", 20_000, seed=10)
    refiner = load_refiner(metrics["model"])
    exact = rbm_likelihood(refiner, data, LogPartition(exact_log_partition(refiner.rbm), 0.0, math.inf))
    assert metrics["log_likelihood"] == pytest.approx(exact.per_image.mean(), abs=5 * metrics["annealing_error"] + 1e-3)
    difference = metrics["log_likelihood"] - metrics["gaussian_log_likelihood"]
    assert metrics["difference_to_gaussian"] == pytest.approx(difference, abs=1e-3)
    assert 0 < metrics["difference_to_gaussian_error"] < math.inf


def test_a_trial_that_diverges_is_named_and_never_chosen(root: Path, metrics: dict[str, Any]) -> None:
    failed = [row for row in rows(root / "sweep") if row["outcome"] == "failed"]
    assert failed
    assert {row["optimizer.learning_rate"] for row in failed} == {"1e+30"}
    assert all("set a smaller learning rate" in row["failure"] for row in failed)
    assert metrics["num_failed"] == len(failed)


def test_the_page_has_the_trials_the_pictures_and_the_line_to_beat(root: Path, metrics: dict[str, Any]) -> None:
    page = (root / "sweep" / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "full-covariance Gaussian" in page
    assert f"{metrics['log_likelihood']:.3f}" in page
    assert "it ranks models backwards" in page
    assert "http" not in page


def test_a_finished_sweep_is_not_run_again_and_another_is_refused(root: Path, metrics: dict[str, Any]) -> None:
    (root / "sweep" / "metrics.json").write_text('{"chosen": "before"}')
    assert sweep(sweep_config(root)) == {"chosen": "before"}
    with pytest.raises(UserError, match=r"holds a sweep with other settings \(num_trials is \d there, 5 here\)"):
        sweep(sweep_config(root, num_trials=5))


def test_more_cpus_than_a_node_has_are_refused_before_anything_is_written(root: Path) -> None:
    with pytest.raises(UserError, match="cpus_per_trial = 1000"):
        sweep(sweep_config(root, output=str(root / "other"), cpus_per_trial=1000))
    assert not (root / "other").exists()
