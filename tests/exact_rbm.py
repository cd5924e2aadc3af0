"""Small RBMs and what is exactly true of them, written from the energy alone, without the RBM's own methods."""

from __future__ import annotations

import itertools
import math

import torch

from raycap.models.rbm import BernoulliRBM, GaussianBernoulliRBM


def random_rbm(num_visible: int, num_hidden: int, seed: int = 0, learn_variance: bool = True) -> GaussianBernoulliRBM:
    torch.manual_seed(seed)
    rbm = GaussianBernoulliRBM(num_visible, num_hidden, sigma=0.7, learn_variance=learn_variance).double()
    with torch.no_grad():
        for parameter in (rbm.weight, rbm.visible_bias, rbm.hidden_bias):
            parameter.normal_(0, 0.6)
        rbm.log_variance.uniform_(-1.0, 0.3)
    return rbm


def random_bernoulli_rbm(num_visible: int, num_hidden: int, seed: int = 0) -> BernoulliRBM:
    torch.manual_seed(seed)
    rbm = BernoulliRBM(num_visible, num_hidden).double()
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.normal_(0, 0.8)
    return rbm


def all_states(num_units: int) -> torch.Tensor:
    """(2^num_units, num_units) of 0.0 and 1.0."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_units)), dtype=torch.float64)


def mixture(rbm: GaussianBernoulliRBM) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The marginal of v as a mixture of 2^H Gaussians: log of the unnormalised weights (2^H,), means (2^H, V),
    variance (V,)."""
    h = all_states(rbm.num_hidden)
    shift, variance = h @ rbm.weight.T, rbm.log_variance.exp()
    terms = h @ rbm.hidden_bias + ((shift * rbm.visible_bias + shift.square() / 2) / variance).sum(-1)
    volume = (rbm.num_visible * math.log(2 * math.pi) + rbm.log_variance.sum()) / 2
    return terms + volume, rbm.visible_bias + shift, variance


def log_partition(rbm: GaussianBernoulliRBM) -> torch.Tensor:
    return torch.logsumexp(mixture(rbm)[0], 0)


def log_likelihood(rbm: GaussianBernoulliRBM, v: torch.Tensor) -> torch.Tensor:
    """log p(v) of (B, V) under the mixture: (B,)."""
    log_weights, means, variance = mixture(rbm)
    normal = torch.distributions.Normal(means, variance.sqrt())
    return torch.logsumexp(torch.log_softmax(log_weights, 0) + normal.log_prob(v[:, None]).sum(-1), 1)


@torch.no_grad()
def exact_samples(rbm: GaussianBernoulliRBM, count: int, generator: torch.Generator) -> torch.Tensor:
    """Independent samples of v, (count, V)."""
    log_weights, means, variance = mixture(rbm)
    component = torch.multinomial(torch.softmax(log_weights, 0), count, replacement=True, generator=generator)
    noise = torch.empty(count, rbm.num_visible, dtype=torch.float64).normal_(generator=generator)
    return means[component] + noise * variance.sqrt()


@torch.no_grad()
def exact_moments(rbm: GaussianBernoulliRBM) -> tuple[torch.Tensor, torch.Tensor]:
    """E[v] and E[v v'], (V,) and (V, V)."""
    log_weights, means, variance = mixture(rbm)
    weights = torch.softmax(log_weights, 0)
    return weights @ means, means.T @ (weights[:, None] * means) + torch.diag(variance)


def assert_moments_within_errors(rbm: GaussianBernoulliRBM, v: torch.Tensor, errors: float = 4.0) -> None:
    """Independent chains' moments lie within so many Monte-Carlo standard errors of the exact ones."""
    mean, second = exact_moments(rbm)
    products = v[:, :, None] * v[:, None, :]
    for sample, exact in ((v, mean), (products, second)):
        error = sample.std(0) / math.sqrt(len(v))
        assert ((sample.mean(0) - exact).abs() < errors * error).all()
