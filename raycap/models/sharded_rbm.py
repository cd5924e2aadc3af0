"""A Gaussian-Bernoulli RBM over whole images, its visible units spread over the workers.

An image of BLIP-base has 577 tokens of 768 numbers, 443,136 visible units: weights, gradients and the
optimiser's state grow with them, the hidden units do not. So each worker holds the visible units of some tokens
and all hidden units. Everything local to a visible unit stays with its worker; sums over visible units (the
activation of the hidden units, the energy) are added up over the workers, B x H numbers each time.

Shapes: B batch, N tokens of an image, n of them on this worker, D embed_dim, V = n D, H hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import distributed

from raycap.models.randomness import KeyedGenerator, Randomness
from raycap.models.rbm import GaussianBernoulliRBM


@dataclass(frozen=True)
class VisibleShard:
    """Which visible units a worker holds: those of a run of whole tokens.

    Args:
        index: of this worker.
        count: of workers that share the units; they are torch.distributed's default group.
        num_tokens: N.
        embed_dim: D.

    Raises:
        ValueError: more workers than tokens.
    """

    index: int
    count: int
    num_tokens: int
    embed_dim: int

    def __post_init__(self) -> None:
        if self.count > self.num_tokens:
            raise ValueError(f"count ({self.count}) must be at most num_tokens ({self.num_tokens})")

    @property
    def tokens(self) -> slice:
        """This worker's, among an image's."""
        return slice(*(edge * self.num_tokens // self.count for edge in (self.index, self.index + 1)))

    @property
    def num_visible(self) -> int:
        """V, this worker's."""
        return (self.tokens.stop - self.tokens.start) * self.embed_dim

    @property
    def num_visible_of_all(self) -> int:
        """N D."""
        return self.num_tokens * self.embed_dim

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add up over the workers, in place; all of them get the same bits."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def normal_(self, values: torch.Tensor, generator: KeyedGenerator) -> torch.Tensor:
        """Fill (rows, V) with Normal(0, 1), the same for a token however many workers there are."""
        return generator.normal_columns_(values, self.tokens.start * self.embed_dim, self.embed_dim)


class ShardedGaussianBernoulliRBM(GaussianBernoulliRBM):
    """One worker's part of a Gaussian-Bernoulli RBM: all of its methods take and give this part's visible units.

    Free energies and hidden units are those of the whole, the same on every worker; so every worker must call them,
    in the same order. No gradient flows through a sum over workers: train it by
    :func:`raycap.models.rbm_gradient.contrastive_gradient`.

    Args:
        shard: this worker's visible units.
        seed: of the first weights, which do not depend on the number of workers.
        num_hidden, sigma, learn_variance, sigma_bounds: as of :class:`GaussianBernoulliRBM`.
    """

    def __init__(
        self,
        shard: VisibleShard,
        num_hidden: int,
        sigma: float = 1.0,
        learn_variance: bool = False,
        sigma_bounds: tuple[float, float] = (0.05, 5.0),
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(shard.num_visible, num_hidden, sigma, learn_variance, sigma_bounds)
        self.shard = shard
        with torch.no_grad():
            # Token by token: a transposed copy of all weights would be another half gigabyte.
            for row in range(0, shard.num_visible, shard.embed_dim):
                token = self.weight[row : row + shard.embed_dim]
                KeyedGenerator(seed, shard.tokens.start * shard.embed_dim + row, shard.embed_dim).normal_(token)
            self.weight.mul_(0.01)

    def visible_energy(self, v: torch.Tensor) -> torch.Tensor:
        return self.shard.sum(super().visible_energy(v))

    def hidden_of_coupled(self, coupled: torch.Tensor, sigmoid: bool) -> torch.Tensor:
        weight, bias = self._product_weight, self.hidden_bias
        sums = self.shard.sum((coupled.to(weight.dtype) @ weight).to(bias.dtype)) + bias
        return torch.sigmoid(sums) if sigmoid else sums

    def sample_visible(self, h: torch.Tensor, generator: Randomness = None) -> torch.Tensor:
        if not isinstance(generator, KeyedGenerator):
            raise TypeError(f"generator ({type(generator).__name__}) must be a KeyedGenerator, which workers share")
        mean = self.visible_mean(h)
        return torch.addcmul(mean, self.shard.normal_(torch.empty_like(mean), generator), self.variance.sqrt())
