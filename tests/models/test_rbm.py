"""The RBM against independent oracles: enumeration, quadrature, autograd, exact moments."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from exact_rbm import all_states, exact_moments, log_likelihood, log_partition, random_bernoulli_rbm, random_rbm
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.models.rbm import BernoulliRBM, GaussianBernoulliRBM


def test_log_partition_equals_numerical_quadrature() -> None:
    rbm = random_rbm(3, 4)
    grid = np.linspace(-9, 9, 181)
    v = torch.from_numpy(np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), -1).reshape(-1, 3))
    with torch.no_grad():
        integral = torch.logsumexp(-rbm.free_energy(v), 0) + 3 * math.log(grid[1] - grid[0])
    assert torch.allclose(integral, log_partition(rbm), atol=1e-6)


def test_the_marginal_is_a_mixture_of_gaussians() -> None:
    rbm = random_rbm(4, 5)
    v = torch.randn(20, 4, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(-rbm.free_energy(v) - log_partition(rbm), log_likelihood(rbm, v), atol=1e-10)


def test_the_likelihood_gradient_is_data_minus_model_statistics() -> None:
    """Exact model statistics from the mixture's moments; exact gradient by autograd through log Z."""
    rbm = random_rbm(3, 4)
    data = torch.randn(6, 3, dtype=torch.float64)
    log_likelihood(rbm, data).mean().backward()
    with torch.no_grad():
        h, variance, b, weight = all_states(4), rbm.log_variance.exp(), rbm.visible_bias, rbm.weight
        shift = h @ weight.T
        terms = h @ rbm.hidden_bias + ((shift * b + shift.square() / 2) / variance).sum(-1)
        weights = torch.softmax(terms, 0)
        means = b + shift
        p = rbm.hidden_probability(data)
        mean_v, second = exact_moments(rbm)
        scaled = data / variance
        joint = (weights[:, None] * means).T @ h  # E[v h']
        expected = {
            "weight": scaled.T @ p / len(data) - joint / variance[:, None],
            "visible_bias": (data.mean(0) - mean_v) / variance,
            "hidden_bias": p.mean(0) - weights @ h,
            "log_variance": ((data - b).square() / (2 * variance) - scaled * (p @ weight.T)).mean(0)
            - ((second.diagonal() - 2 * b * mean_v + b.square()) / (2 * variance) - (weight * joint).sum(1) / variance),
        }
    for name, statistics in expected.items():
        assert torch.allclose(getattr(rbm, name).grad, statistics, atol=1e-12), name


def test_free_energy_is_the_sum_over_hidden_states() -> None:
    rbm, h = random_rbm(5, 6), all_states(6)
    v = torch.randn(7, 5, dtype=torch.float64) * 3
    by_enumeration = -torch.logsumexp(-rbm.energy(v[:, None], h[None]), 1)
    assert torch.allclose(rbm.free_energy(v), by_enumeration, atol=1e-10)


def test_hidden_probability_and_visible_mean_are_the_conditionals_of_the_energy() -> None:
    rbm, h = random_rbm(4, 3), all_states(3)
    v = torch.randn(6, 4, dtype=torch.float64)
    posterior = torch.softmax(-rbm.energy(v[:, None], h[None]), 1)  # (6, 8)
    assert torch.allclose(rbm.hidden_probability(v), posterior @ h, atol=1e-12)
    # The energy's gradient in v vanishes at the conditional's mean.
    mean = rbm.visible_mean(h).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(rbm.energy(mean, h).sum(), mean)
    assert gradient.abs().max() < 1e-12


def test_fixed_sigma_is_a_unit_sigma_rbm_on_scaled_data() -> None:
    rbm = random_rbm(4, 3)
    sigma = rbm.log_variance.detach().exp().sqrt()
    unit = GaussianBernoulliRBM(4, 3).double()
    with torch.no_grad():
        unit.weight.copy_(rbm.weight / sigma[:, None])
        unit.visible_bias.copy_(rbm.visible_bias / sigma)
        unit.hidden_bias.copy_(rbm.hidden_bias)
    v = torch.randn(9, 4, dtype=torch.float64)
    assert torch.allclose(unit.free_energy(v / sigma), rbm.free_energy(v), atol=1e-12)
    assert torch.allclose(unit.hidden_probability(v / sigma), rbm.hidden_probability(v), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10_000), st.floats(0.1, 4.0))
def test_a_pass_is_a_tweedie_step_and_free_energy_never_rises(v: int, h: int, seed: int, scale: float) -> None:
    rbm = random_rbm(v, h, seed)
    x = (torch.randn(5, v, dtype=torch.float64) * scale).requires_grad_()
    (gradient,) = torch.autograd.grad(rbm.free_energy(x).sum(), x)
    with torch.no_grad():
        assert torch.allclose(rbm.reconstruct(x), x - rbm.variance * gradient, atol=1e-9)
        energies = [rbm.free_energy(rbm.reconstruct(x, passes=n)) for n in range(1, 5)]
        assert all(
            (after <= before + 1e-9).all() for before, after in itertools.pairwise([rbm.free_energy(x), *energies])
        )


def test_gate_zero_returns_the_very_same_tensor_and_half_is_half_way() -> None:
    rbm = random_rbm(4, 3)
    v = torch.randn(5, 4, dtype=torch.float64)
    assert rbm.reconstruct(v, gate=0.0) is v
    assert torch.allclose(rbm.reconstruct(v, gate=0.5), (v + rbm.reconstruct(v)) / 2, atol=1e-12)


def test_a_bernoulli_rbm_s_conditionals_and_free_energy_follow_from_its_energy() -> None:
    rbm, v, h = random_bernoulli_rbm(4, 3), all_states(4), all_states(3)
    with torch.no_grad():
        energies = rbm.energy(v[:, None], h[None])  # (16, 8)
        assert torch.allclose(rbm.free_energy(v), -torch.logsumexp(-energies, 1), atol=1e-12)
        assert torch.allclose(rbm.hidden_probability(v), torch.softmax(-energies, 1) @ h, atol=1e-12)
        assert torch.allclose(rbm.visible_mean(h), torch.softmax(-energies, 0).T @ v, atol=1e-12)


def test_krizhevsky_s_form_has_the_same_free_energy_differences_and_comes_back() -> None:
    rbm = random_rbm(4, 3)
    form = rbm.to_krizhevsky()
    v = torch.randn(9, 4, dtype=torch.float64)
    activation = (v / form["sigma"]) @ form["weight"] + form["hidden_bias"]
    quadratic = ((v - form["visible_bias"]) / form["sigma"]).square().sum(-1) / 2
    assert torch.allclose(quadratic - torch.log1p(activation.exp()).sum(-1), rbm.free_energy(v), atol=1e-10)
    again = GaussianBernoulliRBM.from_krizhevsky(**form)
    for name, parameter in rbm.named_parameters():
        assert torch.allclose(getattr(again, name), parameter, atol=1e-12), name


def test_scikit_learn_s_rbm_gives_the_same_probabilities_and_comes_back() -> None:
    from sklearn.neural_network import BernoulliRBM as SklearnRBM

    data = (np.random.default_rng(0).random((50, 6)) < 0.3).astype(np.float64)
    theirs = SklearnRBM(n_components=4, n_iter=3, random_state=0).fit(data)
    ours = BernoulliRBM.from_sklearn(theirs).double()
    v = torch.from_numpy(data)
    np.testing.assert_allclose(ours.hidden_probability(v).detach().numpy(), theirs.transform(data), atol=1e-6)
    np.testing.assert_allclose(ours.free_energy(v).detach().numpy(), theirs._free_energy(data), atol=1e-5)
    np.testing.assert_allclose(ours.to_sklearn().transform(data), theirs.transform(data), atol=1e-6)


def test_products_cast_within_do_not_outlast_the_block() -> None:
    torch.manual_seed(0)
    rbm = GaussianBernoulliRBM(64, 32)
    v = torch.randn(8, 64)
    exact = rbm.hidden_probability(v)
    with rbm.cast_products(torch.bfloat16):
        assert not torch.equal(rbm.hidden_probability(v), exact)
        assert torch.allclose(rbm.hidden_probability(v), exact, atol=1e-2)
    assert torch.equal(rbm.hidden_probability(v), exact)


def test_a_learned_sigma_stays_within_its_bounds() -> None:
    rbm = GaussianBernoulliRBM(2, 2, learn_variance=True, sigma_bounds=(0.5, 2.0))
    with torch.no_grad():
        rbm.log_variance.copy_(torch.tensor([-50.0, 50.0]))
    assert torch.allclose(rbm.variance, torch.tensor([0.25, 4.0]))


@pytest.mark.parametrize("arguments", [{"num_visible": 0}, {"sigma": 0.0}, {"sigma": 9.0, "learn_variance": True}])
def test_impossible_settings_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(arguments)))):
        GaussianBernoulliRBM(**{"num_visible": 3, "num_hidden": 2, **arguments})  # type: ignore[arg-type]


def test_products_in_bf16_change_the_free_energy_little() -> None:
    torch.manual_seed(0)
    rbm = GaussianBernoulliRBM(64, 128)
    v = torch.randn(32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        approximate = rbm.free_energy(v)
    assert approximate.dtype == torch.float32
    assert torch.allclose(approximate, rbm.free_energy(v), rtol=1e-2)
