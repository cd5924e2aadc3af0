"""An RBM's optimiser step without autograd: gradients written in place, one packed all-reduce."""

from __future__ import annotations

import torch
from torch import nn

from raycap.models.rbm_gradient import centre_gradient
from raycap.tasks.contrastive_divergence import ContrastiveDivergenceTask
from raycap.train.blocks import Batch
from raycap.train.strategy import Losses, ReplicatedStrategy, ScheduleFactor

_OFFSET_MEMORY = 0.99


class InPlaceStrategy(ReplicatedStrategy):
    """Replicated parameters; gradients and the hidden units' activity lie in one buffer, summed over the workers.

    Args:
        task: on its device.
        optimizer: of the task's parameters.
        schedule: share of the learning rate by step.
        num_workers: that step together.
        dtype: of the products.
        accumulation_steps: batches of a step.
        clip_norm: largest gradient norm.
        centred: use the centred gradient.
    """

    def __init__(
        self,
        task: ContrastiveDivergenceTask,
        optimizer: torch.optim.Optimizer,
        schedule: ScheduleFactor,
        *,
        num_workers: int,
        dtype: torch.dtype,
        accumulation_steps: int,
        clip_norm: float | None,
        centred: bool,
    ) -> None:
        super().__init__(task, optimizer, schedule)
        self._gradient, self._num_workers = task.gradient, num_workers
        self._stepped = True
        self._dtype, self._accumulation_steps, self._clip_norm = dtype, accumulation_steps, clip_norm
        rbm = task.refiner.rbm
        trained = {name: p for name, p in rbm.named_parameters() if p.requires_grad}
        sizes = [p.numel() for p in trained.values()]
        self._packed = torch.zeros(sum(sizes) + rbm.num_hidden, device=rbm.weight.device)
        *parts, self._activity = self._packed.split([*sizes, rbm.num_hidden])
        self._all_gradients = self._packed[: sum(sizes)]
        self._gradients = {name: part.view_as(p) for (name, p), part in zip(trained.items(), parts, strict=True)}
        for name, parameter in trained.items():
            parameter.grad = self._gradients[name]
        self._offset = _RunningMean(rbm.num_hidden).to(rbm.weight.device) if centred else None
        if self._offset is not None:
            self._parts["offset"] = self._offset

    def backward(self, batch: Batch, loss_name: str, *, last: bool) -> Losses:  # noqa: ARG002 - all are treated alike
        scale = 1 / (self._accumulation_steps * self._num_workers)
        activity = self._gradient(batch, self._gradients, scale, self._dtype, add=not self._stepped)
        self._activity.mul_(not self._stepped).add_(activity, alpha=scale)
        self._stepped = False
        return {}

    def step(self) -> Losses:
        self._sum_over_workers()
        if self._offset is not None:
            # Standardised data have mean zero, and what meets the weights with them.
            centre_gradient(self._gradients, self._offset.update(self._activity))
        measured = {"hidden_activity": self._activity.mean()}
        if self._clip_norm is not None:
            norm = measured["gradient_norm"] = self._gradient_norm()
            self._all_gradients.mul_((self._clip_norm / (norm + 1e-6)).clamp(max=1.0))
        self._optimizer.step()
        self._stepped = True
        self._schedule.step()
        return measured

    def _sum_over_workers(self) -> None:
        if self._num_workers > 1:
            torch.distributed.all_reduce(self._packed)

    def _gradient_norm(self) -> torch.Tensor:
        return torch.linalg.vector_norm(self._all_gradients)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Losses:
        losses: Losses = self._task(batch)
        return losses


class _RunningMean(nn.Module):
    """Of the hidden units' activity, from step to step."""

    mean: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((size,), 0.5))

    def update(self, values: torch.Tensor) -> torch.Tensor:
        return self.mean.lerp_(values, 1 - _OFFSET_MEMORY)
