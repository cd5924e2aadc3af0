"""The partition function of an RBM: exact by enumeration, or estimated by annealed importance sampling.

    log p(v) = -F(v) - log Z

Exact: Gaussian units by summing over h, log Z = logsumexp_h [c'h + sum_i ((W h)_i b_i + (W h)_i^2 / 2) /
sigma_i^2] + (V log 2 pi + sum_i log sigma_i^2) / 2; binary units over whichever side is smaller.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch.nn import functional

from raycap.models.randomness import Randomness
from raycap.models.rbm import BernoulliRBM, GaussianBernoulliRBM, RestrictedBoltzmannMachine
from raycap.models.samplers import TemperedRBM

MAX_ENUMERATED_UNITS = 20
_STATES_AT_ONCE = 1 << 14
# Sweeps that chains make before their moments are taken for the base, or before they count as the model's.
_MOMENT_SWEEPS = 50
_BURN_IN_SWEEPS = 1000


class LogPartition(NamedTuple):
    """An estimate of log Z, in nats."""

    value: float
    standard_error: float
    """Of ``value``, by the delta method; it knows nothing of regions that no chain has seen."""
    effective_sample_size: float
    """Of the importance weights, 1 to the number of chains; near 1 the standard error means little."""


@torch.no_grad()
def exact_log_partition(rbm: RestrictedBoltzmannMachine) -> float:
    """log Z by enumeration, in nats, in double precision.

    Raises:
        ValueError: more than MAX_ENUMERATED_UNITS hidden units (for binary units: on both sides).
    """
    weight, b, c = (p.detach().double() for p in (rbm.weight, rbm.visible_bias, rbm.hidden_bias))
    if isinstance(rbm, BernoulliRBM) and rbm.num_visible < rbm.num_hidden:
        weight, b, c = weight.T, c, b
    num_units = weight.shape[1]
    if num_units > MAX_ENUMERATED_UNITS:
        raise ValueError(
            f"num_hidden ({rbm.num_hidden}): 2^{num_units} states are too many to enumerate; "
            f"use ais_log_partition above {MAX_ENUMERATED_UNITS} units"
        )
    bits = torch.arange(num_units, device=weight.device)
    totals = []
    for start in range(0, 2**num_units, _STATES_AT_ONCE):
        index = torch.arange(start, min(start + _STATES_AT_ONCE, 2**num_units), device=weight.device)
        h = ((index[:, None] >> bits) & 1).double()  # (states, units)
        shift = h @ weight.T
        if isinstance(rbm, GaussianBernoulliRBM):
            terms = ((shift * b + shift.square() / 2) / rbm.variance.double()).sum(-1)
        else:
            terms = functional.softplus(shift + b, threshold=40).sum(-1)
        totals.append(torch.logsumexp(h @ c + terms, 0))
    total = torch.logsumexp(torch.stack(totals), 0)
    if isinstance(rbm, GaussianBernoulliRBM):
        total = total + (rbm.num_visible * math.log(2 * math.pi) + rbm.variance.double().log().sum()) / 2
    return float(total)


@torch.no_grad()
def ais_log_partition(
    rbm: RestrictedBoltzmannMachine,
    num_chains: int,
    num_betas: int,
    generator: Randomness = None,
    base: TemperedRBM | None = None,
) -> LogPartition:
    """log Z by annealed importance sampling (Neal 2001; Salakhutdinov and Murray 2008).

    A stochastic lower bound: on average not above log Z. Two products a beta: the activations W'v serve
    both weights and sweep, scaled by beta.

    Args:
        num_chains: importance samples.
        num_betas: distributions on the way, evenly spaced from the base to the RBM, at least 2.
        base: path and start; by default fitted to the moments of a short Gibbs run.
    """
    return estimate(ais_log_weights(base or moment_base(rbm, num_chains, generator), num_chains, num_betas, generator))


@torch.no_grad()
def reverse_ais_log_partition(
    rbm: RestrictedBoltzmannMachine,
    num_chains: int,
    num_betas: int,
    generator: Randomness = None,
    base: TemperedRBM | None = None,
    samples: torch.Tensor | None = None,
) -> LogPartition:
    """log Z by annealing from the RBM down to the base (Burda, Grosse and Salakhutdinov 2015).

    A stochastic upper bound, if the chains start at samples of the RBM.

    Args:
        samples: of the RBM, (num_chains, V); by default 1,000 Gibbs sweeps from the base, which for an
            RBM that mixes slowly are no samples of it: then it bounds nothing.
    """
    base = base or moment_base(rbm, num_chains, generator)
    samples = burnt_in(base, num_chains, generator) if samples is None else samples
    return reverse_estimate(reverse_ais_log_weights(base, samples, num_betas, generator))


@torch.no_grad()
def ais_log_weights(
    tempered: TemperedRBM, num_chains: int, num_betas: int, generator: Randomness = None
) -> torch.Tensor:
    """log Z_base plus the log importance weights of chains from the base to the RBM: (num_chains,) float64."""
    v = tempered.base_sample(num_chains, generator)
    log_weights = torch.zeros(num_chains, dtype=torch.float64, device=v.device)
    betas = torch.linspace(0, 1, num_betas, dtype=torch.float64).tolist()
    for before, after in itertools.pairwise(betas):
        energies = tempered.energies(v)
        log_weights += tempered.free_energy_of(energies, before) - tempered.free_energy_of(energies, after)
        if after < 1:
            v = tempered.gibbs(v, after, generator, energies[2])
    return log_weights + tempered.base_log_partition().double()


@torch.no_grad()
def burnt_in(tempered: TemperedRBM, num_chains: int, generator: Randomness = None) -> torch.Tensor:
    """Where chains of the RBM stand 1,000 Gibbs sweeps after the base: (num_chains, V)."""
    return tempered.rbm.gibbs(tempered.base_sample(num_chains, generator), _BURN_IN_SWEEPS, generator)


@torch.no_grad()
def reverse_ais_log_weights(
    tempered: TemperedRBM, samples: torch.Tensor, num_betas: int, generator: Randomness = None
) -> torch.Tensor:
    """The log weights of :func:`ais_log_weights`, for chains that run from the RBM's samples to the base."""
    v = samples
    log_weights = torch.zeros(len(v), dtype=torch.float64, device=v.device)
    betas = torch.linspace(1, 0, num_betas, dtype=torch.float64).tolist()
    for before, after in itertools.pairwise(betas):
        energies = tempered.energies(v)
        log_weights += tempered.free_energy_of(energies, after) - tempered.free_energy_of(energies, before)
        if after > 0:
            v = tempered.gibbs(v, after, generator, energies[2])
    return log_weights + tempered.base_log_partition().double()


def estimate(log_weights: torch.Tensor) -> LogPartition:
    """The log of the mean weight, with its standard error and effective sample size.

    Args:
        log_weights: (num_chains,), also of several runs put together.
    """
    count = len(log_weights)
    weights = torch.softmax(log_weights.double(), 0)
    effective = float(1 / weights.square().sum())
    # Var(mean w) / (mean w)^2 = (count * sum of squared shares - 1) / (count - 1).
    relative_variance = max(count / effective - 1, 0.0) / max(count - 1, 1)
    value = float(torch.logsumexp(log_weights.double(), 0)) - math.log(count)
    return LogPartition(value, math.sqrt(relative_variance), effective)


def reverse_estimate(log_weights: torch.Tensor) -> LogPartition:
    """:func:`estimate` for :func:`reverse_ais_log_weights`, whose inverse has the mean 1 / Z."""
    down = estimate(-log_weights)
    return down._replace(value=-down.value)


@torch.no_grad()
def moment_base(rbm: RestrictedBoltzmannMachine, num_chains: int, generator: Randomness = None) -> TemperedRBM:
    """A base with the mean and the variance of each unit in a short run of the RBM's own chains.

    Any base is right; one that lies near the RBM needs fewer betas.
    """
    v = rbm.sample(max(num_chains, 64), _MOMENT_SWEEPS, generator)
    mean = v.mean(0)
    if isinstance(rbm, GaussianBernoulliRBM):
        return TemperedRBM(rbm, mean, v.std(0).clamp(min=1e-3))
    mean = mean.clamp(0.02, 0.98)
    return TemperedRBM(rbm, torch.logit(mean))
