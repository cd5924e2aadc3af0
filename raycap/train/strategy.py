"""How one optimiser step is shared by the workers: DDP, or DeepSpeed ZeRO, behind one interface."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from raycap.checkpoint.directory import publish
from raycap.tasks.task import Task
from raycap.train.blocks import Batch

Losses = dict[str, torch.Tensor]
ScheduleFactor = Callable[[int], float]
SaveModel = Callable[[Any, Path], None]
"""Writes a task's model into a local directory that is not there yet."""

_PARAMETERS = "parameters.pt"


class Strategy(Protocol):
    """A task on its device with optimiser and schedule."""

    def begin_epoch(self, epoch: int) -> None:
        """Tell the task that an epoch begins, or is gone on with, and follow it in what is trained."""

    def backward(self, batch: Batch, loss_name: str, *, last: bool) -> Losses:
        """Losses of a batch, their gradient added up; ``last`` of the batches of a step."""

    def step(self) -> Losses:
        """One optimiser step over what was added up; gives what it measured, the same on every worker."""

    def evaluate(self, batch: Batch) -> Losses:
        """Losses without gradient; every worker calls it equally often."""

    def learning_rate(self) -> float:
        """Of the first parameter group."""

    def whole(self) -> AbstractContextManager[Any]:
        """Within it the task holds all its parameters, to be read; every worker enters it."""

    def publish(self, save: SaveModel, uri: str, step: int) -> None:
        """Put the model in its place, where readers see all of it or none; every worker calls it."""

    def save(self, directory: Path, rank: int) -> None:
        """Write this worker's part of parameters, optimiser and schedule; every worker calls it."""

    def load(self, directory: Path) -> None:
        """Read what ``save`` wrote."""


class ReplicatedStrategy:
    """What all strategies share whose workers each hold the whole task, its optimiser and its schedule."""

    def __init__(self, task: Task, optimizer: torch.optim.Optimizer, schedule: ScheduleFactor) -> None:
        self._task, self._optimizer = task, optimizer
        self._schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        self._parts: dict[str, Any] = {"task": task, "optimizer": optimizer, "schedule": self._schedule}

    def begin_epoch(self, epoch: int) -> None:
        self._task.begin_epoch(epoch)

    def learning_rate(self) -> float:
        return self._optimizer.param_groups[0]["lr"]

    def whole(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def publish(self, save: SaveModel, uri: str, step: int) -> None:  # noqa: ARG002 - one file, whatever the step
        if is_first_worker():
            publish_model(save, self._task, uri)

    def save(self, directory: Path, rank: int) -> None:
        if rank == 0:
            self._save_parts(directory / _PARAMETERS)

    def load(self, directory: Path) -> None:
        self._load_parts(directory / _PARAMETERS)

    def _save_parts(self, path: Path) -> None:
        torch.save({name: part.state_dict() for name, part in self._parts.items()}, path)

    def _load_parts(self, path: Path) -> None:
        device = next(self._task.parameters()).device
        state = torch.load(path, map_location=device, weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])


class DdpStrategy(ReplicatedStrategy):
    """Back-propagation; gradients averaged by torch's DistributedDataParallel."""

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        schedule: ScheduleFactor,
        *,
        device: torch.device,
        num_workers: int,
        autocast_dtype: torch.dtype | None,
        accumulation_steps: int,
        clip_norm: float | None,
    ) -> None:
        super().__init__(task, optimizer, schedule)
        self._device, self._num_workers = device, num_workers
        self._model: nn.Module = task
        self._trained: list[bool] = []
        self._autocast_dtype, self._accumulation_steps, self._clip_norm = autocast_dtype, accumulation_steps, clip_norm

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        trained = [parameter.requires_grad for parameter in self._task.parameters()]
        if self._num_workers == 1 or trained == self._trained:
            return
        # It waits for the gradients of the parameters that were trained when it was made.
        if isinstance(self._model, DistributedDataParallel):
            self._model._remove_autograd_hooks()
        self._model = DistributedDataParallel(
            self._task,
            device_ids=[self._device] if self._device.type == "cuda" else None,
            init_sync=not self._trained,  # later on the workers are equal, but for what is each one's own
        )
        self._trained = trained

    def backward(self, batch: Batch, loss_name: str, *, last: bool) -> Losses:
        quiet = not last and isinstance(self._model, DistributedDataParallel)
        with self._model.no_sync() if quiet else nullcontext():  # type: ignore[operator]
            with _autocast(self._device, self._autocast_dtype):
                losses: Losses = self._model(batch)
            (losses[loss_name] / self._accumulation_steps).backward()
        return losses

    def step(self) -> Losses:
        norm = {}
        if self._clip_norm is not None:
            norm = {"gradient_norm": nn.utils.clip_grad_norm_(self._task.parameters(), self._clip_norm)}
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._schedule.step()
        return norm

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Losses:
        with _autocast(self._device, self._autocast_dtype):
            losses: Losses = self._task(batch)
        return losses


class DeepSpeedStrategy:
    """ZeRO: optimiser state, then gradients, then parameters sharded over the workers."""

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        schedule: ScheduleFactor,
        *,
        stage: int,
        autocast_dtype: torch.dtype | None,
        accumulation_steps: int,
        clip_norm: float | None,
        batch_size: int,
    ) -> None:
        deepspeed = _import_deepspeed()
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": batch_size,
            "gradient_accumulation_steps": accumulation_steps,
            "gradient_clipping": clip_norm or 0.0,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "wall_clock_breakdown": False,
            "steps_per_print": 10**9,
        }
        if autocast_dtype is not None:
            config["torch_autocast"] = {"enabled": True, "dtype": str(autocast_dtype)}
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        self._stage, self._clips = stage, clip_norm is not None
        self._task = task
        self._engine, *_ = deepspeed.initialize(
            model=task, optimizer=optimizer, lr_scheduler=scheduler, config=config, dist_init_required=False
        )
        self._gathered = deepspeed.zero.GatheredParameters

    def begin_epoch(self, epoch: int) -> None:
        self._task.begin_epoch(epoch)

    def backward(self, batch: Batch, loss_name: str, *, last: bool) -> Losses:
        losses: Losses = self._engine(batch)
        self._engine.backward(losses[loss_name])
        if not last:
            self._engine.step()
        return losses

    def step(self) -> Losses:
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if self._clips else None
        return {} if norm is None else {"gradient_norm": torch.as_tensor(norm)}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Losses:
        return self._engine(batch)

    def learning_rate(self) -> float:
        return self._engine.get_lr()[0]

    def whole(self) -> AbstractContextManager[Any]:
        return self._gathered(list(self._engine.module.parameters()) if self._stage == 3 else [])

    def publish(self, save: SaveModel, uri: str, step: int) -> None:  # noqa: ARG002 - one file, whatever the step
        with self.whole():
            if is_first_worker():
                publish_model(save, self._engine.module, uri)

    def save(self, directory: Path, rank: int) -> None:  # noqa: ARG002 - the engine knows its rank
        self._engine.save_checkpoint(str(directory), tag="deepspeed")

    def load(self, directory: Path) -> None:
        self._engine.load_checkpoint(str(directory), tag="deepspeed")


def is_first_worker() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0


def publish_model(save: SaveModel, task: nn.Module, uri: str) -> None:
    """Save a whole model and put it in its place."""
    with tempfile.TemporaryDirectory(prefix="raycap-") as folder:
        model = Path(folder, "model")
        save(task, model)
        publish(model, uri)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _import_deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    # Else DeepSpeed compiles a shared-memory collective at every first start, half a minute on a laptop.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
