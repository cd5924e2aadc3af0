"""Wrong input ends in one clear line and exit code 2."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import TINY, make_rows

pytestmark = pytest.mark.integration


def config_file(path: Path, values: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(values))
    return str(path)


def refused(
    start_job: Callable[..., Any], name: str, *arguments: str, environment: dict[str, str] | None = None
) -> str:
    """The one line that a job says of its input."""
    code, output, errors = start_job(name, *arguments, environment=environment).wait(120)
    assert code == 2, errors
    assert output == ""
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, errors
    assert "Traceback" not in errors
    return said[0]


@pytest.fixture
def training(tiny_rows: str, tmp_path: Path) -> str:
    task = {"kind": "captioning", "rows": tiny_rows, "model": {"kind": "new", "shape": TINY.model_dump()}}
    return config_file(tmp_path / "train.yaml", {"output": str(tmp_path / "run"), "task": task})


def test_an_unknown_key(start_job: Callable[..., Any], training: str) -> None:
    assert "epoch = 3: unknown key; did you mean epochs?" in refused(
        start_job, "train", "--config", training, "epoch=3"
    )


def test_a_missing_config_file(start_job: Callable[..., Any], tmp_path: Path) -> None:
    assert "no such file" in refused(start_job, "ingest", "--config", str(tmp_path / "none.yaml"))


def test_missing_rows(start_job: Callable[..., Any], training: str) -> None:
    line = refused(start_job, "train", "--config", training, "task.rows=/nowhere")
    assert "task.rows = /nowhere: no finished rows" in line
    assert "jobs/ingest.py" in line


@pytest.mark.parametrize("setting", ["task.rows", "output"])
def test_a_storage_that_refuses_the_connection(start_job: Callable[..., Any], training: str, setting: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        start = time.monotonic()
        line = refused(
            start_job, "train", "--config", training, f"{setting}=s3://bucket/place", environment=environment
        )
    assert f"AWS_ENDPOINT_URL = {endpoint}: no storage answers there" in line
    assert "give its address" in line
    assert time.monotonic() - start < 60


def test_no_images(start_job: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "Flickr8k.token.txt").write_text("a.jpg#0\tA dog runs .\n")
    source = {"kind": "flickr8k", "path": str(tmp_path)}
    config = config_file(tmp_path / "a.yaml", {"output": str(tmp_path / "rows"), "source": source})
    assert "image" in refused(start_job, "ingest", "--config", config)
    assert not (tmp_path / "rows" / "manifest.json").exists()


def test_more_workers_than_the_cluster_has(start_job: Callable[..., Any], training: str, tmp_path: Path) -> None:
    line = refused(start_job, "train", "--config", training, "num_workers=64")
    assert "num_workers = 64" in line
    assert re.search(r"set at most \d", line)
    # A refused run leaves its output free for the mended one.
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there(start_job: Callable[..., Any], training: str) -> None:
    assert "use_gpu = true: the cluster has no GPU" in refused(start_job, "train", "--config", training, "use_gpu=true")


def test_a_checkpoint_of_another_model(
    start_job: Callable[..., Any], tiny_rows: str, tiny_blip: str, tiny_rbm: str, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"output": str(tmp_path / "out"), "rows": tiny_rows, "model": tiny_rbm}
    values["decoding"] = {"max_new_tokens": 8}
    line = refused(start_job, "evaluate", "--config", config_file(tmp_path / "a.yaml", values))
    assert f"model = {tiny_rbm}: holds a gaussian_bernoulli_rbm, not a BLIP" in line
    values |= {"model": tiny_blip, "rbm": tiny_blip}
    line = refused(start_job, "evaluate", "--config", config_file(tmp_path / "b.yaml", values))
    assert f"rbm = {tiny_blip}: holds a blip, not an RBM" in line


def test_a_feature_store_of_another_encoder(start_job: Callable[..., Any], tiny_blip: str, tmp_path: Path) -> None:
    rows, store = make_rows(str(tmp_path / "rows"), 10, 10), tmp_path / "store"
    values = {"output": str(store), "rows": rows, "model": tiny_blip}
    config = config_file(tmp_path / "a.yaml", values)
    code, _, errors = start_job("extract", "--config", config).wait()
    assert code == 0, errors
    before = (store / "manifest.json").read_bytes()
    other = tmp_path / "other"
    shutil.copytree(tiny_blip, other)
    settings = json.loads((other / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.0, 0.0, 0.0]
    (other / "preprocessor_config.json").write_text(json.dumps(settings))
    line = refused(start_job, "extract", "--config", config, f"model={other}")
    assert str(store) in line
    assert (store / "manifest.json").read_bytes() == before
