"""Images per second of jobs/train.py on the LSTM captioner beside a bare torch loop of the same model.

    python benchmarks/train_lstm.py [--images 512] [--epochs 2] [--threads 1] [--repeats 1] [--frozen]

The shape of jobs/configs/flickr8k_small/train_lstm.yaml, on JPEGs of noise. The job reads rows, decodes, resizes, crops
and writes words as ids, beside its training worker; the loop trains on tensors that are in memory already. Both take
the same number of torch threads and run in turn, each in a process of its own. The job's rate is that between the first
and the last record of its losses, validations and checkpoints left out; of that time ``data_wait_share`` went by
waiting for data. The last line of output is one JSON object. Give several repeats and a quiet machine for figures to
publish; a reader needs a core beside the threads.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from PIL import Image

from raycap.data.rows import SCHEMA, RowsFile, open_rows, write_manifest, write_rows
from raycap.train.config import TrainConfig
from raycap.train.lstm_captioning import LstmCaptioningRecipe
from raycap.train.recipe import Share

_CONFIG = Path(__file__).parent.parent / "jobs/configs/flickr8k_small/train_lstm.yaml"
_WIDTH, _HEIGHT = 500, 375  # Flickr8k's most frequent size
_WORDS = [f"word{index}" for index in range(2500)]
_WARM_UP_STEPS = 2
# Of Ray's workers; the loop takes it too, so that a third process slows both alike.
_RAY_NICENESS = int(os.environ.get("RAY_worker_niceness", "15"))  # noqa: SIM112  # Ray's own spelling


def main() -> None:
    arguments = _parse()
    if arguments.run is not None:
        print(json.dumps({"job": job, "loop": loop}[arguments.run](arguments)))
        return
    load = os.getloadavg()[0]
    pairs = []
    with tempfile.TemporaryDirectory(prefix="raycap-benchmark-") as folder:
        write_images(f"{folder}/rows", arguments.images)
        # The first job makes the vocabulary, which the loop takes.
        for repeat in range(arguments.repeats):
            print(f"pair {repeat + 1} of {arguments.repeats}", file=sys.stderr, flush=True)
            pairs.append({name: _run(name, f"{folder}/{repeat}", f"{folder}/rows") for name in ("job", "loop")})
    ratios = [pair["job"]["images_per_second"] / pair["loop"]["images_per_second"] for pair in pairs]
    result = {
        "benchmark": "train_lstm",
        "job_images_per_second": [round(pair["job"]["images_per_second"], 2) for pair in pairs],
        "loop_images_per_second": [round(pair["loop"]["images_per_second"], 2) for pair in pairs],
        "ratio": round(statistics.median(ratios), 3),
        "data_wait_share": [round(pair["job"]["data_wait_share"], 4) for pair in pairs],
        "images": arguments.images,
        "epochs": arguments.epochs,
        "threads": arguments.threads,
        "frozen": arguments.frozen,
        "load_at_start": round(load, 2),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "ray", "transformers")},
    }
    print(json.dumps(result))


def training(arguments: argparse.Namespace) -> TrainConfig:
    config = yaml.safe_load(_CONFIG.read_text())
    config["task"] |= {"rows": arguments.rows, "captions": None, "freeze_encoder": arguments.frozen}
    config |= {"output": arguments.folder, "epochs": arguments.epochs, "validate_every_epochs": arguments.epochs}
    config |= {"torch_threads": arguments.threads, "log_every_steps": 1, "tensorboard": False, "num_workers": 1}
    return TrainConfig.model_validate(config)


def job(arguments: argparse.Namespace) -> dict[str, float]:
    """The whole job; its rate from its own history."""
    from raycap.train.trainer import train

    config = training(arguments)
    train(config)
    records = [json.loads(line) for line in Path(arguments.folder, "history.jsonl").read_text().splitlines()]
    trained = [record for record in records if "train_caption_loss" in record][_WARM_UP_STEPS - 1 :]
    first, last = trained[0], trained[-1]
    seconds = last["seconds"] - first["seconds"]
    waited = last["seconds"] * last["data_wait_share"] - first["seconds"] * first["data_wait_share"]
    images = (last["step"] - first["step"]) * config.batch_size_per_worker
    return {"images_per_second": images / seconds, "data_wait_share": waited / seconds}


def loop(arguments: argparse.Namespace) -> dict[str, float]:
    """Forward, backward, clipping and step, on batches that the job's own source has read before."""
    os.nice(_RAY_NICENESS)
    torch.set_num_threads(arguments.threads)
    config = training(arguments)
    recipe = LstmCaptioningRecipe(config.task, open_rows(arguments.rows), f"{arguments.folder}/tokenizer")  # type: ignore[arg-type]
    torch.manual_seed(config.seed)
    device, size = torch.device("cpu"), config.batch_size_per_worker
    task = recipe.build_task(config.seed, 0, Share(range(1), 1, size)).train()
    source = recipe.source(task, device)
    chunks = source.chunks("train")[:4]
    samples = source.to_samples(source.read(chunks, np.random.default_rng(0)))
    count = len(samples["input_ids"]) // size
    batches = [{name: part[i * size : (i + 1) * size] for name, part in samples.items()} for i in range(count)]
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-3, fused=True)
    dtype = config.precision.dtype(device)
    steps = arguments.epochs * (arguments.images // size)
    started = time.monotonic()
    for step, batch in enumerate(itertools.islice(itertools.cycle(batches), steps)):
        if step == _WARM_UP_STEPS:
            started = time.monotonic()
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            loss = task(batch)[recipe.loss_name]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), config.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"images_per_second": (steps - _WARM_UP_STEPS) * size / (time.monotonic() - started)}


def write_images(uri: str, count: int) -> None:
    """Rows of JPEGs with the size and about the bytes of photographs, and captions of eleven words."""
    rng = np.random.default_rng(0)
    files: list[RowsFile] = []
    for split, number in (("train", count), ("dev", 32)):
        rows = []
        for index in range(number):
            small = rng.integers(0, 256, (_HEIGHT // 5, _WIDTH // 5, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(small).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            captions = [" ".join(rng.choice(_WORDS, 11)) for _ in range(5)]
            row = {"image_id": f"{split}-{index}", "image_bytes": buffer.getvalue(), "captions": captions}
            rows.append(row | {"width": _WIDTH, "height": _HEIGHT, "split": split})
        files.append(write_rows(uri, f"{split}-00000.parquet", pa.Table.from_pylist(rows, schema=SCHEMA)))
    write_manifest(uri, files)


def _run(name: str, folder: str, rows: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--run", name, "--folder", folder, "--rows", rows]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {name}: {result}", file=sys.stderr, flush=True)
    return result


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--frozen", action="store_true", help="train the decoder alone")
    for hidden in ("--run", "--folder", "--rows"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
