"""Training an RBM on image embeddings: the CD-k update as the gradient of F(data) - F(negatives)."""

from __future__ import annotations

import torch
from torch import nn

from raycap.losses import contrastive_divergence
from raycap.models.refiner import RbmRefiner


class ContrastiveDivergenceTask(nn.Module):
    """An RBM, in its refiner, under contrastive divergence.

    Args:
        refiner: its RBM is trained; its statistics stay as they are.
        gibbs_steps: k.
    """

    def __init__(self, refiner: RbmRefiner, gibbs_steps: int = 1) -> None:
        super().__init__()
        self.refiner = refiner
        self.gibbs_steps = gibbs_steps

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Args:
            batch: ``image_embeds`` (B, V), any float type, a token a row.

        Returns:
            ``contrastive_divergence`` in nats, a scalar, and beside it, without gradient,
            ``free_energy``, the data's mean: its gap between training and validation data shows
            over-fitting. (Reconstruction error ranks models backwards, so it is not here.)
        """
        v = self.refiner.standardise(batch["image_embeds"])
        data, negatives = self.refiner.rbm(v, self.gibbs_steps)
        return {
            "contrastive_divergence": contrastive_divergence(data, negatives),
            "free_energy": data.detach().mean(),
        }
