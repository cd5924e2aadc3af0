"""Everything a worker needs to go on where a checkpoint left off."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raycap.tasks.task import Task
from raycap.train.strategy import Strategy

HISTORY = "history.jsonl"


@dataclass
class Place:
    """How far training has come; the same on every worker."""

    epoch: int = 0
    """Of the next step; from 0."""
    step_in_epoch: int = 0
    step: int = 0
    """Optimiser steps taken."""
    seconds: float = 0.0
    """Spent so far, over all runs."""
    best_score: tuple[float, ...] | None = None
    """Of the published model, the lower the better; None until a model has one."""
    best_stopping_value: float | None = None
    validations_without_gain: int = 0
    stopped: bool = False
    """Early stopping has ended the run."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record every few steps, as history.jsonl holds it."""
    waited_seconds: float = 0.0
    """Of them, for data."""
    loss_sums: dict[str, torch.Tensor] = field(default_factory=dict)
    """Since the last record, on this worker; 0-d float64, on its device, so that a step never waits for them."""
    losses_summed: int = 0
    resumed_at: int | None = None
    """The step at which this run was resumed, until a record says so."""


def save_state(directory: Path, rank: int, place: Place, strategy: Strategy, task: Task) -> None:
    """Write this worker's part of a checkpoint into a local directory; every worker calls it."""
    torch.save(
        {"place": asdict(place), "random": _random_states(), "task": task.worker_state()},
        directory / f"worker-{rank}.pt",
    )
    if rank == 0:
        write_history(directory / HISTORY, place.history)
    strategy.save(directory, rank)


def load_state(directory: Path, rank: int, strategy: Strategy, task: Task, device: torch.device) -> Place:
    """Read this worker's part of a checkpoint, and set the random states."""
    state = torch.load(directory / f"worker-{rank}.pt", map_location="cpu", weights_only=False)
    strategy.load(directory)
    task.load_worker_state(state["task"])
    _set_random_states(state["random"])
    place = Place(**state["place"])
    place.loss_sums = {name: total.to(device) for name, total in place.loss_sums.items()}
    return place


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in history))


def _random_states() -> dict[str, Any]:
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
