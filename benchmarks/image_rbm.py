"""Memory and speed of an RBM over whole images of BLIP-base, its visible units on one worker and spread over several.

    python benchmarks/image_rbm.py [--hidden 64] [--batch 16] [--steps 3] [--workers 2]

577 tokens of 768 numbers are 443,136 visible units. Each worker is a process with one thread; they meet over gloo on
this machine. Peak memory is that of a process above what it took before its RBM was made (weights, gradient, Adam's
moments, chains and batches). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import distributed

from raycap.models.randomness import KeyedGenerator
from raycap.models.refiner import RbmRefiner
from raycap.models.samplers import PersistentContrastiveDivergence
from raycap.models.sharded_rbm import ShardedGaussianBernoulliRBM, VisibleShard
from raycap.tasks.contrastive_divergence import ContrastiveDivergenceTask
from raycap.train.visible_sharding import VisibleShardingStrategy

TOKENS, EMBED_DIM = 577, 768


def main() -> None:
    arguments = _parse()
    runs = {}
    for count in (1, arguments.workers):
        with tempfile.TemporaryDirectory(prefix="raycap-benchmark-") as folder:
            mp.spawn(worker, (count, folder, arguments), nprocs=count)  # type: ignore[no-untyped-call]
            results = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(count)]
        runs[count] = {name: max(result[name] for result in results) for name in results[0]}
        print(f"{count} workers: {runs[count]}", flush=True)
    alone, spread = runs[1], runs[arguments.workers]
    result = {
        "peak_megabytes": {str(count): run["peak_megabytes"] for count, run in runs.items()},
        "seconds_per_step": {str(count): run["seconds_per_step"] for count, run in runs.items()},
        "memory_ratio": round(spread["peak_megabytes"] / alone["peak_megabytes"], 3),
        "speed_ratio": round(alone["seconds_per_step"] / spread["seconds_per_step"], 3),
        "hidden_bias_difference": abs(alone["hidden_bias_sum"] - spread["hidden_bias_sum"]),
    }
    conditions = {
        "config": {"num_visible": TOKENS * EMBED_DIM, **vars(arguments)},
        "hardware": {"cores": len(os.sched_getaffinity(0)), "load_average": round(os.getloadavg()[0], 2)},
        "versions": {"torch": version("torch")},
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps({"benchmark": "image_rbm", "results": result, **conditions}))


def worker(rank: int, count: int, folder: str, arguments: argparse.Namespace) -> None:
    """Train some steps on noise; leave peak memory, time and a trace of the parameters in a file."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    train(VisibleShard(rank, count, 2 * count, 8), arguments, steps=2)  # what any training takes once
    before = peak_megabytes()
    result = train(VisibleShard(rank, count, TOKENS, EMBED_DIM), arguments, arguments.steps)
    result["peak_megabytes"] = round(peak_megabytes() - before)
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    distributed.barrier()
    os._exit(0)  # gloo's threads abort now and then when the interpreter takes them down


def peak_megabytes() -> float:
    """Of this process so far, as Linux tells it."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def train(shard: VisibleShard, arguments: argparse.Namespace, steps: int) -> dict[str, Any]:
    """PCD-1 with Adam, as jobs/train.py does it with strategy.shard visible_units."""
    rbm = ShardedGaussianBernoulliRBM(shard, arguments.hidden, 0.8, learn_variance=True)
    refiner = RbmRefiner(rbm, torch.zeros(shard.embed_dim), torch.ones(shard.embed_dim), sees_images=True)
    task = ContrastiveDivergenceTask(refiner, PersistentContrastiveDivergence(KeyedGenerator(0)))
    strategy = VisibleShardingStrategy(
        task,
        torch.optim.AdamW(task.parameters(), lr=1e-3, fused=True),
        lambda _: 1.0,
        dtype=torch.float32,
        accumulation_steps=1,
        clip_norm=None,
        centred=False,
    )
    seconds = []
    for step in range(steps):
        batch = noise(shard, arguments.batch, step)
        distributed.barrier()
        started = time.perf_counter()
        strategy.backward({"image_embeds": batch}, "", last=True)
        strategy.step()
        seconds.append(time.perf_counter() - started)
    return {"seconds_per_step": round(min(seconds), 3), "hidden_bias_sum": float(rbm.hidden_bias.detach().sum())}


def noise(shard: VisibleShard, batch: int, step: int) -> torch.Tensor:
    """This worker's tokens of images that are the same however many workers there are, (B, n, D) float16."""
    values = torch.empty(batch, shard.num_visible)
    generator = KeyedGenerator(1)
    generator.start_step(step)
    return shard.normal_(values, generator).half().unflatten(-1, (-1, shard.embed_dim))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
