"""The RBM's hidden activations as the decoder's input, through a linear projection."""

from __future__ import annotations

import torch
from torch import nn

from raycap.models.refiner import RbmRefiner, apply_gated


class HiddenProjectionRefiner(nn.Module):
    """v' = (1 - gate) v + gate (offset + p(h|v) P), ``passes`` times, for every token.

    Args:
        like: the refiner whose RBM gives the hidden activations p.
        projection: P, (H, V), to embeddings.
        offset: (V,).
    """

    projection: torch.Tensor
    offset: torch.Tensor

    def __init__(self, like: RbmRefiner, projection: torch.Tensor, offset: torch.Tensor) -> None:
        super().__init__()
        self.like = like
        self.register_buffer("projection", projection.float())
        self.register_buffer("offset", offset.float())

    @torch.inference_mode()
    def forward(self, image_embeds: torch.Tensor, gate: float = 1.0, passes: int = 1) -> torch.Tensor:
        """(B, N, V) of any float type to the same; see :meth:`RbmRefiner.forward`."""
        return apply_gated(self._rebuild, image_embeds, gate, passes)

    def _rebuild(self, v: torch.Tensor) -> torch.Tensor:
        return self.like.rbm.hidden_probability(self.like.standardise(v)) @ self.projection + self.offset


class ProjectionFit:
    """Ridge regression of embeddings on hidden activations, from any number of batches.

    Args:
        like: gives the activations.
        ridge: penalty, as a share of the activations' mean variance.
    """

    def __init__(self, like: RbmRefiner, ridge: float = 1e-3) -> None:
        self.like, self.ridge = like, ridge
        num_hidden, num_visible = like.rbm.num_hidden, like.rbm.num_visible
        self._count = 0
        self._hidden_sum, self._sum = torch.zeros(num_hidden).double(), torch.zeros(num_visible).double()
        self._squares = torch.zeros(num_hidden, num_hidden).double()
        self._products = torch.zeros(num_hidden, num_visible).double()

    @torch.inference_mode()
    def add(self, tokens: torch.Tensor) -> None:
        """Take in (n, V) embeddings."""
        centred = tokens.float() - self.like.mean
        hidden = self.like.rbm.hidden_probability(self.like.standardise(tokens))
        self._count += len(tokens)
        self._hidden_sum += hidden.sum(0)
        self._sum += centred.sum(0)
        self._squares += hidden.T @ hidden
        self._products += hidden.T @ centred

    def solve(self) -> HiddenProjectionRefiner:
        """The refiner that comes nearest to the embeddings in least squares."""
        hidden_mean, mean = self._hidden_sum / self._count, self._sum / self._count
        covariance = self._squares / self._count - torch.outer(hidden_mean, hidden_mean)
        covariance.diagonal().add_(self.ridge * float(covariance.diagonal().mean()))
        cross = self._products / self._count - torch.outer(hidden_mean, mean)
        projection = torch.linalg.solve(covariance, cross)
        return HiddenProjectionRefiner(self.like, projection, self.like.mean + mean - hidden_mean @ projection)
