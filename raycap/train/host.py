"""Who runs a training worker: where it computes, how many step together, who keeps the checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import ray.train
import ray.train.torch
import torch


class Host(Protocol):
    """What a worker asks of its surroundings."""

    rank: int
    num_workers: int
    local_workers: int
    """On the same machine."""
    device: torch.device
    speaks: bool
    """Whether this worker prints progress lines."""

    def checkpoint(self) -> AbstractContextManager[Path | None]:
        """The checkpoint to go on from, as a local directory; None to begin."""

    def report(self, metrics: dict[str, Any], directory: Path) -> None:
        """Keep a directory as a checkpoint; every worker calls it, for it may be a barrier."""


class RayTrainHost:
    """A worker of Ray Train."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.num_workers = context.get_world_rank(), context.get_world_size()
        self.local_workers = context.get_local_world_size()
        self.device = ray.train.torch.get_device()
        self.speaks = self.rank == 0

    def checkpoint(self) -> AbstractContextManager[Path | None]:
        return as_directory(ray.train.get_checkpoint())

    def report(self, metrics: dict[str, Any], directory: Path) -> None:
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))


@contextmanager
def as_directory(checkpoint: ray.train.Checkpoint | None) -> Iterator[Path | None]:
    """Ray's checkpoint as a local directory, if there is one."""
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as directory:
        yield Path(directory)
