"""Training an RBM as the job runs it: from a store, by every route, stopped early, whitened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny import make_store

from raycap.checkpoint.refiner import load_refiner
from raycap.data.features import open_store, read_features, token_covariance
from raycap.models.refiner import RbmRefiner
from raycap.train.config import TrainConfig
from raycap.train.trainer import train

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_store(str(tmp_path_factory.mktemp("store") / "features"))


def rbm_config(store: str, output: Path, task: dict[str, Any] | None = None, **settings: Any) -> TrainConfig:
    base = {"kind": "contrastive_divergence", "features": {"kind": "store", "path": store}, "num_hidden": 12}
    defaults = {"epochs": 2, "batch_size_per_worker": 64, "log_every_steps": 2, "precision": "fp32", "num_workers": 0}
    defaults |= {"cpus_per_worker": 0.5, "torch_threads": 1, "optimizer": {"kind": "sgd", "learning_rate": 0.01}}
    defaults |= {"readers_per_worker": 0}
    return TrainConfig.model_validate({"output": str(output), "task": base | (task or {}), **defaults, **settings})


def tensors(output: Path) -> dict[str, torch.Tensor]:
    return dict(load_refiner(str(output / "model")).state_dict())


def history(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]


def test_in_place_and_back_propagated_training_end_in_the_same_rbm(store: str, tmp_path: Path) -> None:
    task = {"negatives": "pcd", "learn_variance": True, "sparsity_cost": 0.1}
    for kind in ("in_place", "ddp"):
        train(rbm_config(store, tmp_path / kind, task, strategy={"kind": kind}))
    for name, value in tensors(tmp_path / "in_place").items():
        assert torch.allclose(value, tensors(tmp_path / "ddp")[name], atol=1e-5), name
    last = history(tmp_path / "in_place")[-1]
    gap = last["validation_free_energy"] - last["train_sample_free_energy"]
    assert last["free_energy_gap"] == pytest.approx(gap)
    assert 0 < history(tmp_path / "in_place")[0]["train_hidden_activity"] < 1


def test_a_worker_that_reads_by_itself_trains_the_same_rbm(store: str, tmp_path: Path) -> None:
    for readers in (0, 1):
        settings = {"num_workers": 1, "readers_per_worker": readers, "strategy": {"kind": "in_place"}}
        train(rbm_config(store, tmp_path / str(readers), **settings))
    for name, value in tensors(tmp_path / "0").items():
        assert torch.equal(value, tensors(tmp_path / "1")[name]), name


def test_with_the_same_parts_two_workers_end_in_the_rbm_of_one(tmp_path: Path) -> None:
    store = make_store(str(tmp_path / "features"), num_train=320)
    task = {"negatives": "pcd", "learn_variance": True}
    shared = {"strategy": {"kind": "in_place", "centred": True}, "data_parts": 2, "shuffle_chunks": 1}
    for count, batch in ((1, 128), (2, 64)):
        train(rbm_config(store, tmp_path / str(count), task, num_workers=count, batch_size_per_worker=batch, **shared))
    for name, value in tensors(tmp_path / "1").items():
        assert torch.allclose(value, tensors(tmp_path / "2")[name], atol=1e-5), name
    alone, together = (history(tmp_path / count)[-1] for count in ("1", "2"))
    assert alone["step"] == together["step"] > 4
    assert alone["free_energy_gap"] == pytest.approx(together["free_energy_gap"], abs=1e-3)


def test_parts_that_workers_cannot_share_are_refused(store: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"data_parts \(3\) must be a multiple of num_workers \(2\)"):
        rbm_config(store, tmp_path, num_workers=2, data_parts=3)
    with pytest.raises(ValidationError, match=r"batch_size_per_worker \(64\) must be a multiple of the parts"):
        rbm_config(store, tmp_path, data_parts=3)


def test_a_gap_that_widens_ends_the_run(store: str, tmp_path: Path) -> None:
    # 750 tokens and 300 hidden units: learned by heart at once.
    task = {"num_hidden": 300, "negatives": "pcd", "sigma": 0.5}
    stopping = {"early_stopping": {"patience": 2}, "optimizer": {"kind": "adamw", "learning_rate": 0.003}}
    train(rbm_config(store, tmp_path, task, epochs=60, clip_norm=None, strategy={"kind": "in_place"}, **stopping))
    gaps = [record["free_energy_gap"] for record in history(tmp_path) if "free_energy_gap" in record]
    assert 3 <= len(gaps) < 60
    assert min(gaps[-2:]) > min(gaps)


def test_whitened_embeddings_are_uncorrelated_and_come_back(store: str, tmp_path: Path) -> None:
    train(rbm_config(store, tmp_path, {"normalisation": "whiten"}, epochs=1))
    refiner: RbmRefiner = load_refiner(str(tmp_path / "model"))
    opened = open_store(store)
    tokens = np.concatenate([read_features(chunk) for chunk in opened.chunks("train")]).reshape(-1, 16)
    v = refiner.standardise(torch.from_numpy(tokens))
    np.testing.assert_allclose(np.cov(v.numpy().T), np.eye(16), atol=0.02)
    np.testing.assert_allclose(refiner.unstandardise(v).numpy(), tokens, atol=0.05)
    np.testing.assert_allclose(
        token_covariance(opened, "train", 10_000), np.cov(tokens.astype(np.float64).T, bias=True), rtol=1e-3, atol=1e-3
    )


def test_settings_that_do_not_fit_are_refused(store: str, tmp_path: Path) -> None:
    online = {"kind": "online", "rows": "r", "model": "m"}
    with pytest.raises(ValidationError, match=r"normalisation \(whiten\) needs features.kind store"):
        rbm_config(store, tmp_path, {"normalisation": "whiten", "features": online})
    captioning = {"kind": "captioning", "rows": "r"}
    with pytest.raises(ValidationError, match=r"strategy.kind \(in_place\) trains RBMs only"):
        TrainConfig.model_validate({"output": "o", "task": captioning, "strategy": {"kind": "in_place"}})
