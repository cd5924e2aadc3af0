"""log Z: exact against quadrature and enumeration, estimates against exact."""

from __future__ import annotations

import math

import pytest
import torch
from exact_rbm import all_states, exact_samples, log_partition, random_bernoulli_rbm, random_rbm

from raycap.models.partition import (
    LogPartition,
    ais_log_partition,
    ais_log_weights,
    estimate,
    exact_log_partition,
    reverse_ais_log_partition,
    reverse_ais_log_weights,
)
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.samplers import TemperedRBM


@pytest.mark.parametrize("num_hidden", [1, 5, 15])
def test_exact_is_the_sum_over_all_hidden_states(num_hidden: int) -> None:
    rbm = random_rbm(4, num_hidden)
    assert exact_log_partition(rbm) == pytest.approx(float(log_partition(rbm).detach()), abs=1e-9)


@pytest.mark.parametrize(("num_visible", "num_hidden"), [(3, 7), (7, 3)])
def test_exact_of_a_bernoulli_rbm_is_the_sum_over_both_sides(num_visible: int, num_hidden: int) -> None:
    rbm = random_bernoulli_rbm(num_visible, num_hidden)
    energies = rbm.energy(all_states(num_visible)[:, None], all_states(num_hidden)[None])
    assert exact_log_partition(rbm) == pytest.approx(float(torch.logsumexp(-energies.flatten(), 0).detach()), abs=1e-9)


def test_without_weights_log_z_is_the_product_of_its_units() -> None:
    rbm = random_rbm(5, 6)
    with torch.no_grad():
        rbm.weight.zero_()
        units = torch.logaddexp(rbm.hidden_bias, torch.zeros(6).double()).sum()
        expected = (5 * math.log(2 * math.pi) + rbm.log_variance.sum()) / 2 + units
    assert exact_log_partition(rbm) == pytest.approx(float(expected), abs=1e-10)
    # Annealing has nothing to do where the base is the RBM up to its hidden units.
    assert ais_log_partition(rbm, 200, 50).value == pytest.approx(float(expected), abs=0.2)


def test_too_many_units_to_enumerate_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_hidden \(21\).*ais_log_partition"):
        exact_log_partition(GaussianBernoulliRBM(3, 21))


def _within(estimated: LogPartition, exact: float, errors: float = 4.0) -> bool:
    return abs(estimated.value - exact) <= errors * estimated.standard_error


@pytest.mark.parametrize("seed", range(3))
def test_ais_and_reverse_ais_enclose_the_exact_value_of_a_gaussian_rbm(seed: int) -> None:
    rbm, generator = random_rbm(5, 8, seed=seed), torch.Generator().manual_seed(seed)
    exact = exact_log_partition(rbm)
    below = ais_log_partition(rbm, 400, 300, generator)
    above = reverse_ais_log_partition(rbm, 400, 300, generator, samples=exact_samples(rbm, 400, generator))
    assert below.value - 4 * below.standard_error <= exact <= above.value + 4 * above.standard_error
    assert _within(below, exact)
    assert _within(above, exact)
    assert 0 < below.standard_error < 0.1
    assert below.effective_sample_size > 100


def test_ais_and_reverse_ais_enclose_the_exact_value_of_a_bernoulli_rbm() -> None:
    rbm, generator = random_bernoulli_rbm(8, 6), torch.Generator().manual_seed(0)
    exact = exact_log_partition(rbm)
    assert _within(ais_log_partition(rbm, 400, 300, generator), exact)
    assert _within(reverse_ais_log_partition(rbm, 400, 300, generator), exact)


def test_on_average_ais_lies_below_and_reverse_ais_above() -> None:
    """Few betas from a far base make the bounds wide; one weight a run is biased the way it must be."""
    rbm, generator = random_rbm(6, 8, seed=5), torch.Generator().manual_seed(0)
    base = TemperedRBM(rbm, std=torch.full((6,), 3.0).double())
    exact = exact_log_partition(rbm)
    below = ais_log_weights(base, 500, 4, generator)
    above = reverse_ais_log_weights(base, exact_samples(rbm, 500, generator), 4, generator)
    assert below.mean() + 4 * below.std() / 500**0.5 < exact < above.mean() - 4 * above.std() / 500**0.5


def test_the_standard_error_is_that_of_repeated_estimates() -> None:
    generator = torch.Generator().manual_seed(0)
    log_weights = torch.empty(300, 500, dtype=torch.float64).normal_(0, 0.7, generator=generator)
    estimates = [estimate(row) for row in log_weights]
    spread = torch.tensor([e.value for e in estimates]).std()
    assert sum(e.standard_error for e in estimates) / 300 == pytest.approx(float(spread), rel=0.15)
    # Of a log-normal weight: n / exp(variance).
    assert sum(e.effective_sample_size for e in estimates) / 300 == pytest.approx(500 / math.exp(0.49), rel=0.1)
