"""The Gaussian-Bernoulli Restricted Boltzmann Machine.

Shapes: B batch, V visible units, H hidden units. Energies are in nats. With z = log sigma^2:

    E(v, h)  = sum_i (v_i - b_i)^2 / (2 sigma_i^2) - (v / sigma^2)' W h - c'h
    p(h=1|v) = sigmoid(c + W'(v / sigma^2))
    v | h    ~ Normal(b + W h, sigma^2)

This is the parametrisation of Cho, Ilin and Raiko (2011, "Improved learning of Gaussian-Bernoulli
restricted Boltzmann machines", equations 4-6), not Krizhevsky's, whose coupling is (v / sigma)' W h.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


class GaussianBernoulliRBM(nn.Module):
    """A Gaussian-Bernoulli RBM over real vectors.

    Args:
        num_visible: V.
        num_hidden: H.
        sigma: standard deviation of the visible noise, of every unit (or at first, if learned).
        learn_variance: learn one log-variance per visible unit.
        sigma_bounds: a learned sigma is held between these two.

    Raises:
        ValueError: a size below 1, or sigma outside its bounds.
    """

    def __init__(
        self,
        num_visible: int,
        num_hidden: int,
        sigma: float = 1.0,
        learn_variance: bool = False,
        sigma_bounds: tuple[float, float] = (0.05, 5.0),
    ) -> None:
        super().__init__()
        if num_visible < 1 or num_hidden < 1:
            raise ValueError(f"num_visible ({num_visible}) and num_hidden ({num_hidden}) must be at least 1")
        if sigma <= 0 or (learn_variance and not 0 < sigma_bounds[0] <= sigma <= sigma_bounds[1]):
            raise ValueError(f"sigma ({sigma}) must be positive and, if learned, within sigma_bounds {sigma_bounds}")
        self.num_visible, self.num_hidden = num_visible, num_hidden
        self.learn_variance = learn_variance
        self.sigma_bounds = sigma_bounds
        self.weight = nn.Parameter(torch.randn(num_visible, num_hidden) * 0.01)
        self.visible_bias = nn.Parameter(torch.zeros(num_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))
        log_variance = torch.full((num_visible,), 2 * math.log(sigma))
        self.log_variance = nn.Parameter(log_variance, requires_grad=learn_variance)

    @property
    def variance(self) -> torch.Tensor:
        """sigma^2 of each visible unit, (V,)."""
        if not self.learn_variance:
            return self.log_variance.exp()
        low, high = (2 * math.log(bound) for bound in self.sigma_bounds)
        return self.log_variance.clamp(low, high).exp()

    def forward(self, v: torch.Tensor, gibbs_steps: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Free energies of the data and of the negatives that CD-k draws from it.

        Args:
            v: data, (B, V).
            gibbs_steps: k, at least 1.

        Returns:
            (B,) and (B,); the negatives carry no gradient.
        """
        with torch.no_grad():
            negatives = self.gibbs(v, gibbs_steps)
        return self.free_energy(v), self.free_energy(negatives)

    def energy(self, v: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """E(v, h) of (..., V) and (..., H): (...)."""
        quadratic = ((v - self.visible_bias).square() / (2 * self.variance)).sum(-1)
        return quadratic - (self._hidden_coupling(v) * h).sum(-1) - h @ self.hidden_bias

    def free_energy(self, v: torch.Tensor) -> torch.Tensor:
        """F(v) = -log sum_h exp(-E(v, h)) of (..., V): (...)."""
        quadratic = ((v - self.visible_bias).square() / (2 * self.variance)).sum(-1)
        activation = self._hidden_coupling(v) + self.hidden_bias
        # torch's softplus is linear above its threshold; 20, the default, is too coarse for float64.
        return quadratic - functional.softplus(activation, threshold=40).sum(-1)

    def hidden_probability(self, v: torch.Tensor) -> torch.Tensor:
        """p(h_j = 1 | v) of (..., V): (..., H)."""
        return torch.sigmoid(self._hidden_coupling(v) + self.hidden_bias)

    def visible_mean(self, h: torch.Tensor) -> torch.Tensor:
        """Mean of v | h of (..., H): (..., V)."""
        return self.visible_bias + (h @ self.weight.T).to(h.dtype)

    def reconstruct(self, v: torch.Tensor, passes: int = 1, gate: float = 1.0) -> torch.Tensor:
        """``passes`` times v <- (1 - gate) v + gate (b + W p(h|v)).

        With gate 1 one pass is v - sigma^2 dF/dv, a denoising (Tweedie) step, under which F never
        rises. Gate 0 returns v itself.

        Args:
            v: (..., V).
            passes: at least 1.
            gate: 0 to 1.
        """
        if gate == 0.0:
            return v
        for _ in range(passes):
            rebuilt = self.visible_mean(self.hidden_probability(v))
            v = rebuilt if gate == 1.0 else torch.lerp(v, rebuilt, gate)
        return v

    def gibbs(self, v: torch.Tensor, steps: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """``steps`` sweeps of block Gibbs sampling, h | v then v | h.

        Args:
            v: where the chains start, (B, V).
            steps: at least 1.
            generator: source of randomness; torch's default one if None.

        Returns:
            (B, V).
        """
        sigma = self.variance.sqrt()
        for _ in range(steps):
            probability = self.hidden_probability(v)
            uniform = torch.empty_like(probability).uniform_(generator=generator)
            hidden = (uniform < probability).to(v.dtype)
            noise = torch.empty_like(v).normal_(generator=generator)
            v = torch.addcmul(self.visible_mean(hidden), noise, sigma)
        return v

    def _hidden_coupling(self, v: torch.Tensor) -> torch.Tensor:
        # Under autocast the product comes out in bf16; everything summed over units stays in v's type.
        return ((v / self.variance) @ self.weight).to(v.dtype)  # (..., H)
