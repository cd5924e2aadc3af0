"""What the driver does while trials run: a line on each result, a note of each trial that is finished."""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from raycap import storage
from raycap.progress import say
from raycap.sweep.trial import METRIC, note_result, result_uri


class Watcher(tune.Callback):
    """Prints progress, and notes the results of trials that Tune has stopped.

    Args:
        output: of the sweep.
        num_trials: of the sweep.
        epochs: of a trial.
    """

    def __init__(self, output: str, num_trials: int, epochs: int) -> None:
        self._output, self._num_trials, self._epochs = output, num_trials, epochs

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002 - Tune gives it
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        number = trials.index(trial) + 1
        if "failure" in result:
            say(f"sweep: trial {number}/{self._num_trials} has no likelihood: {result['failure']}")
            return
        say(
            f"sweep: trial {number}/{self._num_trials}, epoch {result['epoch']}/{self._epochs}: "
            f"log-likelihood {result[METRIC]:.3f} ± {result['log_likelihood_error']:.3f} nats per token"
        )

    def on_trial_complete(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],
        trial: Trial,
        **info: Any,  # noqa: ARG002
    ) -> None:
        settings, result = trial.config, trial.last_result
        if METRIC in result and not storage.exists(result_uri(self._output, settings)):
            names = result.keys() - _BOOKKEEPING
            note_result(self._output, settings, {name: result[name] for name in result if name in names})
        # This one counts as finished only after this call.
        finished = sum(other is trial or other.is_finished() for other in trials)
        say(f"sweep: {finished}/{self._num_trials} trials finished")


# What Tune adds to each result.
_BOOKKEEPING = {
    "timestamp", "checkpoint_dir_name", "should_checkpoint", "done", "training_iteration", "trial_id", "date",
    "time_this_iter_s", "time_total_s", "pid", "hostname", "node_ip", "config", "time_since_restore",
    "iterations_since_restore", "experiment_tag",
}  # fmt: skip
