"""Negatives for training an RBM: contrastive divergence, persistent chains, parallel tempering.

Shapes: B chains, V visible units, H hidden units, T temperatures. A sampler keeps its chains from call
to call; they belong to the worker that owns it.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from raycap.models.randomness import KeyedGenerator, normal_like, toss, uniform_like
from raycap.models.rbm import BernoulliRBM, GaussianBernoulliRBM, RestrictedBoltzmannMachine


class ContrastiveDivergence:
    """CD-k: chains start at the data (Hinton 2002).

    Args:
        generator: keyed by (seed, chain, step).
        gibbs_steps: k.
    """

    def __init__(self, generator: KeyedGenerator, gibbs_steps: int = 1) -> None:
        self.generator, self.gibbs_steps = generator, gibbs_steps
        self.chains: torch.Tensor | None = None
        self.step = 0

    def draw(
        self, rbm: RestrictedBoltzmannMachine, data: torch.Tensor, hidden_probability: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Negatives for a batch of data.

        Args:
            data: (B, V).
            hidden_probability: p(h | data), (B, H), if it is known already.

        Returns:
            (B, V).
        """
        self.generator.start_step(self.step)
        self.step += 1
        return rbm.gibbs(data, self.gibbs_steps, self.generator, hidden_probability)

    def state(self) -> dict[str, torch.Tensor | int | None]:
        """What a checkpoint must keep: the chains and the number of the next step."""
        return {"chains": self.chains, "step": self.step}

    def load_state(self, state: dict[str, torch.Tensor | int | None], device: torch.device) -> None:
        chains, step = state["chains"], state["step"]
        assert isinstance(step, int)
        self.step = step
        self.chains = chains.to(device) if isinstance(chains, torch.Tensor) else None


class PersistentContrastiveDivergence(ContrastiveDivergence):
    """PCD-k: each chain goes on where it stood (Tieleman 2008); it begins at the first batch's data."""

    def draw(
        self, rbm: RestrictedBoltzmannMachine, data: torch.Tensor, hidden_probability: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.generator.start_step(self.step)
        self.step += 1
        start = self.chains
        if start is None:
            start = data
        else:
            hidden_probability = None
        self.chains = rbm.gibbs(start, self.gibbs_steps, self.generator, hidden_probability)
        return self.chains


class ParallelTempering(ContrastiveDivergence):
    """Chains at T temperatures that swap their states; the coldest ones are the negatives.

    Desjardins et al. (2010, "Tempered Markov chain Monte Carlo for training of restricted Boltzmann
    machines"), but tempered towards a base distribution, since beta -> 0 alone has infinite variance
    for Gaussian units; see :class:`TemperedRBM`. Each step: ``gibbs_steps`` sweeps at every
    temperature, then a swap of neighbours, even and odd pairs in turn.

    Args:
        num_temperatures: T, at least 2, evenly spaced from 0 to 1.
    """

    def __init__(self, generator: KeyedGenerator, gibbs_steps: int = 1, num_temperatures: int = 8) -> None:
        super().__init__(generator, gibbs_steps)
        self.num_temperatures = num_temperatures

    def draw(
        self,
        rbm: RestrictedBoltzmannMachine,
        data: torch.Tensor,
        hidden_probability: torch.Tensor | None = None,  # noqa: ARG002 - the chains do not start at the data
    ) -> torch.Tensor:
        self.generator.start_step(self.step)
        if self.chains is None:
            self.chains = data.expand(self.num_temperatures, *data.shape).clone()  # (T, B, V)
        betas = torch.linspace(0, 1, self.num_temperatures, dtype=data.dtype, device=data.device)
        tempered = TemperedRBM(rbm)
        # One row a chain: a chain's numbers follow it, whichever worker owns it.
        chains = self.chains.transpose(0, 1)  # (B, T, V)
        for _ in range(self.gibbs_steps):
            chains = tempered.gibbs(chains, betas, self.generator)
        self.chains = self._swap(tempered, chains, betas).transpose(0, 1)
        self.step += 1
        return self.chains[-1]

    def _swap(self, tempered: TemperedRBM, chains: torch.Tensor, betas: torch.Tensor) -> torch.Tensor:
        """Exchange the states of neighbours by Metropolis' rule on the free energies, (B, T, V)."""
        low = torch.arange(self.step % 2, len(betas) - 1, 2, device=chains.device)
        high = low + 1
        energies = tempered.free_energy(chains[:, :, None], betas)  # (B, T states, T temperatures)
        gain = energies[:, low, low] + energies[:, high, high] - energies[:, low, high] - energies[:, high, low]
        accepted = uniform_like(gain, self.generator).log() < gain  # (B, pairs)
        order = torch.arange(len(betas), device=chains.device).repeat(len(chains), 1)  # (B, T)
        order[:, low] = torch.where(accepted, high, low)
        order[:, high] = torch.where(accepted, low, high)
        return chains.gather(1, order[:, :, None].expand_as(chains))


class TemperedRBM:
    """The path p_beta(v) from a base without hidden interaction (beta 0) to the RBM (beta 1).

    Gaussian units, with a_j = c_j + (W'(v / sigma^2))_j:

        F_beta(v) = beta E_visible(v) + (1 - beta) E_base(v) - sum_j softplus(beta a_j)

    E_base is the energy of Normal(mean, std^2); with beta alone the variance would grow without bound.
    Binary units: E_base is that of independent units with the logits ``mean``. The hidden units of the
    base are fair coins, so that log Z_0 = log Z_base + H log 2 (Salakhutdinov and Murray 2008, eq. 13).

    Args:
        rbm: the end of the path.
        mean: (V,) of the base (logits for binary units); zeros by default.
        std: (V,) of the base; ones by default.
    """

    def __init__(
        self, rbm: RestrictedBoltzmannMachine, mean: torch.Tensor | None = None, std: torch.Tensor | None = None
    ) -> None:
        self.rbm = rbm
        like = rbm.visible_bias.detach()
        self.mean = torch.zeros_like(like) if mean is None else mean
        self.precision = torch.ones_like(like) if std is None else std.pow(-2)

    def to(self, device: torch.device) -> TemperedRBM:
        """The same path on a device; the RBM itself is moved there."""
        return TemperedRBM(self.rbm.to(device), self.mean.to(device), self.precision.to(device).rsqrt())

    def base_log_partition(self) -> torch.Tensor:
        """log Z at beta 0."""
        hidden = self.rbm.num_hidden * math.log(2)
        if isinstance(self.rbm, BernoulliRBM):
            return functional.softplus(self.mean).sum() + hidden
        return (self.rbm.num_visible * math.log(2 * math.pi) - self.precision.log().sum()) / 2 + hidden

    def base_sample(self, num_samples: int, generator: KeyedGenerator | torch.Generator | None) -> torch.Tensor:
        """(num_samples, V) at beta 0."""
        like = self.mean.expand(num_samples, -1)
        if isinstance(self.rbm, BernoulliRBM):
            return toss(torch.sigmoid(like), generator)
        return torch.addcdiv(like, normal_like(like, generator), self.precision.sqrt())

    def base_energy(self, v: torch.Tensor) -> torch.Tensor:
        """E_base of (..., V): (...)."""
        if isinstance(self.rbm, BernoulliRBM):
            return -(v @ self.mean)
        return ((v - self.mean).square() * self.precision).sum(-1) / 2

    def energies(self, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What F at every beta is made of: E_visible (...), E_base (...), activations (..., H)."""
        return self.rbm.visible_energy(v), self.base_energy(v), self.rbm.hidden_activation(v)

    def free_energy(self, v: torch.Tensor, beta: torch.Tensor | float) -> torch.Tensor:
        """F_beta of (..., V), beta broadcast to (...)."""
        return self.free_energy_of(self.energies(v), beta)

    @staticmethod
    def free_energy_of(
        energies: tuple[torch.Tensor, torch.Tensor, torch.Tensor], beta: torch.Tensor | float
    ) -> torch.Tensor:
        """F_beta from :meth:`energies`, without another product."""
        visible, base, activation = energies
        beta = torch.as_tensor(beta, dtype=visible.dtype, device=visible.device)
        softplus = functional.softplus(beta[..., None] * activation, threshold=40).sum(-1)
        return beta * visible + (1 - beta) * base - softplus

    def gibbs(
        self,
        v: torch.Tensor,
        beta: torch.Tensor | float,
        generator: KeyedGenerator | torch.Generator | None = None,
        activation: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One sweep that leaves p_beta as it is.

        Args:
            v: (..., V).
            beta: broadcast to (...).
            activation: of v, (..., H), if it is known already.
        """
        rbm = self.rbm
        beta = torch.as_tensor(beta, dtype=v.dtype, device=v.device)[..., None]
        probability = torch.sigmoid(beta * (rbm.hidden_activation(v) if activation is None else activation))
        hidden = toss(probability, generator)
        if isinstance(rbm, GaussianBernoulliRBM):
            own = beta / rbm.variance  # (..., V), as all below
            precision = own + (1 - beta) * self.precision
            mean = (own * rbm.visible_mean(hidden) + (1 - beta) * self.precision * self.mean) / precision
            return torch.addcdiv(mean, normal_like(mean, generator), precision.sqrt())
        assert isinstance(rbm, BernoulliRBM)
        logits = beta * rbm.visible_logit(hidden) + (1 - beta) * self.mean
        return toss(torch.sigmoid(logits), generator)
