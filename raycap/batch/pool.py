"""The two stages of every batch job on models: tasks that read, a pool of actors that compute.

    items (this process) -> one task per item: read, decode -> actors -> small results (this process)

A user's error goes along as a row's ``error``: Ray would hide its type and its line in a trace.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from pydantic import Field
from ray.data import ActorPoolStrategy, Dataset, ExecutionResources, TaskPoolStrategy

from raycap.cluster import connect, hidden_gpus, quiet, require
from raycap.errors import UserError
from raycap.hardware import num_cores
from raycap.job import JobConfig

_READER_CPUS = 0.5
# Decoded images wait in Ray's memory: a few items for each worker, however many there are.
_ITEMS_PER_WORKER = 16


class PoolConfig(JobConfig):
    """How many workers compute at once, and what each takes."""

    num_workers: int = Field(default=1, ge=1)
    """Models at work at once."""

    cpus_per_worker: float = Field(default=0.5, gt=0)
    """CPUs that each reserves from Ray's account; half a CPU must remain for decoding images."""

    torch_threads: int | None = Field(default=None, ge=1)
    """CPU threads of each worker; null divides the cluster's cores among the workers."""

    use_gpu: bool = False
    """One GPU for each worker."""

    max_failures: int = Field(default=3, ge=0)
    """How often each worker may die (killed, out of memory) and be started again."""


def require_room(config: PoolConfig) -> None:
    """Join or start a cluster, and refuse at once a pool that it has no room for.

    Raises:
        UserError: see :func:`raycap.cluster.require`.
    """
    connect()
    require(config.num_workers, config.cpus_per_worker, config.use_gpu, _READER_CPUS)


def run_pool(
    config: PoolConfig,
    items: Sequence[dict[str, Any]],
    read: Callable[[dict[str, Any]], list[dict[str, Any]]],
    worker: type,
    worker_kwargs: dict[str, Any],
    item_bytes: int,
    concurrent_calls: int = 1,
) -> Iterator[dict[str, Any]]:
    """What the workers say of each item, in the order they are finished.

    Args:
        items: what ``read`` takes; small.
        read: an item to the rows that the workers take; runs in a task of its own.
        worker: an actor's class, called with one row; its ``torch_threads`` are added to ``worker_kwargs``.
        item_bytes: what the rows of one item weigh, about.
        concurrent_calls: of one worker.

    Raises:
        UserError: a row's ``error``, or a worker that died more than ``max_failures`` times.
    """
    quiet()
    threads = config.torch_threads or max(1, int(ray.cluster_resources()["CPU"]) // config.num_workers)
    dataset: Dataset = ray.data.from_items(list(items), override_num_blocks=len(items))
    waiting_bytes = item_bytes * _ITEMS_PER_WORKER * config.num_workers
    dataset.context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=waiting_bytes)
    with warnings.catch_warnings():
        # There is no parameter by another name for max_restarts. It also keeps Ray from fusing both
        # stages into one, in which reading would wait for the worker.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        results = dataset.flat_map(read, compute=TaskPoolStrategy(), num_cpus=_READER_CPUS).map(
            worker,
            fn_constructor_kwargs=worker_kwargs | {"torch_threads": threads},
            compute=ActorPoolStrategy(
                size=config.num_workers,
                max_tasks_in_flight_per_actor=max(concurrent_calls, 2),
                max_concurrent_calls_per_actor=concurrent_calls,
                enable_true_multi_threading=concurrent_calls > 1,
            ),
            num_cpus=config.cpus_per_worker,
            num_gpus=int(config.use_gpu),
            runtime_env=hidden_gpus(config.use_gpu),
            max_restarts=config.max_failures,
        )
    try:
        for row in results.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            yield row
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"max_failures = {config.max_failures}: a worker died more often ({str(error).splitlines()[0]}); it may "
            "lack memory, lower num_workers or batch_size; what is written stays, run the job again to continue"
        ) from error


def usable_threads(torch_threads: int) -> int:
    """At most as many as this machine has cores; Ray's OMP_NUM_THREADS says nothing of the cores."""
    return min(torch_threads, num_cores())
