"""An RBM over images, trained by workers that each hold some of its visible units."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from raycap.checkpoint.refiner import publish_part, publish_parts
from raycap.models.sharded_rbm import ShardedGaussianBernoulliRBM
from raycap.tasks.contrastive_divergence import ContrastiveDivergenceTask
from raycap.train.in_place import InPlaceStrategy
from raycap.train.strategy import SaveModel, ScheduleFactor, is_first_worker


class VisibleShardingStrategy(InPlaceStrategy):
    """Every worker sees the same images, of each the tokens whose visible units it holds.

    No gradient is sent: what is added up over the workers lies within the RBM. Hidden biases, and what the optimiser
    keeps of them, stand on every worker and stay equal, as they are made of equal bits.

    Args:
        task: with a sharded RBM, on its device.
        optimizer, schedule, dtype, accumulation_steps, clip_norm, centred: as of :class:`InPlaceStrategy`.
    """

    def __init__(
        self,
        task: ContrastiveDivergenceTask,
        optimizer: torch.optim.Optimizer,
        schedule: ScheduleFactor,
        **settings: Any,
    ) -> None:
        super().__init__(task, optimizer, schedule, num_workers=1, **settings)
        rbm = task.refiner.rbm
        assert isinstance(rbm, ShardedGaussianBernoulliRBM)
        self._shard = rbm.shard

    def _gradient_norm(self) -> torch.Tensor:
        squares = {name: gradient.square().sum() for name, gradient in self._gradients.items()}
        everywhere = squares.pop("hidden_bias")
        return (self._shard.sum(torch.stack(list(squares.values())).sum()) + everywhere).sqrt()

    def save(self, directory: Path, rank: int) -> None:
        self._save_parts(directory / _file_name(rank))

    def load(self, directory: Path) -> None:
        self._load_parts(directory / _file_name(self._shard.index))

    def publish(self, save: SaveModel, uri: str, step: int) -> None:
        with tempfile.TemporaryDirectory(prefix="raycap-") as folder:
            part = Path(folder, "part")
            save(self._task, part)
            publish_part(part, uri, self._shard.index, self._shard.count, step)
            if self._shard.count > 1:
                distributed.barrier()  # config.json names all parts, so they must be there
            if is_first_worker():
                publish_parts(part, uri, self._shard.count, step)


def _file_name(rank: int) -> str:
    return f"parameters-{rank}.pt"
