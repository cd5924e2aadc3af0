"""The jobs on a real Ray cluster with their data on a real S3 protocol server."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from pyarrow import fs
from tiny import TINY, make_rows, png

from raycap import storage

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
BUCKET = "raycap-test"


def free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return candidate.getsockname()[1]


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process this test started, with its children."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()


def wait_for(url: str, timeout_seconds: float = 60) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def s3_server() -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """moto's server on loopback with one bucket, and the environment that leads to it."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        wait_for(environment["AWS_ENDPOINT_URL"] + "/moto-api/")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            storage._s3.cache_clear()
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield server, environment
            storage._s3.cache_clear()
    finally:
        end(server)


@pytest.fixture
def cluster(s3_server: tuple[Any, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``ray start --head``; gives the dashboard's address, to which jobs are submitted."""
    port, dashboard_port = free_port(), free_port()
    folder = Path("/tmp") / f"rc{os.getpid()}"  # sockets need a short path
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}"]
    command += [f"--dashboard-port={dashboard_port}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"]
    # Another Ray of this machine may hold the agent's usual port, and then no job can be submitted.
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    command += [f"--temp-dir={folder}", "--num-cpus=2", "--object-store-memory=500000000", "--disable-usage-stats"]
    environment = os.environ | s3_server[1] | {"RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{dashboard_port}/api/version")
        yield f"http://127.0.0.1:{dashboard_port}"
    finally:
        end(head)


def submit(address: str, name: str, config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """``ray job submit`` of a job; gives the object that its last line is."""
    uri = f"s3://{BUCKET}/configs/{name}.yaml"
    storage.write_bytes(uri, yaml.safe_dump(config).encode())
    command = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", address, "--working-dir", "."]
    command += ["--", sys.executable, f"jobs/{name.split('-')[0]}.py", "--config", uri]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    for _ in range(30):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        if "No available agent" not in done.stderr:  # the head answers before it can run jobs
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))


def test_ingest_extract_train_evaluate_and_caption_as_submitted_jobs_on_s3(cluster: str, tmp_path: Path) -> None:
    base = f"s3://{BUCKET}/run"
    rows, blip, features, rbm, report = (f"{base}/{name}" for name in ("rows", "blip", "features", "rbm", "report"))
    source = {"kind": "shapes", "num_train": 96, "num_dev": 24, "num_test": 0, "image_size": 16}
    made = submit(cluster, "ingest", {"output": rows, "source": source}, tmp_path)
    assert made["splits"] == {"train": 96, "dev": 24}

    model = {"kind": "new", "shape": TINY.model_dump(), "vocab_size": 100}
    training = {"epochs": 1, "batch_size_per_worker": 16, "cpus_per_worker": 0.5, "num_workers": 2}
    task: dict[str, Any] = {"kind": "captioning", "rows": rows, "model": model}
    trained = submit(cluster, "train-blip", {"output": blip, "task": task, **training}, tmp_path)
    assert trained["model"] == f"{blip}/model"

    settings = {"output": features, "rows": rows, "model": f"{blip}/model", "precision": "fp32"}
    assert submit(cluster, "extract", settings, tmp_path)["images"] == 120

    store = {"kind": "store", "path": features}
    task = {"kind": "contrastive_divergence", "features": store, "num_hidden": 8}
    submit(cluster, "train-rbm", {"output": rbm, "task": task, **training, "readers_per_worker": 0}, tmp_path)

    settings = {"output": report, "rows": rows, "model": f"{blip}/model", "rbm": f"{rbm}/model", "exact_match": True}
    settings["decoding"] = {"max_new_tokens": 8}
    scores = submit(cluster, "evaluate", settings, tmp_path)
    assert scores["num_images"] == 24

    for index in range(10):
        storage.write_bytes(f"{base}/photos/{index % 2}/{index}.png", png(index))
    storage.write_bytes(f"{base}/photos/notes.txt", b"no image")
    settings = {"output": f"{base}/captions", "images": f"{base}/photos", "model": f"{blip}/model", "shard_images": 4}
    settings["decoding"] = {"max_new_tokens": 8}
    captioned = submit(cluster, "caption", settings, tmp_path)
    assert (captioned["images"], captioned["files"], list(captioned["left_out"])) == (10, 3, ["not_an_image"])

    # What lies there is plain S3 and plain Parquet to anybody else.
    client = boto3.client("s3")
    listing = client.list_objects_v2(Bucket=BUCKET, Prefix="run/")
    keys = {item["Key"] for item in listing["Contents"]}
    assert {"run/blip/model/config.json", "run/rbm/model/model.safetensors", "run/report/report.html"} <= keys
    body = client.get_object(Bucket=BUCKET, Key="run/report/metrics.json")["Body"].read()
    assert json.loads(body) == scores
    key = next(key for key in sorted(keys) if key.startswith("run/features/dev") and key.endswith(".parquet"))
    table = pq.read_table(io.BytesIO(client.get_object(Bucket=BUCKET, Key=key)["Body"].read()))
    assert table.num_rows == 24
    bodies = [client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in sorted(keys) if "/captions/c" in key]
    paths = [path for body in bodies for path in pq.read_table(io.BytesIO(body))["path"].to_pylist()]
    assert sorted(paths) == sorted(f"{base}/photos/{index % 2}/{index}.png" for index in range(10))
    filesystem, path = storage.resolve(rows)
    assert isinstance(filesystem, fs.S3FileSystem)
    names = [key.removeprefix("run/rows/") for key in keys if key.startswith("run/rows/") and key.endswith(".parquet")]
    assert sum(pq.read_table(f"{path}/{name}", filesystem=filesystem).num_rows for name in names) == 120


def test_a_store_that_hangs_for_ten_seconds_during_a_checkpoint_loses_nothing(
    s3_server: tuple[subprocess.Popen[bytes], dict[str, str]], tmp_path: Path, start_job: Callable[..., Any]
) -> None:
    server, environment = s3_server
    rows = make_rows(str(tmp_path / "rows"), 64, 16)
    config = {
        "task": {"kind": "captioning", "rows": rows, "model": {"kind": "new", "shape": TINY.model_dump()}},
        "epochs": 3,
        "batch_size_per_worker": 8,
        "cpus_per_worker": 0.5,
        "torch_threads": 1,
        "precision": "fp32",
        "log_every_steps": 1,
        "checkpoint_every_steps": 2,
    }
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(config | {"output": f"s3://{BUCKET}/outage"}))
    client = boto3.client("s3")

    def checkpoint_under_way() -> bool:
        listing = client.list_objects_v2(Bucket=BUCKET, Prefix="outage/checkpoints/checkpoint_")
        return any(item["Key"].endswith("parameters.pt") for item in listing.get("Contents", ()))

    job = start_job("train", "--config", str(file), environment=environment)
    deadline = time.monotonic() + 120
    while not checkpoint_under_way():
        assert time.monotonic() < deadline
        assert job.process.poll() is None, job.wait()
        time.sleep(0.05)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        time.sleep(10)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    code, _, errors = job.wait()
    assert code == 0, errors

    undisturbed = {"output": str(tmp_path / "whole"), "num_workers": 0, "readers_per_worker": 0}
    file.write_text(yaml.safe_dump(config | undisturbed))
    code, _, errors = start_job("train", "--config", str(file)).wait()
    assert code == 0, errors
    model = "model/model.safetensors"
    assert storage.read_bytes(f"s3://{BUCKET}/outage/{model}") == (tmp_path / "whole" / model).read_bytes()
    losses = [
        [json.loads(line).get("train_caption_loss") for line in storage.read_bytes(f"{run}/history.jsonl").splitlines()]
        for run in (f"s3://{BUCKET}/outage", str(tmp_path / "whole"))
    ]
    assert losses[0] == losses[1]
