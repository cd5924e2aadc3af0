"""A run's history in MLflow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from pydantic import Field, field_validator

from raycap import storage
from raycap.config import Config
from raycap.errors import UserError
from raycap.progress import say
from raycap.train.history import measurements

# In the output: which run of MLflow's is this one.
RUN_FILE = "mlflow.json"
# A tag of the run: up to which step MLflow knows it.
_STEP = "raycap.step"
_METRICS_PER_CALL = 1_000  # MLflow's own limit


class MlflowTracking(Config):
    """Where MLflow keeps runs. A resumed run goes on in its old one."""

    uri: str
    """``http://...`` of a server, or ``sqlite:////...`` with the whole path of a file."""

    experiment: str = Field(default="raycap", min_length=1)

    @field_validator("uri")
    @classmethod
    def _found_from_everywhere(cls, uri: str) -> str:
        # Workers have other working directories.
        if "://" not in uri or (uri.startswith("sqlite:///") and not uri.startswith("sqlite:////")):
            raise ValueError(f"({uri}) is found from this directory only; give http://... or sqlite:////whole/path.db")
        return uri

    def require_client(self) -> None:
        """Look for MLflow before anything is computed.

        Raises:
            UserError: it is not installed.
        """
        if find_spec("mlflow") is None:
            raise UserError(f"mlflow.uri = {self.uri}: MLflow is not installed; pip install 'raycap[mlflow]'")


def log_metrics(tracking: MlflowTracking, output: str, history: Sequence[dict[str, Any]]) -> None:
    """Add what a history has beyond what MLflow knows; a server that does not answer is told of, and gets it later.

    Args:
        output: of the run, which is named by it.
        history: each number becomes a metric, at its step.
    """
    # Every worker waits for it; what was not sent is sent at the next checkpoint.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking.uri)
        run = client.get_run(_run_id(client, tracking.experiment, output))
        known = int(run.data.tags.get(_STEP, -1))
        metrics = [
            Metric(name, value, round(1000 * measured.wall_time), measured.step)
            for measured in measurements(history)
            if measured.step > known
            for name, value in measured.values.items()
        ]
        for begin in range(0, len(metrics), _METRICS_PER_CALL):
            client.log_batch(run.info.run_id, metrics=metrics[begin : begin + _METRICS_PER_CALL])
        client.set_tag(run.info.run_id, _STEP, str(history[-1]["step"]))
    except MlflowException as error:
        (line, *_) = str(error).splitlines() or [""]
        say(f"mlflow.uri = {tracking.uri}: {line[:200]}; training goes on, and tries again at the next checkpoint")


def _run_id(client: Any, experiment: str, output: str) -> str:
    place = storage.join(output, RUN_FILE)
    if storage.exists(place):
        return str(storage.read_json(place)["run_id"])
    known = client.get_experiment_by_name(experiment)
    experiment_id = client.create_experiment(experiment) if known is None else known.experiment_id
    run_id: str = client.create_run(experiment_id, run_name=output).info.run_id
    storage.write_json(place, {"run_id": run_id})
    return run_id
