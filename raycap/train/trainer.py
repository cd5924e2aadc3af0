"""Runs a training on Ray: checks, starts or resumes the workers, gathers the result."""

from __future__ import annotations

import functools
import json
from typing import Any

import ray.train
from pyarrow import fs
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raycap import cluster, storage
from raycap.claim import claim, is_claimed
from raycap.errors import UserError
from raycap.progress import say
from raycap.train.blocks import READER_CPUS
from raycap.train.config import TrainConfig
from raycap.train.loop import ERROR, train_worker
from raycap.train.mlflow_tracking import RUN_FILE
from raycap.train.recipe import Recipe
from raycap.train.state import HISTORY

_RUN = "run.json"
_CHECKPOINTS = "checkpoints"
# What may differ between a run and its resumption.
_FREE_SETTINGS = {"mlflow", "overwrite", "max_failures", "keep_checkpoints"}


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a model, or go on with what ``output`` holds of this very run.

    Returns:
        metrics: the last record of the history, and where the model is.

    Raises:
        UserError: wrong input, a cluster without room, or another run's output.
    """
    config = config.model_copy(update={"output": storage.absolute(config.output)})
    finished = None if config.overwrite else _find_run(config)
    if finished is not None:
        say(f"output = {config.output}: this run is finished; set overwrite=true to train anew")
        return finished
    cluster.connect()
    cluster.require(config.num_workers, config.cpus_per_worker, config.use_gpu, READER_CPUS)
    config.task.check()
    if config.mlflow is not None:
        config.mlflow.require_client()
    # Nothing was written so far: what is refused leaves the output as it was.
    _claim_output(config)
    recipe = config.task.prepare(config.output)
    filesystem, path = storage.resolve(config.output)
    trainer = TorchTrainer(
        # Not as train_loop_config, which Ray Train's controller reads, too: it would import the models.
        functools.partial(train_worker, config, recipe),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": 1} if config.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=_CHECKPOINTS,
            storage_path=path,
            worker_runtime_env=cluster.hidden_gpus(config.use_gpu),
            storage_filesystem=None if isinstance(filesystem, fs.LocalFileSystem) else filesystem,
            checkpoint_config=CheckpointConfig(
                num_to_keep=config.keep_checkpoints, checkpoint_score_attribute="score", checkpoint_score_order="min"
            ),
            failure_config=FailureConfig(max_failures=config.max_failures, controller_failure_limit=3),  # type: ignore[call-arg]
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _user_error(config, error) from error
    if storage.exists(storage.join(config.output, ERROR)):
        error_line = storage.read_json(storage.join(config.output, ERROR))["message"]
        if result.checkpoint is None:
            _clear(config.output)  # nothing is lost, and the mended run may have the same output
        raise UserError(error_line)
    _delete_orphans(storage.join(config.output, _CHECKPOINTS), result)
    storage.delete_partials(config.output)
    return _metrics(config, recipe)


def _find_run(config: TrainConfig) -> dict[str, Any] | None:
    """The metrics of a run that has finished in this output.

    Raises:
        UserError: another run's output, or this run ended in a user's error before.
    """
    if not is_claimed(config.output, _RUN, _settings(config), remedy=", or set overwrite=true"):
        return None
    error_uri, metrics_uri = (storage.join(config.output, name) for name in (ERROR, "metrics.json"))
    if storage.exists(error_uri):
        message = storage.read_json(error_uri)["message"]
        raise UserError(f"{message} (so it ended before; overwrite=true deletes what it left)")
    metrics: dict[str, Any] | None = storage.read_json(metrics_uri) if storage.exists(metrics_uri) else None
    return metrics


def _claim_output(config: TrainConfig) -> None:
    if config.overwrite:
        _clear(config.output)
    claim(config.output, _RUN, _settings(config))


def _clear(output: str) -> None:
    # run.json last: without it, checkpoints that are still there would be taken for the next run's.
    for name in ("metrics.json", ERROR, HISTORY, _CHECKPOINTS, "tensorboard", RUN_FILE, "model", "tokenizer", _RUN):
        storage.delete(storage.join(output, name))


def _delete_orphans(checkpoints: str, result: ray.train.Result) -> None:
    """Delete what a killed worker had written, whole or half, before Ray Train knew of it."""
    # The newest is kept by Ray Train whatever its score, but is not called one of the best.
    kept = [result.checkpoint, *(checkpoint for checkpoint, _ in result.best_checkpoints or ())]
    known = {checkpoint.path.rstrip("/").rpartition("/")[2] for checkpoint in kept if checkpoint is not None}
    if not storage.is_directory(checkpoints):
        return  # trained in the job's own process
    found = {entry.name.partition("/")[0] for entry in storage.list_files(checkpoints)}
    for name in found - known:
        if name.startswith("checkpoint_") and not name.endswith(".json"):
            storage.delete(storage.join(checkpoints, name))


def _settings(config: TrainConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=_FREE_SETTINGS)


def _metrics(config: TrainConfig, recipe: Recipe) -> dict[str, Any]:
    """The last record of the history, and where the model is."""
    lines = storage.read_bytes(storage.join(config.output, HISTORY)).splitlines()
    history = [json.loads(line) for line in lines]
    trained = next(record for record in reversed(history) if any(name.startswith("train_") for name in record))
    metrics = {"model": storage.join(config.output, "model"), **trained, **history[-1]}
    if recipe.score_name is not None:
        name, best = f"validation_{recipe.score_name}", min if recipe.score_order == "min" else max
        values = [record[name] for record in history if name in record]
        if values:  # a run that stopped early may have written no captions yet
            metrics[f"best_{name}"] = best(values)
    return metrics


def _user_error(config: TrainConfig, error: ray.train.TrainingFailedError) -> UserError:
    """One line for workers that failed more often than allowed: their user's error, if it was one."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, UserError):
            return cause
    reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    return UserError(
        f"max_failures = {config.max_failures}: the workers failed more often, at last with: {reason}; "
        f"mend that and start the job again, it goes on from the last checkpoint"
    )
