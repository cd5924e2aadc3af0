"""Samples per CPU-second of an RBM's training step, beside its bare matrix products and other libraries.

    python benchmarks/rbm.py [--rounds 8] [--steps 12] [--job-epochs 3]

One thread, CD-1, in turn within every round; a ratio is the median over the rounds. Ours is the step of
jobs/train.py with strategy in_place (float16 batch in, standardised, SGD with momentum). scikit-learn and
rbms train binary units, learnergy Gaussian ones; what is not installed is left out (pip install
scikit-learn learnergy rbms). Then the job itself trains from a feature store, and its samples per second
of wall time stand beside the step's own, measured before and after it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raycap.data.features import FeatureFile, claim_store, finish_store, write_features
from raycap.models.randomness import KeyedGenerator
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner
from raycap.models.samplers import ContrastiveDivergence
from raycap.tasks.contrastive_divergence import ContrastiveDivergenceTask
from raycap.train.config import TrainConfig
from raycap.train.in_place import InPlaceStrategy
from raycap.train.trainer import train

V, H, BATCH = 768, 1024, 256
_BATCHES = 16
_STORE_FILES, _IMAGES_PER_FILE, _TOKENS = 12, 64, 197

Step = Callable[[int], Any]


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps = {
        "products_fp32": products(torch.float32),
        "products_bf16": products(torch.bfloat16),
        "raycap_fp32": our_step(torch.float32, learn_variance=False),
        "raycap_fp32_learned_sigma": our_step(torch.float32, learn_variance=True),
        "raycap_bf16": our_step(torch.bfloat16, learn_variance=False),
        "raycap_bf16_learned_sigma": our_step(torch.bfloat16, learn_variance=True),
        "minimal_torch_loop_fp32": minimal_step(),
        **peers(),
    }
    seconds = time_in_turn(steps, arguments.rounds, arguments.steps)
    results = {name: _summary(times, seconds["products_fp32"]) for name, times in seconds.items()}
    results |= {"job": compare_job(arguments.job_epochs)}
    print(f"\n{'':28} {'samples/CPU-s':>14} {'x fp32 products':>16}")
    for name, result in results.items():
        if name != "job":
            print(f"{name:28} {result['samples_per_cpu_second']:14,.0f} {result['ratio']:16.3f}")
    print(f"{'job from a store / step':28} {results['job']['ratio']:31.3f}")
    print(json.dumps({"benchmark": "rbm", "results": results, **_conditions(arguments)}))


def time_in_turn(steps: dict[str, Step], rounds: int, count: int) -> dict[str, list[float]]:
    """CPU seconds of one step in each round, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(rounds):
        print(f"round {round_number + 1} of {rounds}", file=sys.stderr, flush=True)
        for name, step in steps.items():
            step(0)
            started = time.process_time()
            for index in range(count):
                step(index)
            seconds[name].append((time.process_time() - started) / count)
    return seconds


def products(dtype: torch.dtype) -> Step:
    """The five products of a CD-1 step, the two of the gradient merged into one."""
    weight, v, h = (torch.randn(*shape).to(dtype) for shape in ((V, H), (BATCH, V), (BATCH, H)))
    both_v, both_h = torch.cat([v, v]), torch.cat([h, h])

    def step(_: int) -> None:
        v @ weight
        h @ weight.T
        v @ weight
        both_v.T @ both_h

    return step


def minimal_step() -> Step:
    """The least that CD-1 takes in torch: no standardisation, momentum, schedule or keyed random numbers."""
    weight, visible_bias, hidden_bias = 0.01 * torch.randn(V, H), torch.zeros(V), torch.zeros(H)
    sigma, rate = 0.7, 1e-3 / BATCH
    batches = torch.randn(_BATCHES, BATCH, V)
    uniform, noise = torch.empty(BATCH, H), torch.empty(BATCH, V)

    def step(index: int) -> None:
        v = batches[index % _BATCHES]
        p = torch.addmm(hidden_bias, v / sigma**2, weight).sigmoid_()
        h = uniform.uniform_().lt_(p)
        negatives = torch.addmm(visible_bias, h, weight.T).add_(noise.normal_(), alpha=sigma)
        q = torch.addmm(hidden_bias, negatives / sigma**2, weight).sigmoid_()
        both = torch.cat([v, -negatives])
        weight.addmm_(both.T, torch.cat([p, q]), alpha=rate / sigma**2)
        visible_bias.add_(both.sum(0), alpha=rate / sigma**2)
        hidden_bias.add_(p.sum(0) - q.sum(0), alpha=rate)

    return step


def our_step(dtype: torch.dtype, learn_variance: bool) -> Step:
    """The step of the training loop: strategy in_place, as train/loop.py makes it."""
    refiner = RbmRefiner(GaussianBernoulliRBM(V, H, 0.7, learn_variance), torch.zeros(V), torch.ones(V))
    task = ContrastiveDivergenceTask(refiner, ContrastiveDivergence(KeyedGenerator(0)))
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.5, fused=True)
    strategy = InPlaceStrategy(
        task,
        optimizer,
        lambda _: 1.0,
        num_workers=1,
        dtype=dtype,
        accumulation_steps=1,
        clip_norm=None,
        centred=False,
    )
    batches = torch.randn(_BATCHES, BATCH, V).half()

    def step(index: int) -> None:
        strategy.backward({"image_embeds": batches[index % _BATCHES]}, "", last=True)
        strategy.step()

    return step


def peers() -> dict[str, Step]:
    """Training steps of the libraries that are installed, by their name."""
    found: dict[str, Step] = {}
    for name, make in {"sklearn": _sklearn_step, "learnergy": _learnergy_step, "rbms": _rbms_step}.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed and left out", file=sys.stderr)
        else:
            found |= make()
    return found


def _sklearn_step() -> dict[str, Step]:
    from sklearn.neural_network import BernoulliRBM

    model = BernoulliRBM(H, batch_size=BATCH, random_state=0)
    batches = (np.random.default_rng(0).random((_BATCHES, BATCH, V)) < 0.3).astype(np.float32)
    return {"sklearn_binary": lambda index: model.partial_fit(batches[index % _BATCHES])}


def _learnergy_step() -> dict[str, Step]:
    logging.disable(logging.INFO)
    from learnergy.models.gaussian import GaussianRBM

    model = GaussianRBM(n_visible=V, n_hidden=H, steps=1, learning_rate=1e-4, normalize=False)
    batches = torch.randn(_BATCHES, BATCH, V)

    class Batch(torch.utils.data.Dataset):  # type: ignore[type-arg]
        """One batch; fit() asks for items, so that a whole batch is one item of its loader's."""

        def __init__(self, values: torch.Tensor) -> None:
            self.values = values

        def __len__(self) -> int:
            return BATCH

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return self.values[index], 0

    return {"learnergy_gaussian": lambda index: model.fit(Batch(batches[index % _BATCHES]), batch_size=BATCH, epochs=1)}


def _rbms_step() -> dict[str, Step]:
    from rbms.bernoulli_bernoulli.classes import BBRBM
    from rbms.training.pcd import fit_batch_pcd

    model = BBRBM(0.01 * torch.randn(V, H), torch.zeros(V), torch.zeros(H))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, maximize=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # which it expects to be there
    batches = (torch.rand(_BATCHES, BATCH, V) < 0.3).float()
    weights = torch.ones(BATCH, 1)

    @torch.no_grad()
    def step(index: int) -> None:
        batch = batches[index % _BATCHES]
        chains = model.init_chains(BATCH, weights=weights, start_v=batch)
        optimizer.zero_grad(set_to_none=False)
        fit_batch_pcd((batch, weights), chains, model, gibbs_steps=1, beta=1.0, centered=False)
        optimizer.step()

    return {"rbms_binary": step}


def compare_job(epochs: int) -> dict[str, Any]:
    """Samples per second of wall time of the job, reading from a store, beside those of its step alone."""
    step = our_step(torch.float32, learn_variance=False)
    with tempfile.TemporaryDirectory(prefix="raycap-benchmark-") as folder:
        write_store(f"{folder}/features")
        before = _steps_per_second(step)
        output = Path(folder, "rbm")
        settings = {
            "output": str(output),
            "task": {
                "kind": "contrastive_divergence",
                "features": {"kind": "store", "path": f"{folder}/features"},
                "num_hidden": H,
                "sigma": 0.7,
            },
            "strategy": {"kind": "in_place"},
            "optimizer": {"kind": "sgd", "learning_rate": 1e-3, "momentum": 0.5},
            "epochs": epochs,
            "batch_size_per_worker": BATCH,
            "shuffle_chunks": 1,
            "clip_norm": None,
            "precision": "fp32",
            "torch_threads": 1,
            "log_every_steps": 20,
            "cpus_per_worker": 0.5,
        }
        train(TrainConfig.model_validate(settings))
        records = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
        after = _steps_per_second(step)
    # Within the first epoch, its start and the evaluations left out.
    first, last = records[2], [record for record in records if record["epoch"] == 0][-1]
    rate = (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])
    alone = (before + after) / 2
    return {
        "ratio": round(rate / alone, 3),
        "job_samples_per_second": round(rate * BATCH),
        "step_samples_per_second": [round(before * BATCH), round(after * BATCH)],
    }


def write_store(uri: str) -> None:
    """A feature store of noise in the shape of small BLIP-base images."""
    generator = np.random.default_rng(0)
    claim_store(uri, "noise", "0" * 16, "fp32")
    files = []
    for index in range(_STORE_FILES + 1):
        split = "train" if index < _STORE_FILES else "dev"
        name = f"{split}-00000-{index:04d}.parquet"
        values = generator.standard_normal((_IMAGES_PER_FILE, _TOKENS, V), dtype=np.float32).astype(np.float16)
        write_features(uri, name, [f"{split}{index}-{i}" for i in range(_IMAGES_PER_FILE)], values)
        files.append(FeatureFile(name=name, split=split, num_images=_IMAGES_PER_FILE))
    finish_store(uri, "noise", "0" * 16, "fp32", files)


def _steps_per_second(step: Step, count: int = 150) -> float:
    step(0)
    started = time.perf_counter()
    for index in range(count):
        step(index)
    return count / (time.perf_counter() - started)


def _summary(times: list[float], reference: list[float]) -> dict[str, float]:
    ratios = [theirs / ours for ours, theirs in zip(times, reference, strict=True)]
    return {
        "samples_per_cpu_second": round(BATCH / statistics.median(times)),
        "ratio": round(statistics.median(ratios), 3),
        "lowest_ratio": round(min(ratios), 3),
        "highest_ratio": round(max(ratios), 3),
    }


def _conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line for line in lines if line.startswith("flags")), "")
    packages = [name for name in ("torch", "ray", "scikit-learn", "learnergy", "rbms") if _installed(name)]
    return {
        "config": {"num_visible": V, "num_hidden": H, "batch_size": BATCH, **vars(arguments)},
        "hardware": {
            "cpu": cpu or platform.processor(),
            "cores": len(os.sched_getaffinity(0)),
            "bf16_instructions": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags],
            "load_average": round(os.getloadavg()[0], 2),
        },
        "versions": {name: version(name) for name in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


def _installed(package: str) -> bool:
    return importlib.util.find_spec({"scikit-learn": "sklearn"}.get(package, package)) is not None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12, help="of each in every round")
    parser.add_argument("--job-epochs", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
