"""A sweep killed half-way goes on, and repeats nothing that was finished."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import make_store

pytestmark = pytest.mark.integration

NUM_TRIALS = 4


def write_config(root: Path) -> str:
    task = {"kind": "contrastive_divergence", "negatives": "pcd"}
    task |= {"features": {"kind": "store", "path": make_store(str(root / "features"))}}
    config = {
        "output": str(root / "sweep"),
        "base": {"task": task, "epochs": 2, "batch_size_per_worker": 32, "precision": "fp32", "torch_threads": 1},
        "space": {
            "task.num_hidden": {"kind": "choice", "values": [8, 12]},
            "task.sigma": {"kind": "uniform", "low": 0.5, "high": 1.0},
        },
        "num_trials": NUM_TRIALS,
        "max_concurrent_trials": 1,
        "cpus_per_trial": 0.5,
        "annealing": {"num_chains": 50, "num_betas": 50},
    }
    (root / "sweep.yaml").write_text(yaml.safe_dump(config))
    return str(root / "sweep.yaml")


def traces(output: Path) -> dict[str, tuple[int, bytes]]:
    """Everything that finished trials have written: when, and what."""
    notes = [json.loads(path.read_text()) for path in (output / "results").glob("*.json")]
    models = [Path(note["result"]["model"]) for note in notes if "model" in note["result"]]
    files = [
        *(output / "results").glob("*.json"),
        *(path for m in models for path in m.parent.rglob("*") if path.is_file()),
    ]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_killed_sweep_goes_on_and_repeats_no_finished_trial(tmp_path: Path, start_job: Callable[..., Any]) -> None:
    config, output = write_config(tmp_path), tmp_path / "sweep"
    job = start_job("sweep", "--config", config)
    deadline = time.monotonic() + 240
    while len(list((output / "results").glob("*.json"))) < 2:
        assert job.process.poll() is None, job.process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.stop()  # SIGKILL, all of it
    before = traces(output)
    finished = len(list((output / "results").glob("*.json")))
    assert 2 <= finished < NUM_TRIALS
    code, printed, errors = start_job("sweep", "--config", config).wait()
    assert code == 0, errors
    after = traces(output)
    assert {name: after[name] for name in before} == before
    assert len(list((output / "results").glob("*.json"))) == NUM_TRIALS
    metrics = json.loads(printed.splitlines()[-1])
    assert metrics["num_trained"] + metrics["num_stopped"] == NUM_TRIALS
