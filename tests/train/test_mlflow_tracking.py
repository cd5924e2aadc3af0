"""A run's numbers in MLflow, read back by MLflow's own client from its own database."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from train.test_tensorboard import record

from raycap.errors import UserError
from raycap.train.mlflow_tracking import MlflowTracking, log_metrics


@pytest.fixture
def tracking(tmp_path: Path) -> MlflowTracking:
    return MlflowTracking(uri=f"sqlite:///{tmp_path}/mlflow.db")


def find_runs(tracking: MlflowTracking) -> list:
    client = MlflowClient(tracking.uri)
    return client.search_runs([client.get_experiment_by_name(tracking.experiment).experiment_id])


def test_a_resumed_run_goes_on_where_mlflow_is(tmp_path, tracking):
    history = [record(1, train_caption_loss=3.0), record(2, train_caption_loss=2.0)]
    output = str(tmp_path / "it's")
    log_metrics(tracking, output, history)
    history += [record(3, train_caption_loss=1.5), record(3, validation_cider=0.5)]
    for _ in range(2):  # the second time after a kill
        log_metrics(tracking, output, history)
    (run,) = find_runs(tracking)
    losses = MlflowClient(tracking.uri).get_metric_history(run.info.run_id, "train_caption_loss")
    assert [(metric.step, metric.value) for metric in losses] == [(1, 3.0), (2, 2.0), (3, 1.5)]
    assert losses[1].timestamp - losses[0].timestamp == 100
    assert run.data.metrics["validation_cider"] == 0.5
    assert run.info.run_name == output


def test_an_output_that_was_cleared_is_another_run(tmp_path, tracking):
    for _ in range(2):
        log_metrics(tracking, str(tmp_path / "run"), [record(1, loss=1.0)])
        (tmp_path / "run" / "mlflow.json").unlink()
    assert len(find_runs(tracking)) == 2


def test_a_server_that_does_not_answer_does_not_end_a_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    log_metrics(MlflowTracking(uri="http://127.0.0.1:9"), str(tmp_path), [record(1, loss=1.0)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mlflow.uri = http://127.0.0.1:9: ")
    assert line.endswith("training goes on, and tries again at the next checkpoint")


def test_without_mlflow_a_run_that_wants_it_does_not_begin(tracking, monkeypatch):
    monkeypatch.setattr("raycap.train.mlflow_tracking.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mlflow.uri = sqlite.* pip install 'raycap\[mlflow\]'"):
        tracking.require_client()


@pytest.mark.parametrize("uri", ["mlruns", "sqlite:///mlflow.db"])
def test_a_place_that_workers_would_not_find_is_refused(uri):
    with pytest.raises(ValueError, match=f"{uri}. is found from this directory only"):
        MlflowTracking(uri=uri)
