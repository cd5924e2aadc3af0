"""Images per second of jobs/extract.py beside a bare loop of the same encoder on the same threads.

    python benchmarks/extract.py [--images 128] [--repeats 1] [--precisions fp32 bf16]

BLIP-base's shape with random weights, 384 px. The job reads JPEG rows, decodes, resizes, encodes and
writes Parquet; the loop encodes tensors that are decoded already and drops the result. They run in
turn, each in its own process, never at the same time. The job's rate counts from the moment its
encoder is loaded to its last file; its whole time, Ray's start included, is job_seconds. The last
line of output is one JSON object. Give several repeats and a quiet machine for figures to publish.
"""

from __future__ import annotations

import argparse
import io
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
from PIL import Image

from raycap.checkpoint.pretrained import save_blip
from raycap.data.images import decode_image, resize_image
from raycap.data.rows import CHUNK_ROWS, SCHEMA, RowsFile, open_rows, read_chunk, write_manifest, write_rows
from raycap.data.text import train_wordpiece
from raycap.hardware import Precision
from raycap.models.blip import BlipShape, build_blip
from raycap.predictor import EncoderStage

BLIP_BASE = BlipShape(
    image_size=384, patch_size=16, embed_dim=768, num_heads=12, num_vision_layers=12, num_text_layers=1
)
_WIDTH, _HEIGHT = 500, 375  # Flickr8k's most frequent size
# Of Ray's workers; the loop takes it too, so that a third process slows both alike.
_RAY_NICENESS = int(os.environ.get("RAY_worker_niceness", "15"))  # noqa: SIM112  # Ray's own spelling
_WARM_UP_BATCHES = 2


def main() -> None:
    arguments = _parse()
    if arguments.bare is not None:
        print(json.dumps({"images_per_second": bare_loop(arguments)}))
        return
    with tempfile.TemporaryDirectory(prefix="raycap-benchmark-") as folder:
        model, rows = Path(folder, "model"), Path(folder, "rows")
        torch.manual_seed(0)
        save_blip(model, *build_blip(BLIP_BASE, train_wordpiece(["a dog runs on the grass"] * 5, 100)))
        write_images(str(rows), arguments.images)
        results = {precision: compare(arguments, folder, precision) for precision in arguments.precisions}
    print(f"\n{'precision':10} {'loop images/s':>14} {'job images/s':>13} {'ratio':>6} {'job seconds':>12}")
    for precision, result in results.items():
        loop, job = (statistics.median(result[key]) for key in ("loop_images_per_second", "job_images_per_second"))
        seconds = statistics.median(result["job_seconds"])
        print(f"{precision:10} {loop:14.2f} {job:13.2f} {result['ratio']:6.3f} {seconds:12.1f}")
    print(json.dumps({"benchmark": "extract", "results": results, **_conditions(arguments)}))


def compare(arguments: argparse.Namespace, folder: str, precision: str) -> dict[str, Any]:
    """Loop and job in turn, ``repeats`` times; the ratio is the median of the pairs'."""
    result: dict[str, Any] = {"loop_images_per_second": [], "job_images_per_second": [], "job_seconds": []}
    for repeat in range(arguments.repeats):
        print(f"{precision}, {repeat + 1} of {arguments.repeats}", file=sys.stderr, flush=True)
        loop = _run(arguments, [__file__, "--bare", folder, "--precisions", precision, *_shared(arguments)])
        result["loop_images_per_second"].append(loop["images_per_second"])
        config = {
            "rows": f"{folder}/rows",
            "model": f"{folder}/model",
            "output": f"{folder}/store-{precision}-{repeat}",
            "precision": precision,
            "batch_size": arguments.batch_size,
            "torch_threads": arguments.threads,
            "use_gpu": arguments.use_gpu,
        }
        file = Path(folder, "extract.yaml")
        file.write_text(json.dumps(config))
        started = time.monotonic()
        job = _run(arguments, [str(Path(__file__).parents[1] / "jobs" / "extract.py"), "--config", str(file)])
        result["job_seconds"].append(round(time.monotonic() - started, 1))
        result["job_images_per_second"].append(job["images_per_second"])
    pairs = zip(result["job_images_per_second"], result["loop_images_per_second"], strict=True)
    return {"ratio": round(statistics.median(job / loop for job, loop in pairs), 3), **result}


def bare_loop(arguments: argparse.Namespace) -> float:
    """The encoder alone, over images that are decoded already, in images per second."""
    os.nice(_RAY_NICENESS)
    torch.set_num_threads(arguments.threads)
    images = []
    for chunk in open_rows(f"{arguments.bare}/rows").chunks("train"):
        data = read_chunk(chunk, ["image_bytes"])["image_bytes"]
        images += [resize_image(decode_image(value.as_py()), BLIP_BASE.image_size) for value in data]
    pixels = np.stack(images)
    stage = EncoderStage.from_pretrained(f"{arguments.bare}/model", Precision(arguments.precisions[0]))
    size = arguments.batch_size
    for start in range(0, _WARM_UP_BATCHES * size, size):
        stage(pixels[start : start + size]).sum().item()
    started = time.perf_counter()
    for start in range(0, len(pixels), size):
        image_embeds = stage(pixels[start : start + size])
    image_embeds.sum().item()  # waits for the GPU
    return round(len(pixels) / (time.perf_counter() - started), 3)


def write_images(uri: str, num_images: int) -> None:
    """Rows of JPEGs: a gradient with noise compresses about as well as a photograph."""
    generator = np.random.default_rng(0)
    files: list[RowsFile] = []
    for start in range(0, num_images, 8 * CHUNK_ROWS):
        table: dict[str, list[Any]] = {field: [] for field in SCHEMA.names}
        for index in range(start, min(start + 8 * CHUNK_ROWS, num_images)):
            gradient = np.linspace(0, 255, _WIDTH)[None, :, None] * generator.random((1, 1, 3))
            pixels = (gradient + generator.normal(0, 8, (_HEIGHT, _WIDTH, 3))).clip(0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
            row = (f"{index:06d}.jpg", buffer.getvalue(), _WIDTH, _HEIGHT, ["a dog runs on the grass"], "train")
            for column, value in zip(table.values(), row, strict=True):
                column.append(value)
        files.append(write_rows(uri, f"train-{len(files):05d}.parquet", pa.table(table, schema=SCHEMA)))
    write_manifest(uri, files)


def _run(arguments: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    environment = os.environ | ({} if arguments.use_gpu else {"CUDA_VISIBLE_DEVICES": ""})
    run = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    values: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return values


def _shared(arguments: argparse.Namespace) -> list[str]:
    values = ["--batch-size", str(arguments.batch_size), "--threads", str(arguments.threads)]
    return [*values, "--use-gpu"] if arguments.use_gpu else values


def _conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    cpu = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    names = ("images", "repeats", "batch_size", "threads", "use_gpu")
    return {
        "config": {name: getattr(arguments, name) for name in names} | {"model": BLIP_BASE.model_dump()},
        "hardware": {
            "cpu": cpu.partition(":")[2].strip() or cpu,
            "cores": len(os.sched_getaffinity(0)),
            "gpu": torch.cuda.get_device_name() if arguments.use_gpu else None,
            "load_average": round(os.getloadavg()[0], 2),
        },
        "versions": {name: version(name) for name in ("torch", "transformers", "ray", "pyarrow")},
        "date": time.strftime("%Y-%m-%d"),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128, help=f"better a multiple of {CHUNK_ROWS}, a chunk")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, help="of both; default 1 on the CPU, 64 on a GPU")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch, of both")
    parser.add_argument("--use-gpu", action="store_true")
    parser.add_argument("--bare", metavar="DIRECTORY", help=argparse.SUPPRESS)  # this script's own second process
    arguments = parser.parse_args()
    arguments.batch_size = arguments.batch_size or (64 if arguments.use_gpu else 1)
    return arguments


if __name__ == "__main__":
    main()
