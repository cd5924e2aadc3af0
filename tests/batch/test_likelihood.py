"""The likelihood job: its figures against exact ones, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_store

from raycap.batch.likelihood import LikelihoodConfig, measure_likelihood
from raycap.batch.token_likelihood import gaussian_likelihood, held_out
from raycap.checkpoint.identity import EncoderId
from raycap.checkpoint.refiner import load_refiner, save_refiner
from raycap.config import parse_config
from raycap.data.features import open_store
from raycap.errors import UserError
from raycap.models.partition import exact_log_partition
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner

ENCODER = EncoderId("made up", "0" * 16)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and two RBMs for it, one too large to enumerate."""
    folder = tmp_path_factory.mktemp("likelihood")
    store = open_store(make_store(str(folder / "features")))
    torch.manual_seed(0)
    for name, num_hidden in (("small", 10), ("large", 24)):
        rbm = GaussianBernoulliRBM(16, num_hidden, sigma=0.8)
        torch.nn.init.normal_(rbm.weight, std=0.2)
        save_refiner(folder / name, RbmRefiner(rbm, torch.tensor(store.mean), torch.tensor(store.std)), ENCODER)
    return folder


def config(place: Path, rbm: str = "small", **settings: Any) -> LikelihoodConfig:
    values = {"output": "out", "rbm": str(place / rbm), "features": str(place / "features"), "cpus_per_task": 0.5}
    values |= {"annealing": {"num_chains": 256, "num_betas": 200}}
    return parse_config(LikelihoodConfig, values | settings, origin="likelihood.yaml")


def test_a_small_rbm_s_likelihood_rests_on_enumeration_and_annealing_agrees(place: Path, ray_cluster: None) -> None:
    metrics = measure_likelihood(config(place, "small"))
    rbm = load_refiner(str(place / "small")).rbm
    assert metrics["exact_log_partition"] == exact_log_partition(rbm)
    for name in ("ais", "reverse_ais"):
        error = metrics[name]["standard_error"]
        assert 0 < error < 0.1
        assert metrics[name]["value"] == pytest.approx(metrics["exact_log_partition"], abs=4 * error)
    store = open_store(str(place / "features"))
    data = held_out(store, "dev", 20_000, seed=0)
    v = ((torch.from_numpy(data.tokens) - torch.from_numpy(data.mean)) / torch.from_numpy(data.std)).float()
    with torch.no_grad():
        expected = float(-rbm.free_energy(v).mean()) - metrics["exact_log_partition"]
    assert metrics["log_likelihood"] == pytest.approx(expected, abs=1e-3)
    gaussian = float(gaussian_likelihood(store, "train", data).mean())
    assert metrics["difference_to_gaussian"] == pytest.approx(expected - gaussian, abs=1e-3)
    assert metrics["log_likelihood_error"] == pytest.approx(metrics["sampling_error"]) != 0
    assert metrics["num_tokens"] == 300


def test_a_large_rbm_s_likelihood_rests_on_annealing_and_its_error_is_counted(place: Path, ray_cluster: None) -> None:
    metrics = measure_likelihood(config(place, "large", reverse=False))
    assert metrics["exact_log_partition"] is metrics["reverse_ais"] is None
    assert metrics["log_partition_by"] == "ais"
    assert metrics["annealing_error"] == metrics["ais"]["standard_error"] > 0
    assert metrics["log_likelihood_error"] > metrics["sampling_error"]


def test_chains_that_do_not_fill_whole_groups_are_refused(place: Path) -> None:
    with pytest.raises(UserError, match=r"chains_per_task = 100: .* multiple of 64"):
        config(place, "small", chains_per_task=100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "test"}, "split = 'test'"),
        ({"train_split": "test"}, "train_split = 'test'"),
        ({"rbm": "none"}, "rbm = .*none: no model there"),
    ],
)
def test_what_is_not_there_is_refused_before_any_chain_runs(
    place: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        measure_likelihood(config(place, **settings))


def test_another_encoder_s_rbm_is_refused(place: Path, tmp_path: Path) -> None:
    store = open_store(str(place / "features"))
    refiner = RbmRefiner(GaussianBernoulliRBM(16, 4), torch.tensor(store.mean), torch.tensor(store.std))
    save_refiner(tmp_path / "other", refiner, EncoderId("another", "1" * 16))
    with pytest.raises(UserError, match="not by the encoder 1111"):
        measure_likelihood(config(place, rbm=str(tmp_path / "other")))
