"""Restricted Boltzmann Machines: Bernoulli-Bernoulli and Gaussian-Bernoulli.

Shapes: B batch, V visible units, H hidden units. Energies are in nats. Bernoulli (Smolensky 1986):

    E(v, h)  = -v'W h - b'v - c'h
    p(h=1|v) = sigmoid(c + W'v)         p(v=1|h) = sigmoid(b + W h)

Gaussian, with z = log sigma^2:

    E(v, h)  = sum_i (v_i - b_i)^2 / (2 sigma_i^2) - (v / sigma^2)' W h - c'h
    p(h=1|v) = sigmoid(c + W'(v / sigma^2))
    v | h    ~ Normal(b + W h, sigma^2)

This is the parametrisation of Cho, Ilin and Raiko (2011, "Improved learning of Gaussian-Bernoulli
restricted Boltzmann machines", equations 4-6), not Krizhevsky's, whose coupling is (v / sigma)' W h;
``from_krizhevsky`` and ``to_krizhevsky`` convert.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from raycap.models.products import affine
from raycap.models.randomness import Randomness, normal_like, toss


class RestrictedBoltzmannMachine(nn.Module, ABC):
    """What both kinds share: hidden units, block Gibbs sampling, reconstruction.

    Args:
        num_visible: V.
        num_hidden: H.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, num_visible: int, num_hidden: int) -> None:
        super().__init__()
        if num_visible < 1 or num_hidden < 1:
            raise ValueError(f"num_visible ({num_visible}) and num_hidden ({num_hidden}) must be at least 1")
        self.num_visible, self.num_hidden = num_visible, num_hidden
        self.weight = nn.Parameter(torch.randn(num_visible, num_hidden) * 0.01)
        self.visible_bias = nn.Parameter(torch.zeros(num_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))
        self._cast_weight: torch.Tensor | None = None

    @abstractmethod
    def visible_energy(self, v: torch.Tensor) -> torch.Tensor:
        """The part of the energy without hidden units, of (..., V): (...)."""

    @abstractmethod
    def visible_mean(self, h: torch.Tensor) -> torch.Tensor:
        """Mean of v | h of (..., H): (..., V)."""

    @abstractmethod
    def sample_visible(self, h: torch.Tensor, generator: Randomness = None) -> torch.Tensor:
        """v | h of (..., H): (..., V)."""

    @abstractmethod
    def coupled(self, v: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """What meets the weights: v, or v / sigma^2, of (..., V): (..., V), in ``dtype`` (by default v's)."""

    def forward(
        self, v: torch.Tensor, draw_negatives: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Free energies of the data and of the negatives: what back-propagation trains on.

        Args:
            v: data, (B, V).
            draw_negatives: data and p(h | data) to negatives of any number, by this RBM's methods; None is CD-1.

        Returns:
            (B,), (number of negatives,), and p(h | data), (B, H); only free energies carry gradients, and
            none through the negatives.
        """
        activation = self.hidden_activation(v)
        data = self.visible_energy(v) - _log_one_plus_exp(activation).sum(-1)
        with torch.no_grad():
            probability = torch.sigmoid(activation)
            if draw_negatives is None:
                negatives = self.gibbs(v, 1, hidden_probability=probability)
            else:
                negatives = draw_negatives(v, probability)
        return data, self.free_energy(negatives), probability

    def hidden_activation(self, v: torch.Tensor) -> torch.Tensor:
        """Input of the hidden units, c + W'v (or its Gaussian kin), of (..., V): (..., H)."""
        return self.hidden_of_coupled(self.coupled(v), sigmoid=False)

    def hidden_probability(self, v: torch.Tensor) -> torch.Tensor:
        """p(h_j = 1 | v) of (..., V): (..., H)."""
        return self.hidden_of_coupled(self.coupled(v), sigmoid=True)

    def hidden_of_coupled(self, coupled: torch.Tensor, sigmoid: bool) -> torch.Tensor:
        """:meth:`hidden_activation`, or with ``sigmoid`` :meth:`hidden_probability`, from what :meth:`coupled` gave."""
        return self._affine(coupled, self._product_weight.T, self.hidden_bias, sigmoid)

    def energy(self, v: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """E(v, h) of (..., V) and (..., H): (...)."""
        return self.visible_energy(v) - (self.hidden_activation(v) * h).sum(-1)

    def free_energy(self, v: torch.Tensor) -> torch.Tensor:
        """F(v) = -log sum_h exp(-E(v, h)) of (..., V): (...)."""
        return self.visible_energy(v) - _log_one_plus_exp(self.hidden_activation(v)).sum(-1)

    def reconstruct(self, v: torch.Tensor, passes: int = 1, gate: float = 1.0) -> torch.Tensor:
        """``passes`` times v <- (1 - gate) v + gate * mean of v | p(h|v).

        For Gaussian units and gate 1 one pass is v - sigma^2 dF/dv, a denoising (Tweedie) step, under
        which F never rises. Gate 0 returns v itself.

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

    def gibbs(
        self,
        v: torch.Tensor,
        steps: int,
        generator: Randomness = None,
        hidden_probability: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``steps`` sweeps of block Gibbs sampling, h | v then v | h.

        Args:
            v: where the chains start, (B, V).
            steps: at least 0.
            generator: source of randomness; torch's default one if None.
            hidden_probability: p(h|v) of the start, (B, H), if it is known already.

        Returns:
            (B, V).
        """
        for _ in range(steps):
            probability = self.hidden_probability(v) if hidden_probability is None else hidden_probability
            hidden_probability = None
            v = self.sample_visible(toss(probability, generator), generator)
        return v

    @torch.no_grad()
    def sample(self, num_samples: int, steps: int, generator: Randomness = None) -> torch.Tensor:
        """New visible vectors, by ``steps`` Gibbs sweeps from hidden units tossed as fair coins.

        Returns:
            (num_samples, V).
        """
        like = self.weight.new_empty(num_samples, self.num_hidden)
        hidden = toss(torch.full_like(like, 0.5), generator)
        return self.gibbs(self.sample_visible(hidden, generator), steps, generator)

    @contextmanager
    def cast_products(self, dtype: torch.dtype) -> Iterator[None]:
        """Within, parameters must not change; products run in ``dtype``, on one cast copy of the weight; no gradients.

        Sums over units, biases and everything given back stay in the type that came in.
        """
        self._cast_weight = self.weight.detach().to(dtype)
        try:
            yield
        finally:
            self._cast_weight = None

    @property
    def _product_weight(self) -> torch.Tensor:
        return self.weight if self._cast_weight is None else self._cast_weight

    def _visible_input(self, h: torch.Tensor) -> torch.Tensor:
        """b + W h of (..., H): (..., V)."""
        return self._affine(h, self._product_weight, self.visible_bias)

    def _affine(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, sigmoid: bool = False) -> torch.Tensor:
        if self._cast_weight is not None:
            return affine(x, weight, bias, sigmoid)
        # Under autocast the product comes out in bf16; what is summed over units stays in the bias's type.
        sums = functional.linear(x, weight, bias).to(bias.dtype)
        return torch.sigmoid(sums) if sigmoid else sums


class BernoulliRBM(RestrictedBoltzmannMachine):
    """An RBM over binary vectors (0.0 and 1.0)."""

    def visible_energy(self, v: torch.Tensor) -> torch.Tensor:
        return -(v @ self.visible_bias)

    def visible_logit(self, h: torch.Tensor) -> torch.Tensor:
        """Logit of p(v = 1 | h) of (..., H): (..., V)."""
        return self._visible_input(h)

    def visible_mean(self, h: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.visible_logit(h))

    def sample_visible(self, h: torch.Tensor, generator: Randomness = None) -> torch.Tensor:
        return toss(self.visible_mean(h), generator)

    def coupled(self, v: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        return v.to(dtype or v.dtype)

    @classmethod
    @torch.no_grad()
    def from_sklearn(cls, model: Any) -> BernoulliRBM:
        """From a fitted ``sklearn.neural_network.BernoulliRBM``."""
        num_hidden, num_visible = model.components_.shape
        rbm = cls(num_visible, num_hidden)
        rbm.weight.copy_(torch.from_numpy(model.components_.T))
        rbm.visible_bias.copy_(torch.from_numpy(model.intercept_visible_))
        rbm.hidden_bias.copy_(torch.from_numpy(model.intercept_hidden_))
        return rbm

    def to_sklearn(self) -> Any:
        """A ``sklearn.neural_network.BernoulliRBM`` that counts as fitted; needs scikit-learn."""
        from sklearn.neural_network import BernoulliRBM as SklearnRBM

        model = SklearnRBM(n_components=self.num_hidden)
        parameters = self.weight.T, self.visible_bias, self.hidden_bias
        model.components_, model.intercept_visible_, model.intercept_hidden_ = (
            parameter.detach().cpu().numpy().copy() for parameter in parameters
        )
        model.n_features_in_, model._n_features_out = self.num_visible, self.num_hidden
        return model


class GaussianBernoulliRBM(RestrictedBoltzmannMachine):
    """An RBM over real vectors.

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
        super().__init__(num_visible, num_hidden)
        if sigma <= 0 or (learn_variance and not 0 < sigma_bounds[0] <= sigma <= sigma_bounds[1]):
            raise ValueError(f"sigma ({sigma}) must be positive and, if learned, within sigma_bounds {sigma_bounds}")
        self._fixed_variance: torch.Tensor | None = None
        self.learn_variance = learn_variance
        self.sigma_bounds = sigma_bounds
        log_variance = torch.full((num_visible,), 2 * math.log(sigma))
        self.log_variance = nn.Parameter(log_variance, requires_grad=learn_variance)

    @property
    def variance(self) -> torch.Tensor:
        """sigma^2 of each visible unit, (V,)."""
        if self._fixed_variance is not None:
            return self._fixed_variance
        if not self.learn_variance:
            return self.log_variance.exp()
        low, high = (2 * math.log(bound) for bound in self.sigma_bounds)
        return self.log_variance.clamp(low, high).exp()

    @property
    def variance_is_free(self) -> torch.Tensor:
        """Where log_variance lies within its bounds and so has a gradient, (V,) bool."""
        low, high = (2 * math.log(bound) for bound in self.sigma_bounds)
        return (self.log_variance >= low) & (self.log_variance <= high)

    def visible_energy(self, v: torch.Tensor) -> torch.Tensor:
        return ((v - self.visible_bias).square() / (2 * self.variance)).sum(-1)

    def visible_mean(self, h: torch.Tensor) -> torch.Tensor:
        return self._visible_input(h)

    def sample_visible(self, h: torch.Tensor, generator: Randomness = None) -> torch.Tensor:
        mean = self.visible_mean(h)
        return torch.addcmul(mean, normal_like(mean, generator), self.variance.sqrt())

    def coupled(self, v: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        if dtype is None or dtype == v.dtype:
            return v / self.variance
        return torch.div(v, self.variance, out=torch.empty_like(v, dtype=dtype))  # divided and cast in one pass

    @contextmanager
    def cast_products(self, dtype: torch.dtype) -> Iterator[None]:
        self._fixed_variance = self.variance.detach()  # else computed anew at each use
        try:
            with super().cast_products(dtype):
                yield
        finally:
            self._fixed_variance = None

    @classmethod
    @torch.no_grad()
    def from_krizhevsky(
        cls, weight: torch.Tensor, visible_bias: torch.Tensor, hidden_bias: torch.Tensor, sigma: torch.Tensor
    ) -> GaussianBernoulliRBM:
        """From the form with coupling (v / sigma)' W h and mean b + sigma W h (Krizhevsky 2009, section 1.4.2).

        Args:
            weight: (V, H).
            visible_bias: (V,).
            hidden_bias: (H,).
            sigma: (V,).
        """
        rbm = cls(*weight.shape).to(weight.dtype)
        rbm.weight.copy_(sigma[:, None] * weight)
        rbm.visible_bias.copy_(visible_bias)
        rbm.hidden_bias.copy_(hidden_bias)
        rbm.log_variance.copy_(2 * sigma.log())
        return rbm

    @torch.no_grad()
    def to_krizhevsky(self) -> dict[str, torch.Tensor]:
        """``weight``, ``visible_bias``, ``hidden_bias`` and ``sigma`` of :meth:`from_krizhevsky`."""
        sigma = self.variance.sqrt()
        return {
            "weight": self.weight / sigma[:, None],
            "visible_bias": self.visible_bias.clone(),
            "hidden_bias": self.hidden_bias.clone(),
            "sigma": sigma,
        }


def _log_one_plus_exp(values: torch.Tensor) -> torch.Tensor:
    # torch's softplus is linear above its threshold; 20, the default, is too coarse for float64.
    return functional.softplus(values, threshold=40)
