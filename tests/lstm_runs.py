"""Trainings of a tiny LSTM captioner: their configurations, their histories, and a worker by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tiny import CAPTIONS

from raycap.checkpoint.lstm_captioner import CaptioningLstm, save_lstm_captioner
from raycap.data.vocabulary import count_words, make_vocabulary
from raycap.models.lstm_captioner import LstmCaptioner
from raycap.models.resnet_regions import ResNetRegions, ResNetShape
from raycap.train.config import TrainConfig
from raycap.train.loop import Worker

RESNET = {"kind": "new", "shape": {"embedding_size": 8, "hidden_sizes": [16], "depths": [1], "layer_type": "basic"}}
MODEL = {"kind": "new", "encoder": RESNET, "image_size": 32, "grid": 2, "embed_dim": 8, "hidden_dim": 16}


def task(rows: str, model: dict[str, Any] = MODEL, **settings: Any) -> dict[str, Any]:
    return {"kind": "lstm_captioning", "rows": rows, "model": model, "resize": 36, "max_tokens": 10, **settings}


def config(task: dict[str, Any], output: Path, **settings: Any) -> TrainConfig:
    defaults: dict[str, Any] = {"epochs": 2, "batch_size_per_worker": 20, "log_every_steps": 1, "precision": "fp32"}
    defaults |= {"cpus_per_worker": 0.5, "torch_threads": 1, "num_workers": 2, "readers_per_worker": 0}
    optimizer = {"kind": "adamw", "learning_rate": 5e-3, "weight_decay": 0.0}
    return TrainConfig.model_validate(
        {"output": str(output), "task": task, "optimizer": optimizer, **defaults, **settings}
    )


def history(output: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds"], record["data_wait_share"]
    return records


def save_captioner(directory: Path, seed: int) -> str:
    torch.manual_seed(seed)
    shape = ResNetShape.model_validate(MODEL["encoder"]["shape"])
    encoder, vocabulary = ResNetRegions(shape.build(), 32, 2), make_vocabulary(count_words(CAPTIONS * 2))
    decoder = LstmCaptioner(len(vocabulary), 8, 16, encoder.embed_dim)
    save_lstm_captioner(directory, CaptioningLstm(encoder, decoder, vocabulary))
    return str(directory)


class KeepingHost:
    """A worker by itself that keeps every checkpoint."""

    rank, num_workers, local_workers, speaks = 0, 1, 1, False
    device = torch.device("cpu")

    def __init__(self, folder: Path, begin: Path | None = None) -> None:
        self.folder, self.begin = folder, begin

    @contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        yield self.begin

    def report(self, metrics: dict[str, Any], directory: Path) -> None:
        shutil.copytree(directory, self.folder / f"{metrics['step']:03d}", dirs_exist_ok=True)


def run(settings: Any, recipe: Any, host: KeepingHost) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    worker = Worker(settings, recipe, host)
    worker.run()
    weights = {name: tensor.clone() for name, tensor in worker.task.state_dict().items()}
    records = history(Path(settings.output))
    for record in records:
        record.pop("resumed_at", None)
    return records, weights
