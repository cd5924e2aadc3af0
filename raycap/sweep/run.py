"""Runs a sweep on Ray Tune: checks, starts or resumes the trials, chooses, writes the report."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import optuna
from pyarrow import fs
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from raycap import cluster, storage
from raycap.batch.token_likelihood import HeldOut, RbmLikelihood, gaussian_likelihood, held_out
from raycap.claim import claim, is_claimed
from raycap.data.features import open_store
from raycap.errors import UserError
from raycap.progress import say
from raycap.report.html import write_report
from raycap.report.sweep import SweepPage, TrialRow, sweep_report
from raycap.sweep.captions import caption_trials, check_captions, choose_by_captions
from raycap.sweep.config import Asha, SweepConfig
from raycap.sweep.results import FinishedTrial, measure_anew, read_trials, trained_trials, write_best, write_csv
from raycap.sweep.trial import METRIC, run_trial
from raycap.sweep.watch import Watcher

_SETTINGS = "sweep.json"
_EXPERIMENT = "tune"
_MAX_FAILURES = 2  # lost processes of one trial; it goes on from its last checkpoint


def sweep(config: SweepConfig) -> dict[str, Any]:
    """Search for the RBM of the highest likelihood, or go on with what ``output`` holds of this very sweep.

    Returns:
        metrics: the chosen settings, their log-likelihood and the Gaussian's.

    Raises:
        UserError: wrong input, a cluster without room, another sweep's output, or no trial that was trained.
    """
    started = time.monotonic()
    config = config.model_copy(update={"output": storage.absolute(config.output)})
    settings = config.model_dump(mode="json")
    resumed = is_claimed(config.output, _SETTINGS, settings, what="sweep", remedy=", or delete that one")
    metrics_uri = storage.join(config.output, "metrics.json")
    if resumed and storage.exists(metrics_uri):
        say(f"output = {config.output}: this sweep is finished; choose another output to search anew")
        finished: dict[str, Any] = storage.read_json(metrics_uri)
        return finished
    _quiet()
    cluster.connect()
    if cluster.places(config.cpus_per_trial, config.use_gpu) == 0:
        wanted = f"{config.cpus_per_trial:g} CPUs" + (" and a GPU" if config.use_gpu else "")
        raise UserError(f"cpus_per_trial = {config.cpus_per_trial:g}: no node of the cluster has {wanted}; set less")
    config.base.task.check()
    if config.captions is not None:
        check_captions(config, config.captions)
    claim(config.output, _SETTINGS, settings)
    task = config.base.task
    store = open_store(config.features, "base.task.features.path")
    data = held_out(store, task.validation_split, config.max_validation_tokens, config.seed)
    say(f"sweep: log-likelihood on {data.tokens.shape[0]:,} images, {data.tokens.shape[1]} tokens of each")
    gaussian = gaussian_likelihood(store, task.train_split, data)
    say(f"sweep: a full-covariance Gaussian has {gaussian.mean():.3f} nats per token; that is the line to beat")
    errors = _tuner(config, data).fit().errors
    for error in errors:
        say(f"sweep: a trial ended in an error: {str(error).strip().splitlines()[-1]}")
    trials = read_trials(config)
    write_csv(storage.join(config.output, "trials.csv"), trials, list(config.space))
    choice = _choose(config, trials, data, errors)
    trials, best = choice.trials, choice.best
    write_csv(storage.join(config.output, "trials.csv"), trials, list(config.space))
    write_best(storage.join(config.output, "best.yaml"), best, config)
    outcomes = [trial.outcome for trial in trials]
    metrics = {
        "best": best.settings,
        **{name: value for name, value in best.result.items() if name != "trained_to_end"},
        "log_likelihood_when_chosen": best.log_likelihood,
        **choice.likelihood.compare(gaussian),
        **choice.metrics,
        "num_trials": config.num_trials,
        **{f"num_{outcome}": outcomes.count(outcome) for outcome in ("trained", "stopped", "failed")},
        "num_errors": len(errors),
        "num_validation_images": data.tokens.shape[0],
        "num_validation_tokens": data.tokens.shape[0] * data.tokens.shape[1],
        "seconds": round(time.monotonic() - started, 1),
    }
    write_report(storage.join(config.output, "report.html"), sweep_report(_page(config, trials, metrics)))
    storage.delete_partials(config.output)
    return metrics


class _Choice(NamedTuple):
    """The chosen trial, its likelihood measured anew, all trials, and metrics of the captions if there are any."""

    best: FinishedTrial
    likelihood: RbmLikelihood
    trials: list[FinishedTrial]
    metrics: dict[str, Any]


def _choose(config: SweepConfig, trials: list[FinishedTrial], data: HeldOut, errors: Sequence[Exception]) -> _Choice:
    """The most likely trial; with ``captions``, of those as likely the one with the best captions."""
    trained = trained_trials(trials, errors)
    if config.captions is None:
        return _Choice(trained[0], measure_anew(trained[0], data, config), trials, {})
    measured = []
    for trial in trained[: config.captions.candidates]:
        number = trials.index(trial) + 1
        say(f"sweep: measuring anew the likelihood of trial {number}, the most likely first")
        measured.append((number, trial, measure_anew(trial, data, config)))
    captioned, metrics = caption_trials(config, config.captions, measured)
    chosen = choose_by_captions(captioned)
    scored = {candidate.number: candidate.scored() for candidate in captioned}
    every = [scored.get(number, trial) for number, trial in enumerate(trials, 1)]
    return _Choice(scored[chosen.number], chosen.likelihood, every, {"captions": metrics})


def _tuner(config: SweepConfig, data: HeldOut) -> tune.Tuner:
    """A new experiment, or the one that was interrupted."""
    resources = {"CPU": config.cpus_per_trial} | ({"GPU": 1} if config.use_gpu else {})
    trainable = tune.with_resources(tune.with_parameters(run_trial, config=config, data=data), resources)
    filesystem, path = storage.resolve(config.output)
    remote = None if isinstance(filesystem, fs.LocalFileSystem) else filesystem
    experiment = storage.join(path, _EXPERIMENT)
    if _is_restorable(storage.join(config.output, _EXPERIMENT)):
        say("sweep: going on with the interrupted one")
        return tune.Tuner.restore(
            experiment, trainable, resume_unfinished=True, resume_errored=True, storage_filesystem=remote
        )
    storage.delete(storage.join(config.output, _EXPERIMENT))
    scheduler = None
    if isinstance(config.scheduler, Asha):
        scheduler = ASHAScheduler(
            time_attr="epoch",
            # Beyond the last epoch: a trial ends by itself.
            max_t=config.base.epochs + 1,
            grace_period=min(config.scheduler.grace_epochs, config.base.epochs),
            reduction_factor=config.scheduler.reduction_factor,
        )
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=config.num_trials,
            search_alg=_search(config),
            scheduler=scheduler,
            max_concurrent_trials=config.max_concurrent_trials,
            reuse_actors=True,  # a process takes longer to start than a small trial to train
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=_EXPERIMENT,
            storage_path=path,
            storage_filesystem=remote,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            failure_config=tune.FailureConfig(max_failures=_MAX_FAILURES),
            callbacks=[Watcher(config.output, config.num_trials, config.base.epochs)],
        ),
    )


def _is_restorable(experiment: str) -> bool:
    """Whether Tune had begun to keep state there."""
    if not storage.is_directory(experiment):
        return False
    names = {entry.name for entry in storage.list_files(experiment)}
    return "tuner.pkl" in names and any(name.startswith("experiment_state-") for name in names)


def _search(config: SweepConfig) -> OptunaSearch:
    sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=config.seed)
    if config.search == "bayesian":
        # A third of the trials at random, as a start; Optuna's ten would be all of a small sweep.
        startup = min(10, max(1, config.num_trials // 3))
        sampler = optuna.samplers.TPESampler(seed=config.seed, n_startup_trials=startup)
    space = {key: domain.distribution() for key, domain in config.space.items()}
    return OptunaSearch(space, metric=METRIC, mode="max", sampler=sampler)


def _quiet() -> None:
    """Leave the progress lines to raycap; and have Tune keep its state after every second, not every ten."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # whose box of settings comes at any verbosity
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    # Else fit() returns on Ctrl-C, as if all trials were finished.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="optuna")


def _page(config: SweepConfig, trials: list[FinishedTrial], metrics: dict[str, Any]) -> SweepPage:
    return SweepPage(
        trials=tuple(TrialRow(trial.settings, trial.result, trial.outcome) for trial in trials),
        keys=tuple(config.space),
        metrics=metrics,
        split=config.base.task.validation_split,
        search=config.search,
    )
