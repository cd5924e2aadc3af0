"""What a kind of training adds to the common loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from raycap.errors import UserError
from raycap.tasks.task import Task
from raycap.train.blocks import Source


class HopelessRunError(UserError):
    """A user's error that every worker meets alike, and would meet again if it were started anew."""


class Share(NamedTuple):
    """What of the work is one worker's."""

    parts: range
    """Which parts of the samples it reads."""
    num_parts: int
    """Into how many they are dealt."""
    samples_per_part: int
    """In each batch."""
    model_rank: int | None = None
    """Which part of the model it holds; None where each worker holds all of it."""
    model_workers: int = 1
    """Over how many workers the model is spread."""


class Validation(NamedTuple):
    """Which validation it is, and who takes part."""

    epoch: int
    """Epochs trained."""
    last: bool
    """No other follows, unless the run is stopped early."""
    rank: int
    num_workers: int
    speaks: bool
    """Whether this worker prints progress lines."""


class Sample(NamedTuple):
    """A prediction to look at."""

    name: str
    image: np.ndarray
    """(H, W, 3) uint8."""
    text: str


class Measured(NamedTuple):
    """What a recipe says of a model beside its losses."""

    metrics: dict[str, float]
    """Further validation metrics, by the names of the history, the same on every worker."""
    samples: tuple[Sample, ...] = ()
    """Of the first worker."""


class Recipe(Protocol):
    """Made by the driver from a checked configuration, sent to every worker."""

    train_split: str
    validation_split: str
    loss_name: str
    """Of the task's losses, the one that is minimised."""
    score_name: str | None
    """Of the validation metrics, the one that tells the best model; None: the newest is. Between equals
    ``stopping_metric`` decides; where a validation lacks it, its model is the best only if there is no other yet."""
    score_order: Literal["min", "max"]
    """Whether the lowest or the highest is the best."""
    stopping_metric: str
    """What early stopping watches; the lower the better."""
    compares_training: bool
    """Evaluate on as much training data as validation data, too; the metrics get the gap of each loss."""

    def build_task(self, seed: int, first_sample: int, share: Share) -> Task:
        """The task with its model at its first weights, on the CPU; drawn from torch's seeded generator.

        Args:
            seed: of what the task draws in training by itself.
            first_sample: the number, in the batch of all workers, of this worker's first sample.
            share: this worker's.
        """

    def source(self, task: Any, device: torch.device) -> Source:
        """Where the samples come from; ``device`` is where the worker computes."""

    def parameter_groups(self, task: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        """Parameters for the optimiser, each group with ``lr_scale`` and ``weight_decay``."""

    def measure(self, task: Any, device: torch.device, validation: Validation) -> Measured:
        """Measure a model beyond its losses; every worker calls it, each with the whole task."""

    def save_model(self, task: Any, directory: Path) -> None:
        """Write the trained model into an empty local directory."""


def decay_matrices(task: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and convolutions with weight decay; biases, norms and positions without."""
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim in (2, 4)], "weight_decay": weight_decay, "lr_scale": 1.0},
        {"params": [p for p in trained if p.ndim not in (2, 4)], "weight_decay": 0.0, "lr_scale": 1.0},
    ]
