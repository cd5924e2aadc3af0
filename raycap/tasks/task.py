"""What every task is: a module from a batch to named losses, with a state of each worker's own."""

from __future__ import annotations

from typing import Any

from torch import nn


class Task(nn.Module):
    """``forward(batch) -> {name: 0-d loss}``; parameters and buffers are the same on every worker."""

    def begin_epoch(self, epoch: int) -> None:
        """Called before each epoch, from 0, and where a run is resumed; may change which parameters are trained."""

    def worker_state(self) -> dict[str, Any]:
        """What belongs to this worker alone and must be in a checkpoint, such as Markov chains."""
        return {}

    def load_worker_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`worker_state` gave."""
