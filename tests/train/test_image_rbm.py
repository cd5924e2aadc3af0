"""Training an RBM over images as the job runs it: spread over workers, published in parts, read back whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny import make_store

from raycap.batch.likelihood import LikelihoodConfig, measure_likelihood
from raycap.batch.refiners import RefinersConfig, make_refiners
from raycap.checkpoint.refiner import load_rbm_refiner, load_refiner
from raycap.data.features import open_store, read_features
from raycap.errors import UserError
from raycap.train.config import TrainConfig
from raycap.train.recipe import HopelessRunError, Share
from raycap.train.trainer import train

pytestmark = pytest.mark.usefixtures("ray_cluster")
SPREAD = {"kind": "in_place", "shard": "visible_units"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_store(str(tmp_path_factory.mktemp("store") / "features"))


def image_config(store: str, output: Path, task: dict[str, Any] | None = None, **settings: Any) -> TrainConfig:
    base = {"kind": "contrastive_divergence", "features": {"kind": "store", "path": store}, "num_hidden": 12}
    base |= {"granularity": "image", "negatives": "pcd", "learn_variance": True}
    defaults = {"epochs": 2, "batch_size_per_worker": 16, "log_every_steps": 2, "precision": "fp32", "num_workers": 1}
    defaults |= {"cpus_per_worker": 0.5, "torch_threads": 1, "readers_per_worker": 0, "strategy": SPREAD}
    return TrainConfig.model_validate({"output": str(output), "task": base | (task or {}), **defaults, **settings})


def test_two_workers_publish_the_model_that_one_publishes(store: str, tmp_path: Path) -> None:
    for count in (1, 2):
        train(image_config(store, tmp_path / str(count), num_workers=count))
    refiners = [load_rbm_refiner(str(tmp_path / str(count) / "model"))[0] for count in (1, 2)]
    assert refiners[0].rbm.num_visible == 5 * 16
    states = [refiner.state_dict() for refiner in refiners]
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-4), name
    model = tmp_path / "2" / "model"
    parts = json.loads((model / "config.json").read_text())["parts"]
    assert len(parts) == 2
    assert sorted(path.name for path in model.glob("*.safetensors")) == parts, "those of the first epoch are gone"
    image_embeds = torch.from_numpy(read_features(open_store(store).chunks("dev")[0])[:4].copy())
    refined = refiners[1](image_embeds, gate=0.5)
    assert refined.shape == image_embeds.shape
    assert torch.equal(refined[1:2], refiners[1](image_embeds[1:2], gate=0.5))
    assert not torch.equal(refined, image_embeds)


def test_whole_on_one_worker_both_routes_end_in_the_same_rbm(store: str, tmp_path: Path) -> None:
    for kind in ("in_place", "ddp"):
        train(image_config(store, tmp_path / kind, epochs=1, num_workers=0, strategy={"kind": kind}))
    states = [load_refiner(str(tmp_path / kind / "model")).state_dict() for kind in ("in_place", "ddp")]
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-5), name
    shared = {"rbm": str(tmp_path / "ddp" / "model"), "features": store, "output": str(tmp_path / "out")}
    with pytest.raises(UserError, match="is one over images; give one over tokens"):
        make_refiners(RefinersConfig(**shared))
    with pytest.raises(UserError, match="is one over images; give one over tokens"):
        measure_likelihood(LikelihoodConfig(**shared))


def test_settings_that_do_not_fit_are_refused(store: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"shard \(visible_units\) needs task.granularity image, not token"):
        image_config(store, tmp_path, {"granularity": "token"})
    with pytest.raises(ValidationError, match=r"cannot train with task.negatives \(parallel_tempering\)"):
        image_config(store, tmp_path, {"negatives": "parallel_tempering"})
    with pytest.raises(ValidationError, match=r"needs num_workers \(0\) of at least 1"):
        image_config(store, tmp_path, num_workers=0)
    recipe = image_config(store, tmp_path, num_workers=6).task.prepare(str(tmp_path))
    with pytest.raises(HopelessRunError, match=r"num_workers = 6: an image has 5 tokens"):
        recipe.build_task(0, 0, Share(range(1), 1, 16, model_rank=0, model_workers=6))
