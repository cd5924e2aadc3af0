"""Several small RBMs of equal shape: their CD-1 products one model after another, beside one batched product.

    python benchmarks/packing.py [--rounds 15]

One thread. Each shape, batch and number of models is measured in turn within every round; a ratio is the median
over the rounds of separate by packed time, above 1 where packing pays. ``products`` are the five products of a CD-1
step, the two of the gradient merged into one; ``step`` adds the activations, the draws and a plain SGD update, written
alike for both (learned sigma left out). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SHAPES = ((16, 16), (64, 64), (128, 128), (256, 256), (768, 1024))
BATCHES = (64, 256)
MODELS = (4, 8)
_SLICE_SECONDS = 0.1

Work = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds: int = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    works = {
        (v, h, batch, models, kind): make(models, batch, v, h)
        for v, h in SHAPES
        for batch in BATCHES
        for models in MODELS
        for kind, make in (("products", products), ("step", steps))
    }
    results = [
        dict(zip(("num_visible", "num_hidden", "batch_size", "num_models", "kind"), key, strict=True)) | found
        for key, found in compare(works, rounds).items()
    ]
    print(f"\n{'V':>5} {'H':>5} {'batch':>6} {'models':>7} {'kind':>9} {'apart us':>10} {'packed us':>10} {'ratio':>7}")
    for row in results:
        shape = f"{row['num_visible']:5} {row['num_hidden']:5} {row['batch_size']:6} {row['num_models']:7}"
        times = f"{row['apart_microseconds']:10.0f} {row['packed_microseconds']:10.0f}"
        print(f"{shape} {row['kind']:>9} {times} {row['ratio']:7.2f}")
    print(json.dumps({"benchmark": "packing", "rounds": rounds, "results": results, **_conditions()}))


def compare(works: dict[tuple[Any, ...], tuple[Work, Work]], rounds: int) -> dict[tuple[Any, ...], dict[str, float]]:
    """For each pair (apart, packed) the median CPU microseconds of both, and the ratio with its quartiles."""
    counts = {key: max(1, int(_SLICE_SECONDS / 2 / _cpu_seconds(apart, 3))) for key, (apart, _) in works.items()}
    times: dict[tuple[Any, ...], list[tuple[float, float]]] = {key: [] for key in works}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for key, (apart, packed) in works.items():
            pair = [_cpu_seconds(work, counts[key]) for work in ((apart, packed) if number % 2 else (packed, apart))]
            times[key].append((pair[0], pair[1]) if number % 2 else (pair[1], pair[0]))
    found = {}
    for key, pairs in times.items():
        low, middle, high = statistics.quantiles([apart / packed for apart, packed in pairs], n=4)
        found[key] = {
            "apart_microseconds": round(1e6 * statistics.median(apart for apart, _ in pairs), 1),
            "packed_microseconds": round(1e6 * statistics.median(packed for _, packed in pairs), 1),
            "ratio": round(middle, 3),
            "ratio_quartiles": [round(low, 3), round(high, 3)],
        }
    return found


def _cpu_seconds(work: Work, count: int) -> float:
    work()
    started = time.process_time()
    for _ in range(count):
        work()
    return (time.process_time() - started) / count


def products(models: int, batch: int, v: int, h: int) -> tuple[Work, Work]:
    weight, visible, hidden = torch.randn(models, v, h), torch.randn(models, batch, v), torch.randn(models, batch, h)
    both_visible, both_hidden = torch.cat([visible, visible], 1), torch.cat([hidden, hidden], 1)
    separate = list(zip(weight, visible, hidden, both_visible, both_hidden, strict=True))

    def apart() -> None:
        for w, x, y, xx, yy in separate:
            x @ w
            y @ w.T
            x @ w
            xx.T @ yy

    def packed() -> None:
        torch.bmm(visible, weight)
        torch.bmm(hidden, weight.mT)
        torch.bmm(visible, weight)
        torch.bmm(both_visible.mT, both_hidden)

    return apart, packed


def steps(models: int, batch: int, v: int, h: int) -> tuple[Work, Work]:
    """A CD-1 step of unit sigma; the same lines for one model, (1, ...), and for the pack, (P, ...)."""
    weight, b, c = torch.randn(models, v, h) * 0.01, torch.zeros(models, 1, v), torch.zeros(models, 1, h)
    data = torch.randn(models, batch, v)
    noise, uniform = torch.empty(models, batch, v), torch.empty(models, batch, h)

    def step(w: torch.Tensor, b: torch.Tensor, c: torch.Tensor, x: torch.Tensor, n: torch.Tensor, u: torch.Tensor):
        positive = multiply_add(c, x, w).sigmoid_()
        fantasy = multiply_add(b, u.uniform_().lt_(positive), w.mT).add_(n.normal_())
        negative = multiply_add(c, fantasy, w).sigmoid_()
        gradient = multiply(torch.cat([x, -fantasy], -2).mT, torch.cat([positive, negative], -2))
        w.add_(gradient, alpha=1e-6)
        b.add_((x - fantasy).sum(-2, keepdim=True), alpha=1e-6)
        c.add_((positive - negative).sum(-2, keepdim=True), alpha=1e-6)

    def multiply_add(bias: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.addmm(bias, x, w) if x.ndim == 2 else torch.baddbmm(bias, x, w)

    def multiply(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x @ y if x.ndim == 2 else torch.bmm(x, y)

    separate = list(zip(weight.clone(), b.clone(), c.clone(), data, noise, uniform, strict=True))

    def apart() -> None:
        for parts in separate:
            step(*parts)

    return apart, lambda: step(weight, b, c, data, noise, uniform)


def _conditions() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "hardware": {
            "cpu": cpu or platform.processor(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average": round(os.getloadavg()[0], 2),
        },
        "versions": {"torch": torch.__version__},
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
