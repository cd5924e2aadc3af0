"""Configurations of trainings of a tiny LSTM captioner, and what their histories hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raycap.train.config import TrainConfig

RESNET = {"kind": "new", "shape": {"embedding_size": 8, "hidden_sizes": [16], "depths": [1], "layer_type": "basic"}}
MODEL = {"kind": "new", "encoder": RESNET, "image_size": 32, "grid": 2, "embed_dim": 8, "hidden_dim": 16}


def task(rows: str, model: dict[str, Any] = MODEL, **settings: Any) -> dict[str, Any]:
    return {"kind": "lstm_captioning", "rows": rows, "model": model, "resize": 36, "max_tokens": 10, **settings}


def config(task: dict[str, Any], output: Path, **settings: Any) -> TrainConfig:
    defaults: dict[str, Any] = {"epochs": 2, "batch_size_per_worker": 20, "log_every_steps": 1, "precision": "fp32"}
    defaults |= {"cpus_per_worker": 0.5, "torch_threads": 1, "num_workers": 2}
    optimizer = {"kind": "adamw", "learning_rate": 5e-3, "weight_decay": 0.0}
    return TrainConfig.model_validate(
        {"output": str(output), "task": task, "optimizer": optimizer, **defaults, **settings}
    )


def history(output: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds"], record["data_wait_share"]
    return records
