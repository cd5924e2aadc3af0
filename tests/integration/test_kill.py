"""What is killed in the middle goes on without help, and ends as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import TINY, make_store

pytestmark = pytest.mark.integration


CAPTIONING = {
    "kind": "captioning",
    # Dropout, so that the random states matter.
    "model": {"kind": "new", "shape": TINY.model_copy(update={"dropout": 0.1}).model_dump()},
}
LSTM_CAPTIONING = {
    "kind": "lstm_captioning",
    # A trained ResNet, so that each worker's running statistics matter, and words that are drawn.
    "model": {
        "kind": "new",
        "encoder": {
            "kind": "new",
            "shape": {"embedding_size": 8, "hidden_sizes": [16], "depths": [1], "layer_type": "basic"},
        },
        "image_size": 32,
        "grid": 2,
        "hidden_dim": 16,
    },
    "resize": 36,
    "scheduled_sampling": 0.3,
}
# Killed after the border between its stages.
TWO_STAGES = LSTM_CAPTIONING | {"unfreeze_encoder_after_epochs": 1}
# Chains that go on from step to step are one more thing to be found again.
RBM = {"kind": "contrastive_divergence", "num_hidden": 12, "negatives": "pcd", "learn_variance": True}


def write_config(path: Path, output: Path, task: dict[str, Any], strategy: dict[str, Any]) -> str:
    config = {
        "output": str(output),
        "task": task,
        "epochs": 3,
        "batch_size_per_worker": 128 if task["kind"] == "contrastive_divergence" else 8,
        "num_workers": 2,
        "cpus_per_worker": 0.5,
        "torch_threads": 1,
        "precision": "fp32",
        "strategy": strategy,
        "log_every_steps": 1,
        "checkpoint_every_steps": 3,
        # BLIP's samples are read ahead by Ray Data, the others' by the workers themselves.
        "readers_per_worker": int(task["kind"] == "captioning"),
        "shuffle_chunks": 1,
    }
    path.write_text(yaml.safe_dump(config))
    return str(path)


def history(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]


def outcomes(output: Path) -> list[dict[str, Any]]:
    """The history without what tells how the run went: times and resumptions."""
    told = {"seconds", "data_wait_share", "resumed_at"}
    return [{name: value for name, value in record.items() if name not in told} for record in history(output)]


@pytest.fixture(scope="module")
def data(tiny_rows: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each kind of task trains on."""
    store = make_store(str(tmp_path_factory.mktemp("data") / "features"), num_train=512)
    return {
        "captioning": {"rows": tiny_rows},
        "lstm_captioning": {"rows": tiny_rows},
        "contrastive_divergence": {"features": {"kind": "store", "path": store}},
    }


@pytest.mark.parametrize(
    ("task", "strategy"),
    [
        pytest.param(CAPTIONING, {"kind": "ddp"}, id="captioning-ddp"),
        pytest.param(CAPTIONING, {"kind": "deepspeed", "stage": 2}, id="captioning-deepspeed"),
        pytest.param(TWO_STAGES, {"kind": "ddp"}, id="lstm-ddp"),
        pytest.param(LSTM_CAPTIONING, {"kind": "deepspeed", "stage": 2}, id="lstm-deepspeed"),
        pytest.param(RBM, {"kind": "in_place", "centred": True}, id="rbm-in_place"),
    ],
)
def test_a_training_worker_killed_mid_epoch_resumes_to_the_same_losses_and_weights(
    task: dict[str, Any],
    strategy: dict[str, Any],
    data: dict[str, dict[str, Any]],
    tmp_path: Path,
    start_job: Callable[..., Any],
) -> None:
    task = task | data[task["kind"]]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, _, errors = start_job("train", "--config", write_config(tmp_path / "a.yaml", whole, task, strategy)).wait()
    assert code == 0, errors

    def mid_epoch() -> bool:
        # Ray Train knows of a checkpoint to go on from; there are 9 or 10 steps an epoch, a checkpoint every 3.
        if not (killed / "checkpoints" / "checkpoint_manager_snapshot.json").exists():
            return False
        return history(killed)[-1]["step"] >= 14 if "unfreeze_encoder_after_epochs" in task else True

    job = start_job("train", "--config", write_config(tmp_path / "b.yaml", killed, task, strategy))
    job.kill_worker("RayTrainWorker", when=mid_epoch)
    code, _, errors = job.wait()
    assert code == 0, errors
    assert any("resumed_at" in record for record in history(killed))
    assert outcomes(killed) == outcomes(whole)
    weights = "model/model.safetensors"
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
    assert not list(killed.rglob("*.partial"))
    checkpoints = [path.name for path in (killed / "checkpoints").iterdir() if path.is_dir()]
    assert len(checkpoints) == 2, "the newest two are kept, and none of those that Ray Train never knew of"
