"""Training an RBM on image embeddings: the gradient of F(data) - F(negatives), by either of two routes.

``forward`` gives it as a loss, for back-propagation under DDP or DeepSpeed; ``gradient`` computes
it in place, without autograd and with one merged product. Both give the same parameters up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch

from raycap.losses import contrastive_divergence
from raycap.models.rbm_gradient import contrastive_gradient
from raycap.models.refiner import RbmRefiner
from raycap.models.samplers import ContrastiveDivergence
from raycap.tasks.task import Task


class ContrastiveDivergenceTask(Task):
    """An RBM, in its refiner, under contrastive divergence.

    Args:
        refiner: its RBM is trained; its statistics stay as they are.
        sampler: where the negatives come from.
        sparsity_target: share of the data for which a hidden unit should be on.
        sparsity_cost: how strongly; the cross-entropy between target and mean activity is added,
            acting on the hidden biases alone (Hinton 2012, "A practical guide", section 11). 0 is off.
    """

    def __init__(
        self,
        refiner: RbmRefiner,
        sampler: ContrastiveDivergence,
        sparsity_target: float = 0.1,
        sparsity_cost: float = 0.0,
    ) -> None:
        super().__init__()
        self.refiner, self.sampler = refiner, sampler
        self.sparsity_target, self.sparsity_cost = sparsity_target, sparsity_cost

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Args:
            batch: ``image_embeds`` (B, V), any float type, a token a row.

        Returns:
            ``free_energy`` of the data in nats, a scalar without gradient: its gap between training and
            validation data shows over-fitting. (Reconstruction error ranks models backwards, so it is not
            here.) In training also ``contrastive_divergence``, a scalar, the loss.
        """
        v, rbm = self.refiner.standardise(batch["image_embeds"]), self.refiner.rbm
        if not self.training:
            return {"free_energy": rbm.free_energy(v).mean()}
        data, negatives, probability = rbm(v, lambda v, p: self.sampler.draw(rbm, v, p))
        loss = contrastive_divergence(data, negatives)
        if self.sparsity_cost:
            excess = probability.mean(0) - self.sparsity_target  # (H,), without gradient
            penalty = self.sparsity_cost * (excess * rbm.hidden_bias).sum()
            loss = loss + penalty - penalty.detach()  # its value means nothing
        return {"contrastive_divergence": loss, "free_energy": data.detach().mean()}

    @torch.no_grad()
    def gradient(
        self,
        batch: dict[str, torch.Tensor],
        gradients: dict[str, torch.Tensor],
        scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
        add: bool = False,
    ) -> torch.Tensor:
        """Write the loss's gradient into ``gradients``, by the RBM's parameter names.

        Args:
            scale: of the gradient.
            dtype: of the products; parameters, sums and gradients stay in float32.
            add: to what ``gradients`` hold, instead of replacing it.

        Returns:
            mean activity of the hidden units on the data, (H,).
        """
        v, rbm = self.refiner.standardise(batch["image_embeds"]), self.refiner.rbm
        activity = contrastive_gradient(rbm, v, lambda v, p: self.sampler.draw(rbm, v, p), gradients, scale, dtype, add)
        if self.sparsity_cost:
            gradients["hidden_bias"].add_(activity - self.sparsity_target, alpha=scale * self.sparsity_cost)
        return activity

    def worker_state(self) -> dict[str, Any]:
        return self.sampler.state()

    def load_worker_state(self, state: dict[str, Any]) -> None:
        self.sampler.load_state(state, self.refiner.mean.device)
