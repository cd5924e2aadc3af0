"""Annealed importance sampling spread over Ray tasks, whose result does not depend on how it is spread.

    one task: a base near the RBM -> one task for each so many chains: log weights -> joined here

A group of GROUP_ROWS chains draws numbers that follow from the seed and its place among all chains alone.
"""

from __future__ import annotations

from typing import NamedTuple

import ray
import torch
from pydantic import Field

from raycap.batch.pool import usable_threads
from raycap.cluster import connect, hidden_gpus, places
from raycap.config import Config
from raycap.errors import UserError
from raycap.models.partition import (
    LogPartition,
    ais_log_weights,
    burnt_in,
    estimate,
    moment_base,
    reverse_ais_log_weights,
    reverse_estimate,
)
from raycap.models.randomness import GROUP_ROWS, KeyedGenerator
from raycap.models.rbm import RestrictedBoltzmannMachine
from raycap.models.samplers import TemperedRBM
from raycap.progress import Progress

# Whatever the number of importance samples: any base is right, and so many chains tell the moments well enough.
_BASE_CHAINS = 256
# Steps of the keyed generator, so that none draws another's numbers.
_FORWARD, _REVERSE, _BASE = range(3)


class Annealing(Config):
    """How log Z is estimated, by annealed importance sampling."""

    num_chains: int = Field(default=128, ge=2)
    """Importance samples."""

    num_betas: int = Field(default=1000, ge=2)
    """Distributions between the base and the RBM; more is more exact."""


class Annealed(NamedTuple):
    """Log weights of chains from the base to the RBM and, if asked for, of others from the RBM to the base.

    Both (num_chains,) float64, as :mod:`raycap.models.partition` gives them.
    """

    forward: torch.Tensor
    reverse: torch.Tensor | None

    def estimate(self) -> LogPartition:
        """log Z, on average not too high."""
        return estimate(self.forward)

    def reverse_estimate(self) -> LogPartition | None:
        """log Z, on average not too low if the chains had come to the RBM's distribution."""
        return None if self.reverse is None else reverse_estimate(self.reverse)


def anneal(
    rbm: RestrictedBoltzmannMachine,
    annealing: Annealing,
    seed: int,
    chains_per_task: int = GROUP_ROWS,
    cpus_per_task: float = 1.0,
    use_gpu: bool = False,
    reverse: bool = False,
) -> Annealed:
    """Run every chain, as many tasks at once as the cluster has room for.

    Args:
        rbm: on the CPU.
        seed: at least 0.
        chains_per_task: a multiple of GROUP_ROWS.
        cpus_per_task: what each task reserves in Ray; as many threads, at least one.
        use_gpu: one GPU for each task.
        reverse: run also as many chains from the RBM to the base.

    Raises:
        UserError: no node has room for a task.
    """
    assert chains_per_task % GROUP_ROWS == 0, chains_per_task
    connect()
    if places(cpus_per_task, use_gpu) == 0:
        wanted = f"{cpus_per_task:g} CPUs" + (" and a GPU" if use_gpu else "")
        raise UserError(f"cpus_per_task = {cpus_per_task:g}: no node of the cluster has {wanted}; set less")
    threads = max(1, int(cpus_per_task))
    base = ray.remote(_fit_base).options(num_cpus=cpus_per_task).remote(rbm, seed, threads)
    run = ray.remote(_run_chains).options(
        num_cpus=cpus_per_task, num_gpus=int(use_gpu), runtime_env=hidden_gpus(use_gpu)
    )
    rows = [
        range(first, min(first + chains_per_task, annealing.num_chains))
        for first in range(0, annealing.num_chains, chains_per_task)
    ]
    tasks = [run.remote(base, part, annealing.num_betas, seed, threads, use_gpu, reverse) for part in rows]
    chains, pending = dict(zip(tasks, map(len, rows), strict=True)), list(tasks)
    progress = Progress("anneal", "chains", annealing.num_chains)
    while pending:
        finished, pending = ray.wait(pending)
        progress.advance(sum(chains[task] for task in finished))
    forward, backward = zip(*ray.get(tasks), strict=True)
    progress.finish()
    return Annealed(torch.cat(forward), torch.cat(backward) if reverse else None)


def _fit_base(rbm: RestrictedBoltzmannMachine, seed: int, threads: int) -> TemperedRBM:
    torch.set_num_threads(usable_threads(threads))
    generator = KeyedGenerator(seed)
    generator.start_step(_BASE)
    return moment_base(rbm, _BASE_CHAINS, generator)


def _run_chains(
    base: TemperedRBM, rows: range, num_betas: int, seed: int, threads: int, use_gpu: bool, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log weights of these chains, (len(rows),) float64 on the CPU, and of as many reverse ones."""
    torch.set_num_threads(usable_threads(threads))
    tempered = base.to(torch.device("cuda" if use_gpu else "cpu"))
    forward, backward = [], []
    # Group by group: products of other sizes sum in another order, and a chain makes of the last bit another way.
    for first in range(rows.start, rows.stop, GROUP_ROWS):
        count = min(GROUP_ROWS, rows.stop - first)
        generator = KeyedGenerator(seed, first)
        generator.start_step(_FORWARD)
        forward.append(ais_log_weights(tempered, count, num_betas, generator).cpu())
        if reverse:
            generator.start_step(_REVERSE)
            samples = burnt_in(tempered, count, generator)
            backward.append(reverse_ais_log_weights(tempered, samples, num_betas, generator).cpu())
    return torch.cat(forward), torch.cat(backward) if reverse else None
