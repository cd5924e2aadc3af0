"""Samplers keep the RBM's distribution, and their numbers belong to the chain, not to the worker."""

from __future__ import annotations

import torch
from exact_rbm import (
    all_states,
    assert_moments_within_errors,
    exact_samples,
    random_bernoulli_rbm,
    random_rbm,
)

from raycap.models.randomness import GROUP_ROWS, KeyedGenerator
from raycap.models.samplers import (
    ContrastiveDivergence,
    ParallelTempering,
    PersistentContrastiveDivergence,
    TemperedRBM,
)

COUNT = 40_000


def test_gibbs_chains_started_at_exact_samples_keep_the_exact_moments() -> None:
    rbm, generator = random_rbm(3, 3, seed=2), torch.Generator().manual_seed(0)
    with torch.no_grad():
        v = rbm.gibbs(exact_samples(rbm, COUNT, generator), 5, generator)
    assert_moments_within_errors(rbm, v)


def test_parallel_tempering_started_at_exact_samples_keeps_the_exact_moments() -> None:
    """Every temperature starts in its own equilibrium: any wrong sweep or swap would move the coldest."""
    rbm, generator = random_rbm(3, 3, seed=2), torch.Generator().manual_seed(0)
    sampler = ParallelTempering(KeyedGenerator(1), num_temperatures=4)
    tempered = TemperedRBM(rbm)
    with torch.no_grad():
        levels = []
        for beta in torch.linspace(0, 1, 4).tolist():
            v = tempered.base_sample(COUNT, generator) if beta < 1 else exact_samples(rbm, COUNT, generator)
            for _ in range(60 if 0 < beta < 1 else 0):  # short of exact samples in between: a long run
                v = tempered.gibbs(v, beta, generator)
            levels.append(v)
        sampler.chains = torch.stack(levels)
        for _ in range(6):
            v = sampler.draw(rbm, levels[-1])
    assert_moments_within_errors(rbm, v)


def test_parallel_tempering_reaches_a_mode_that_plain_chains_never_do() -> None:
    rbm = random_rbm(2, 1)
    with torch.no_grad():  # two modes of equal weight, 12 standard deviations apart
        rbm.log_variance.fill_(-1.4)
        rbm.visible_bias.copy_(torch.tensor([-3.0, 0.0]))
        rbm.weight.copy_(torch.tensor([[6.0], [0.0]]))
        variance = rbm.variance[0]
        rbm.hidden_bias.fill_(float(-(6.0 * -3.0 + 18.0) / variance))
        start = torch.tensor([[-3.0, 0.0]], dtype=torch.float64).expand(512, 2)
        plain = PersistentContrastiveDivergence(KeyedGenerator(0))
        tempering = ParallelTempering(KeyedGenerator(0), num_temperatures=10)
        for _ in range(150):
            stuck, moved = plain.draw(rbm, start), tempering.draw(rbm, start)
    assert (stuck[:, 0] > 0).double().mean() < 0.02
    assert 0.35 < (moved[:, 0] > 0).double().mean() < 0.65


def test_the_path_begins_at_the_base_and_ends_at_the_rbm() -> None:
    rbm = random_rbm(3, 4)
    tempered = TemperedRBM(rbm, mean=torch.full((3,), 0.3).double(), std=torch.full((3,), 1.7).double())
    v = torch.randn(7, 3, dtype=torch.float64)
    base = torch.distributions.Normal(tempered.mean, torch.full((3,), 1.7).double())
    assert torch.allclose(-tempered.free_energy(v, 0.0) - tempered.base_log_partition(), base.log_prob(v).sum(-1))
    assert torch.allclose(tempered.free_energy(v, 1.0), rbm.free_energy(v), atol=1e-12)


def test_a_tempered_sweep_keeps_a_bernoulli_rbm_s_tempered_distribution() -> None:
    rbm, beta = random_bernoulli_rbm(3, 4), 0.6
    tempered = TemperedRBM(rbm, mean=torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64))
    states, generator = all_states(3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        exact = torch.softmax(-tempered.free_energy(states, beta), 0)
        v = states[torch.multinomial(exact, COUNT, replacement=True, generator=generator)]
        for _ in range(3):
            v = tempered.gibbs(v, beta, generator)
    index = (v @ torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)).long()
    shares = torch.bincount(index, minlength=8) / COUNT
    error = (exact * (1 - exact) / COUNT).sqrt()
    assert ((shares - exact).abs() < 4 * error).all()


def test_a_chain_s_numbers_do_not_depend_on_who_owns_it() -> None:
    rbm = random_rbm(4, 3)
    data = torch.randn(4 * GROUP_ROWS, 4, dtype=torch.float64)
    kinds = (ContrastiveDivergence, PersistentContrastiveDivergence, ParallelTempering)
    for kind in kinds:
        with torch.no_grad():
            whole = kind(KeyedGenerator(7), 2)
            halves = [kind(KeyedGenerator(7, rank * 2 * GROUP_ROWS), 2) for rank in range(2)]
            for _ in range(3):
                together = whole.draw(rbm, data)
                apart = torch.cat([half.draw(rbm, part) for half, part in zip(halves, data.chunk(2), strict=True)])
        assert torch.equal(together, apart), kind.__name__


def test_a_sampler_goes_on_where_its_state_was_taken() -> None:
    rbm, data = random_rbm(4, 3), torch.randn(32, 4, dtype=torch.float64)
    for kind in (ContrastiveDivergence, PersistentContrastiveDivergence, ParallelTempering):
        with torch.no_grad():
            first = kind(KeyedGenerator(3))
            for _ in range(3):
                first.draw(rbm, data)
            second = kind(KeyedGenerator(3))
            second.load_state(first.state(), torch.device("cpu"))
            assert torch.equal(first.draw(rbm, data), second.draw(rbm, data)), kind.__name__
