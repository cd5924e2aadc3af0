"""A sweep's finished trials: read, ranked by likelihood, one of them chosen, written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from raycap import storage
from raycap.batch.annealing import anneal
from raycap.batch.token_likelihood import HeldOut, RbmLikelihood, rbm_likelihood
from raycap.checkpoint.refiner import load_rbm_refiner
from raycap.errors import UserError
from raycap.sweep.config import SweepConfig
from raycap.sweep.trial import METRIC, RESULTS

_FINER = 4
_CAPTION_COLUMNS = ("best_gate", "cider", "cider_difference", "cider_difference_low", "cider_difference_high")
_COLUMNS = (
    METRIC, "log_likelihood_error", "annealing_error", "sampling_error", "annealing_effective_samples",
    "free_energy_gap", "epoch",
)  # fmt: skip


@dataclass(frozen=True)
class FinishedTrial:
    """Settings by the dotted keys of the space, and what was reported last."""

    settings: dict[str, Any]
    result: dict[str, Any]
    epochs: int

    @property
    def log_likelihood(self) -> float:
        """Nats per token; -inf for a trial without one."""
        return self.result[METRIC]

    @property
    def outcome(self) -> str:
        """``trained``, ``stopped`` by the scheduler, or ``failed``."""
        if "failure" in self.result:
            return "failed"
        ended = self.result.get("trained_to_end", False) or self.result["epoch"] >= self.epochs
        return "trained" if ended else "stopped"


def read_trials(config: SweepConfig) -> list[FinishedTrial]:
    """Every finished trial, the most likely first; equal settings count once."""
    folder = storage.join(config.output, RESULTS)
    names = [entry.name for entry in storage.list_files(folder)] if storage.is_directory(folder) else []
    notes = [storage.read_json(storage.join(folder, name)) for name in sorted(names)]
    trials = [FinishedTrial(note["settings"], note["result"], config.base.epochs) for note in notes]
    return sorted(trials, key=lambda trial: -trial.log_likelihood)


def trained_trials(trials: list[FinishedTrial], errors: Sequence[Exception] = ()) -> list[FinishedTrial]:
    """Those trained to the end, the most likely first.

    One that the scheduler stopped is no candidate: its settings, trained to the end, were not measured.

    Args:
        trials: the most likely first.
        errors: of trials that were never finished.

    Raises:
        UserError: there is none.
    """
    trained = [trial for trial in trials if trial.outcome == "trained"]
    if trained:
        return trained
    failures = sorted({trial.result["failure"] for trial in trials if trial.outcome == "failed"})
    failures += [str(error).strip().splitlines()[-1] for error in errors]
    reason = f"; one failed with: {failures[0]}" if failures else ""
    raise UserError(f"space: none of {len(trials) + len(errors)} trials was trained to the end{reason}; change it")


def measure_anew(trial: FinishedTrial, data: HeldOut, config: SweepConfig) -> RbmLikelihood:
    """A trial's likelihood by other chains, more finely, spread over the cluster.

    The highest of many estimates was also a lucky one.
    """
    refiner, _ = load_rbm_refiner(trial.result["model"])
    finer = config.annealing.model_copy(update={"num_betas": _FINER * config.annealing.num_betas})
    annealed = anneal(refiner.rbm, finer, config.seed + 1, cpus_per_task=config.cpus_per_trial, use_gpu=config.use_gpu)
    return rbm_likelihood(refiner, data, annealed.estimate())


def write_csv(uri: str, trials: list[FinishedTrial], keys: list[str]) -> None:
    """A line for each trial, the most likely first."""
    names = (*_COLUMNS, *_CAPTION_COLUMNS, "model", "failure")
    rows = [
        [*(trial.settings[key] for key in keys), trial.outcome, *(trial.result.get(name, "") for name in names)]
        for trial in trials
    ]
    storage.write_csv(uri, [*keys, "outcome", *names], rows)


def write_best(uri: str, trial: FinishedTrial, config: SweepConfig) -> None:
    """The chosen training, as jobs/train.py takes it."""
    chosen = config.trial_config(trial.settings, storage.join(config.output, "best"))
    head = f"# Chosen by log-likelihood: {trial.log_likelihood:.4f} nats per token of split "
    head += f"{chosen.task.validation_split}.\n"
    if "cider" in trial.result:
        head += "# Of the trials as likely as the most likely one, it has the best captions: CIDEr "
        head += f"{100 * trial.result['cider']:.1f} at gate {trial.result['best_gate']:g}.\n"
    values = chosen.model_dump(mode="json")
    storage.write_bytes(uri, (head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)).encode())
