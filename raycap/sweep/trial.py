"""One trial of a sweep: the training loop of jobs/train.py under Ray Tune, its likelihood measured."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from ray import tune

from raycap import storage
from raycap.batch.token_likelihood import HeldOut, rbm_likelihood
from raycap.config import error_lines
from raycap.errors import UserError
from raycap.models.partition import ais_log_partition
from raycap.sweep.config import SweepConfig
from raycap.tasks.contrastive_divergence import ContrastiveDivergenceTask
from raycap.train.config import TrainConfig
from raycap.train.host import as_directory
from raycap.train.loop import Worker
from raycap.train.state import HISTORY

METRIC = "log_likelihood"
RESULTS = "results"


class TuneHost:
    """A worker that trains alone, inside a trial of Ray Tune."""

    rank, num_workers, local_workers, speaks = 0, 1, 1, False

    def __init__(self, use_gpu: bool, model: str) -> None:
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self._model = model

    def checkpoint(self) -> AbstractContextManager[Path | None]:
        return as_directory(tune.get_checkpoint())

    def report(self, metrics: dict[str, Any], directory: Path) -> None:  # noqa: ARG002 - the record has them, too
        record = json.loads((directory / HISTORY).read_text().splitlines()[-1])
        tune.report(record | {"model": self._model}, checkpoint=tune.Checkpoint.from_directory(directory))


def result_uri(output: str, settings: dict[str, Any]) -> str:
    """Where the result of a finished trial is noted; the same settings lead to the same result."""
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return storage.join(output, RESULTS, f"{key}.json")


def run_trial(settings: dict[str, Any], config: SweepConfig, data: HeldOut) -> None:
    """Train with these settings; report after each validation.

    A trial that was finished before reports its result again. One that cannot be trained, or diverges,
    reports the likelihood -inf and why.

    Args:
        settings: values by the dotted keys of the sweep's space.
        config: of the sweep.
        data: on which the likelihood is measured.
    """
    noted = result_uri(config.output, settings)
    if storage.exists(noted):
        tune.report(storage.read_json(noted)["result"])
        return
    output = storage.join(config.output, "trials", tune.get_context().get_trial_id())
    try:
        _train(_trial_config(config, settings, output), settings, config, data)
    except UserError as error:
        tune.report({METRIC: -math.inf, "failure": str(error)})


def _trial_config(config: SweepConfig, settings: dict[str, Any], output: str) -> TrainConfig:
    try:
        trial = config.trial_config(settings, output)
    except ValidationError as error:
        raise UserError("; ".join(error_lines(TrainConfig, error))) from None
    # Ray Data's tasks would wait for resources that Tune gives to other trials.
    threads = trial.torch_threads or max(1, int(config.cpus_per_trial))
    settings_of_trials = {"readers_per_worker": 0, "checkpoint_every_steps": None, "tensorboard": False}
    return trial.model_copy(update=settings_of_trials | {"torch_threads": threads})


def _train(trial: TrainConfig, settings: dict[str, Any], config: SweepConfig, data: HeldOut) -> None:
    measure = functools.partial(_measure, config=config, data=data)
    model = storage.join(trial.output, "model")
    worker = Worker(trial, trial.task.prepare(trial.output), TuneHost(config.use_gpu, model), measure)
    worker.run()
    note_result(config.output, settings, worker.place.history[-1] | {"model": model, "trained_to_end": True})


def _measure(task: ContrastiveDivergenceTask, config: SweepConfig, data: HeldOut) -> dict[str, float]:
    annealing, refiner = config.annealing, task.refiner
    generator = torch.Generator(refiner.mean.device).manual_seed(config.seed)
    log_partition = ais_log_partition(refiner.rbm, annealing.num_chains, annealing.num_betas, generator)
    return rbm_likelihood(refiner, data, log_partition).metrics()


def note_result(output: str, settings: dict[str, Any], result: dict[str, Any]) -> None:
    """Note that a trial is finished, whoever ended it."""
    storage.write_json(result_uri(output, settings), {"settings": settings, "result": result})
