"""Training on a real Ray: strategies agree, runs resume, models come out whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY

from raycap.checkpoint.identity import encoder_fingerprint
from raycap.checkpoint.pretrained import load_blip
from raycap.checkpoint.refiner import load_refiner
from raycap.errors import UserError
from raycap.train.config import TrainConfig
from raycap.train.trainer import train

pytestmark = pytest.mark.integration


def captioning(rows: str, output: Path, **settings: Any) -> TrainConfig:
    task = {"kind": "captioning", "rows": rows, "model": {"kind": "new", "shape": TINY.model_dump(), "vocab_size": 100}}
    defaults: dict[str, Any] = {"epochs": 2, "batch_size_per_worker": 20, "log_every_steps": 1, "precision": "fp32"}
    defaults |= {"cpus_per_worker": 0.5, "torch_threads": 1, "optimizer": {"kind": "adamw", "learning_rate": 3e-3}}
    defaults |= {"readers_per_worker": 0}
    return TrainConfig.model_validate({"output": str(output), "task": task, **defaults, **settings})


def history(output: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds"], record["data_wait_share"]
    return records


@pytest.fixture(scope="module")
def ddp_run(tiny_rows: str, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("ddp") / "run"
    train(captioning(tiny_rows, output, num_workers=2, readers_per_worker=1))
    return output


def test_training_lowers_the_validation_loss_and_writes_a_model_that_loads(ddp_run: Path) -> None:
    losses = [record["validation_caption_loss"] for record in history(ddp_run) if "validation_caption_loss" in record]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    encoder, decoder = load_blip(str(ddp_run / "model"))
    assert encoder.image_size == TINY.image_size
    assert len(decoder.tokenizer) == decoder.text_decoder.config.vocab_size


def test_a_finished_run_is_not_trained_again(ddp_run: Path, tiny_rows: str) -> None:
    before = history(ddp_run)
    (ddp_run / "metrics.json").write_text('{"marker": 1}')
    assert train(captioning(tiny_rows, ddp_run, num_workers=2, readers_per_worker=1)) == {"marker": 1}
    assert history(ddp_run) == before


def test_another_run_s_output_is_refused(ddp_run: Path, tiny_rows: str) -> None:
    message = r"output = .*other settings \(epochs is \d there, 9 here; optimizer\.learning_rate is .*overwrite=true"
    with pytest.raises(UserError, match=message):
        config = {"kind": "adamw", "learning_rate": 1.0}
        train(captioning(tiny_rows, ddp_run, num_workers=2, readers_per_worker=1, epochs=9, optimizer=config))


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_deepspeed_follows_the_losses_of_ddp(
    stage: int, ddp_run: Path, tiny_rows: str, tmp_path: Path, ray_cluster: None
) -> None:
    output = tmp_path / "run"
    train(captioning(tiny_rows, output, num_workers=2, strategy={"kind": "deepspeed", "stage": stage}))
    for ours, reference in zip(history(output), history(ddp_run), strict=True):
        if stage == 0:  # without ZeRO DeepSpeed keeps the gradient's norm to itself
            reference.pop("train_gradient_norm", None)
        assert ours == pytest.approx(reference, rel=2e-3)
    trained, expected = (dict(load_blip(str(run / "model"))[1].state_dict()) for run in (output, ddp_run))
    for name, tensor in expected.items():
        assert torch.allclose(trained[name], tensor, atol=2e-3), name


def test_bf16_products_train_as_fp32_does_nearly(
    ddp_run: Path, tiny_rows: str, tmp_path: Path, ray_cluster: None
) -> None:
    train(captioning(tiny_rows, tmp_path / "run", num_workers=2, precision="bf16"))
    ours, reference = history(tmp_path / "run")[-1], history(ddp_run)[-1]
    assert ours["validation_caption_loss"] == pytest.approx(reference["validation_caption_loss"], rel=2e-2)
    assert ours != reference, "bf16 was not used"


def test_a_pretrained_blip_trains_further_with_its_encoder_frozen(
    tiny_rows: str, tiny_blip: str, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(tiny_blip).parent)  # a relative path must reach the workers too
    model = {"kind": "pretrained", "path": Path(tiny_blip).name, "max_text_tokens": 16}
    task = {"kind": "captioning", "rows": tiny_rows, "model": model, "freeze_encoder": True, "prompt": "a"}
    settings = {"output": str(tmp_path / "run"), "task": task, "batch_size_per_worker": 20, "cpus_per_worker": 0.5}
    train(TrainConfig.model_validate(settings))
    before, after = load_blip(tiny_blip), load_blip(str(tmp_path / "run" / "model"))
    assert encoder_fingerprint(after[0]) == encoder_fingerprint(before[0])
    weights = [
        halves[1].text_decoder.state_dict()["bert.embeddings.word_embeddings.weight"] for halves in (before, after)
    ]
    assert not torch.equal(*weights)


def test_accumulated_batches_equal_one_large_batch(tiny_rows: str, tmp_path: Path, ray_cluster: None) -> None:
    runs = []
    for name, settings in (("large", {}), ("parts", {"gradient_accumulation_steps": 2, "batch_size_per_worker": 10})):
        train(captioning(tiny_rows, tmp_path / name, epochs=1, num_workers=0, **settings))
        runs.append([r["validation_caption_loss"] for r in history(tmp_path / name) if "validation_caption_loss" in r])
    # Captions of different lengths weigh a little differently when the mean is taken by halves.
    assert runs[0] == pytest.approx(runs[1], rel=2e-2)


def test_an_rbm_trains_online_without_a_store(
    tiny_rows: str, tiny_blip: str, tmp_path: Path, ray_cluster: None
) -> None:
    features = {"kind": "online", "rows": tiny_rows, "model": tiny_blip, "precision": "fp32", "statistics_images": 64}
    task = {"kind": "contrastive_divergence", "features": features, "num_hidden": 8, "sigma": 0.7}
    settings = {"output": str(tmp_path / "rbm"), "task": task, "epochs": 3, "batch_size_per_worker": 100}
    settings |= {"cpus_per_worker": 0.5, "optimizer": {"kind": "sgd", "learning_rate": 0.01}}
    metrics = train(TrainConfig.model_validate(settings))
    refiner = load_refiner(metrics["model"])
    assert refiner.rbm.num_visible == TINY.embed_dim
    records = history(tmp_path / "rbm")
    assert records[-1]["validation_free_energy"] < records[0]["train_free_energy"]


def test_too_large_a_batch_is_one_clear_error(tiny_rows: str, tmp_path: Path, ray_cluster: None) -> None:
    config = captioning(tiny_rows, tmp_path / "run", batch_size_per_worker=1000)
    for _ in range(2):  # the second time without starting a worker
        with pytest.raises(UserError, match="batch_size_per_worker = 1000: .*set a smaller one"):
            train(config)


def test_a_loss_that_is_no_number_names_the_learning_rate(tiny_rows: str, tmp_path: Path, ray_cluster: None) -> None:
    optimizer = {"kind": "sgd", "learning_rate": 1e20}
    with pytest.raises(UserError, match="optimizer.learning_rate = 1e.20: train_caption_loss is (nan|inf) at step"):
        train(captioning(tiny_rows, tmp_path / "run", optimizer=optimizer, clip_norm=None))


def test_the_best_checkpoints_are_kept_and_the_newest(tiny_rows: str, tmp_path: Path, ray_cluster: None) -> None:
    # Steps this large lead away from the first epoch's model.
    steps = {"optimizer": {"kind": "sgd", "learning_rate": 1.0}, "schedule": {"kind": "constant"}}
    train(captioning(tiny_rows, tmp_path, num_workers=1, epochs=4, keep_checkpoints=1, **steps))
    losses = {r["step"]: r["validation_caption_loss"] for r in history(tmp_path) if "validation_caption_loss" in r}
    best, newest = min(losses, key=lambda step: losses[step]), max(losses)
    assert best != newest, "the case shows nothing"
    kept = [path for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()]
    steps_of_kept = [json.loads((path / "history.jsonl").read_text().splitlines()[-1])["step"] for path in kept]
    assert sorted(steps_of_kept) == [best, newest]


def test_training_in_the_job_s_own_process(tiny_rows: str, tmp_path: Path, ray_cluster: None) -> None:
    train(captioning(tiny_rows, tmp_path / "run", num_workers=0, epochs=1))
    assert (tmp_path / "run" / "model" / "config.json").exists()
