"""The second objective: when captions decide, and a sweep that captions its most likely trials."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import make_store

from raycap.batch.token_likelihood import RbmLikelihood
from raycap.checkpoint.identity import encoder_fingerprint
from raycap.checkpoint.pretrained import load_blip
from raycap.config import load_config
from raycap.errors import UserError
from raycap.models.partition import LogPartition
from raycap.sweep import captions
from raycap.sweep.captions import Captioned, choose_by_captions
from raycap.sweep.config import SweepConfig
from raycap.sweep.results import FinishedTrial
from raycap.sweep.run import sweep
from raycap.train.config import TrainConfig

IMAGES = np.random.default_rng(0).normal(0, 30, 400)  # nats; what makes an image likely under any model


def likelihood(mean: float, spread: float = 0.1, annealing_error: float = 0.01) -> RbmLikelihood:
    own = np.random.default_rng(int(10 * mean)).normal(0, spread, 400)
    return RbmLikelihood(IMAGES + mean + own - own.mean(), LogPartition(0.0, annealing_error, 50.0))


def captioned(number: int, found: RbmLikelihood, best: RbmLikelihood, *ciders: float) -> Captioned:
    trial = FinishedTrial({"task.sigma": number}, {"log_likelihood": 0.0, "model": "m", "epoch": 3}, epochs=3)
    gates = tuple(
        {"gate": 1 / place, "score": {"value": cider}, "difference": {"value": 0.1, "low": 0.0, "high": 0.2}}
        for place, cider in enumerate(ciders, 1)
    )
    return Captioned(number, trial, found, best.lead(found), gates)


def test_captions_decide_only_among_trials_as_likely_as_the_best() -> None:
    best = likelihood(10.0)
    near, far = likelihood(9.99), likelihood(9.5)
    candidates = [captioned(1, best, best, 0.1), captioned(2, near, best, 0.2, 0.15), captioned(3, far, best, 0.9)]
    assert [candidate.as_likely for candidate in candidates] == [True, True, False]
    chosen = choose_by_captions(candidates)
    assert chosen.number == 2
    assert chosen.scored().result["best_gate"] == 1.0
    assert chosen.scored().result["cider"] == 0.2


def test_trials_are_compared_on_the_same_images() -> None:
    """Half a nat is far less than the error of either mean, and far more than that of the paired difference."""
    best, behind = likelihood(10.0), likelihood(9.5)
    assert best.metrics()["sampling_error"] > 1
    lead, error = best.lead(behind)
    assert lead == pytest.approx(0.5)
    assert 0.01 < error < 0.03
    assert not captioned(2, behind, best, 0.1).as_likely
    # The error of log Z is shared by all images, and more of them do not make it less.
    assert captioned(2, likelihood(9.5, annealing_error=0.4), best, 0.1).as_likely


@pytest.fixture(scope="module")
def root(tiny_blip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep_captions")
    encoder, _ = load_blip(tiny_blip)
    make_store(str(root / "features"), fingerprint=encoder_fingerprint(encoder))
    make_store(str(root / "other_features"))
    return root


def sweep_config(root: Path, rows: str, model: str, output: str, store: str = "features", **block: Any) -> SweepConfig:
    task = {"kind": "contrastive_divergence", "features": {"kind": "store", "path": str(root / store)}}
    base = {"task": task, "epochs": 1, "batch_size_per_worker": 32, "precision": "fp32", "torch_threads": 1}
    objective = {"rows": rows, "model": model, "candidates": 2, "gates": [0.5, 1.0], "max_images": 12}
    objective |= {"decoding": {"max_new_tokens": 4}}
    return SweepConfig.model_validate(
        {
            "output": str(root / output),
            "base": base | {"clip_norm": None, "shuffle_chunks": 1},
            "space": {"task.num_hidden": {"kind": "choice", "values": [8, 12, 16]}},
            "num_trials": 3,
            "search": "random",
            "scheduler": {"kind": "none"},
            "cpus_per_trial": 0.5,
            "annealing": {"num_chains": 64, "num_betas": 50},
            "captions": objective | block,
        }
    )


def test_another_encoder_s_store_or_missing_rows_are_refused_before_any_trial(
    root: Path, tiny_rows: str, tiny_blip: str, ray_cluster: None
) -> None:
    for config, message in (
        (sweep_config(root, tiny_rows, tiny_blip, "wrong", store="other_features"), "made by encoder made up"),
        (sweep_config(root, str(root / "nowhere"), tiny_blip, "wrong"), "captions.rows = "),
        (sweep_config(root, tiny_rows, tiny_blip, "wrong", split="test"), "captions.split = "),
        (sweep_config(root, tiny_rows, tiny_blip, "wrong", num_workers=1000), "num_workers = 1000"),
    ):
        with pytest.raises(UserError, match=message):
            sweep(config)
    assert not (root / "wrong").exists()


def written(output: Path) -> dict[str, int]:
    """When each file of the finished trials was written."""
    paths = [*(output / "results").glob("*.json"), *(output / "trials").rglob("*")]
    return {str(path): path.stat().st_mtime_ns for path in paths if path.is_file()}


def test_a_sweep_interrupted_while_captioning_goes_on_and_repeats_no_trial(
    root: Path, tiny_rows: str, tiny_blip: str, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, output = sweep_config(root, tiny_rows, tiny_blip, "sweep"), root / "sweep"

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(captions, "run_evaluation", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep(config)
    before = written(output)
    assert before
    metrics = sweep(config)
    assert written(output) == before
    with monkeypatch.context() as patch:
        patch.setattr(captions, "run_evaluation", interrupted)
        again = sweep(config)  # the captions are there, and not made again
    assert {**again, "seconds": 0} == {**metrics, "seconds": 0}

    found = metrics["captions"]
    assert found["num_images"] == 12
    assert [len(candidate["gates"]) for candidate in found["candidates"]] == [2] * len(found["candidates"])
    chosen = next(c for c in found["candidates"] if c["settings"] == metrics["best"])
    assert chosen["as_likely"]
    best = max(chosen["gates"], key=lambda gate: gate["score"]["value"])
    assert (metrics["best_gate"], metrics["cider"]) == (best["gate"], best["score"]["value"])
    with (output / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(row["cider"] != "" for row in rows) == len(found["candidates"])
    assert f"at gate {metrics['best_gate']:g}" in (output / "best.yaml").read_text()
    assert load_config(TrainConfig, str(output / "best.yaml")).output == str(output / "best")
    assert "Pareto front" in (output / "report.html").read_text()
    assert (output / "captions" / "report.html").exists()
