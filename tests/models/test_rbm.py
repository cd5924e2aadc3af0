"""The RBM against independent oracles: enumeration, quadrature, autograd, exact moments."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.losses import contrastive_divergence
from raycap.models.rbm import GaussianBernoulliRBM


def random_rbm(num_visible: int, num_hidden: int, seed: int = 0, learn_variance: bool = True) -> GaussianBernoulliRBM:
    torch.manual_seed(seed)
    rbm = GaussianBernoulliRBM(num_visible, num_hidden, sigma=0.7, learn_variance=learn_variance).double()
    with torch.no_grad():
        for parameter in (rbm.weight, rbm.visible_bias, rbm.hidden_bias):
            parameter.normal_(0, 0.6)
        rbm.log_variance.uniform_(-1.0, 0.3)
    return rbm


def all_hidden(num_hidden: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_hidden)), dtype=torch.float64)


def log_partition_by_mixture(rbm: GaussianBernoulliRBM) -> torch.Tensor:
    """log Z as the log of a sum of 2^H Gaussian integrals, written without the RBM's own methods."""
    h = all_hidden(rbm.num_hidden)
    shift, variance = h @ rbm.weight.T, rbm.log_variance.exp()
    terms = h @ rbm.hidden_bias + ((shift * rbm.visible_bias + shift.square() / 2) / variance).sum(-1)
    return torch.logsumexp(terms, 0) + (rbm.num_visible * math.log(2 * math.pi) + rbm.log_variance.sum()) / 2


def test_log_partition_equals_numerical_quadrature() -> None:
    rbm = random_rbm(3, 4)
    grid = np.linspace(-9, 9, 181)
    v = torch.from_numpy(np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), -1).reshape(-1, 3))
    with torch.no_grad():
        integral = torch.logsumexp(-rbm.free_energy(v), 0) + 3 * math.log(grid[1] - grid[0])
    assert torch.allclose(integral, log_partition_by_mixture(rbm), atol=1e-6)


def test_free_energy_is_the_sum_over_hidden_states() -> None:
    rbm, h = random_rbm(5, 6), all_hidden(6)
    v = torch.randn(7, 5, dtype=torch.float64) * 3
    by_enumeration = -torch.logsumexp(-rbm.energy(v[:, None], h[None]), 1)
    assert torch.allclose(rbm.free_energy(v), by_enumeration, atol=1e-10)


def test_hidden_probability_and_visible_mean_are_the_conditionals_of_the_energy() -> None:
    rbm, h = random_rbm(4, 3), all_hidden(3)
    v = torch.randn(6, 4, dtype=torch.float64)
    posterior = torch.softmax(-rbm.energy(v[:, None], h[None]), 1)  # (6, 8)
    assert torch.allclose(rbm.hidden_probability(v), posterior @ h, atol=1e-12)
    # The energy's gradient in v vanishes at the conditional's mean.
    mean = rbm.visible_mean(h).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(rbm.energy(mean, h).sum(), mean)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("learn_variance", [False, True])
def test_the_loss_gradient_is_the_contrastive_divergence_update(learn_variance: bool) -> None:
    rbm = random_rbm(5, 4, learn_variance=learn_variance)
    data, negatives = torch.randn(8, 5, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    loss = contrastive_divergence(rbm.free_energy(data), rbm.free_energy(negatives))
    loss.backward()
    z, b, weight = rbm.log_variance.detach(), rbm.visible_bias.detach(), rbm.weight.detach()

    def statistics(v: torch.Tensor) -> dict[str, torch.Tensor]:
        p, scaled = rbm.hidden_probability(v).detach(), v / z.exp()
        return {
            "weight": scaled.T @ p / len(v),
            "visible_bias": ((v - b) / z.exp()).mean(0),
            "hidden_bias": p.mean(0),
            "log_variance": ((v - b).square() / (2 * z.exp()) - scaled * (p @ weight.T)).mean(0),
        }

    positive, negative = statistics(data), statistics(negatives)
    for name in ("weight", "visible_bias", "hidden_bias", *(["log_variance"] if learn_variance else [])):
        gradient = getattr(rbm, name).grad
        assert torch.allclose(-gradient, positive[name] - negative[name], atol=1e-12), name
    assert learn_variance or rbm.log_variance.grad is None


def test_gibbs_sampling_keeps_the_exact_distribution() -> None:
    rbm, h = random_rbm(3, 3, seed=2), all_hidden(3)
    generator = torch.Generator().manual_seed(0)
    variance = rbm.log_variance.exp()
    with torch.no_grad():
        shift = h @ rbm.weight.T
        terms = h @ rbm.hidden_bias + ((shift * rbm.visible_bias + shift.square() / 2) / variance).sum(-1)
        mixture = torch.softmax(terms, 0)
        count = 60_000
        states = h[torch.multinomial(mixture, count, replacement=True, generator=generator)]
        noise = torch.empty(count, 3, dtype=torch.float64).normal_(generator=generator)
        v = rbm.gibbs(rbm.visible_mean(states) + noise * variance.sqrt(), steps=5, generator=generator)
        means = rbm.visible_mean(h)
        exact_mean = mixture @ means
        exact_square = mixture @ (means.square() + variance)
    for sample, exact in ((v, exact_mean), (v.square(), exact_square)):
        error = sample.std(0) / math.sqrt(count)
        assert ((sample.mean(0) - exact).abs() < 4 * error).all()


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
