"""Likelihoods of RBMs and the Gaussian: exact where they can be, and in the same units."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import make_store

from raycap.batch.token_likelihood import HeldOut, gaussian_likelihood, held_out, rbm_likelihood
from raycap.data.features import FeatureStore, open_store, token_covariance
from raycap.models.gaussian import FullCovarianceGaussian
from raycap.models.partition import LogPartition, ais_log_partition, exact_log_partition
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return open_store(make_store(str(tmp_path_factory.mktemp("store") / "features")))


@pytest.fixture(scope="module")
def data(store: FeatureStore) -> HeldOut:
    return held_out(store, "dev", 10_000, seed=0)


def exactly(rbm: GaussianBernoulliRBM) -> LogPartition:
    return LogPartition(exact_log_partition(rbm), 0.0, math.inf)


def test_the_annealed_likelihood_is_the_exact_one_within_its_error(data: HeldOut) -> None:
    torch.manual_seed(0)
    rbm = GaussianBernoulliRBM(16, 10, sigma=0.8)
    with torch.no_grad():
        rbm.weight.normal_(0, 0.2)
    refiner = RbmRefiner(rbm, torch.from_numpy(data.mean), torch.from_numpy(data.std))
    annealed = rbm_likelihood(refiner, data, ais_log_partition(rbm, 500, 300, torch.Generator().manual_seed(1)))
    exact = rbm_likelihood(refiner, data, exactly(rbm))
    error = annealed.metrics()["annealing_error"]
    assert 0 < error < 0.1
    assert annealed.per_image.mean() == pytest.approx(exact.per_image.mean(), abs=4 * error)
    v = refiner.standardise(torch.from_numpy(data.tokens))
    expected = -rbm.free_energy(v).mean(1).detach().numpy() - exact_log_partition(rbm)
    np.testing.assert_allclose(exact.per_image, expected, atol=1e-4)


def test_a_whitening_rbm_is_measured_in_the_units_of_the_others(store: FeatureStore, data: HeldOut) -> None:
    covariance = token_covariance(store, "train", 10_000)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values)) @ vectors.T
    # Without weights it is the standard normal of whitened units, which is the Gaussian of the training tokens.
    rbm = GaussianBernoulliRBM(16, 2, sigma=1.0)
    torch.nn.init.zeros_(rbm.weight)
    refiner = RbmRefiner(rbm, torch.from_numpy(data.mean), torch.from_numpy(root))
    measured = rbm_likelihood(refiner, data, exactly(rbm))
    np.testing.assert_allclose(measured.per_image, gaussian_likelihood(store, "train", data), rtol=1e-3)


def test_the_gaussian_is_that_of_standardised_training_tokens(store: FeatureStore, data: HeldOut) -> None:
    scale = np.outer(data.std, data.std)
    covariance = torch.from_numpy(token_covariance(store, "train", 10_000) / scale)
    v = torch.from_numpy((data.tokens.astype(np.float64) - data.mean) / data.std)
    expected = FullCovarianceGaussian(torch.zeros(16), covariance).log_prob(v.flatten(0, 1)).view(60, 5).mean(1)
    np.testing.assert_allclose(gaussian_likelihood(store, "train", data), expected.numpy(), rtol=1e-3)


@pytest.mark.parametrize(("max_tokens", "shape"), [(10_000, (60, 5)), (130, (60, 2)), (20, (20, 1))])
def test_few_tokens_are_drawn_from_many_images(store: FeatureStore, max_tokens: int, shape: tuple[int, int]) -> None:
    drawn = held_out(store, "dev", max_tokens, seed=0)
    assert drawn.tokens.shape == (*shape, 16)
    again = held_out(store, "dev", max_tokens, seed=0)
    assert (drawn.tokens == again.tokens).all()
    assert len(np.unique(drawn.tokens[..., 0])) > 0.9 * shape[0] * shape[1]


def test_every_token_drawn_is_one_of_the_store(store: FeatureStore, data: HeldOut) -> None:
    few = held_out(store, "dev", 60, seed=3)
    known = {token.tobytes() for token in data.tokens.reshape(-1, 16)}
    assert all(token.tobytes() in known for token in few.tokens.reshape(-1, 16))
