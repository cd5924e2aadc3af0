"""The door to a Ray cluster: join or start one, and refuse at once what it has no room for."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray

from raycap.errors import UserError

# Ray's workers start in another directory and, on another machine, with another environment.
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_FORWARDED_VARIABLES = ("AWS_", "HF_", "MLFLOW_", "TRANSFORMERS_", "TOKENIZERS_")


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (set inside a Ray job), else start one on this machine.

    Raises:
        UserError: RAY_ADDRESS names a cluster that does not answer.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else every line a training worker prints comes twice.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # Ray polls its workers every 2 s by default, which a small epoch would spend waiting.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Serve's proxies have it from the cluster's start.
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "raycap.serve.proxy:middlewares")
    address = os.environ.get("RAY_ADDRESS")
    variables = {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED_VARIABLES)}
    # A Ray job brings its own runtime_env, which its workers get by themselves.
    runtime_env = {"env_vars": variables} if variables and _JOB_VARIABLE not in os.environ else None
    try:
        if address:
            ray.init(address=address, runtime_env=runtime_env, logging_level=logging.WARNING)
        else:
            ray.init(runtime_env=runtime_env, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise UserError(f"RAY_ADDRESS = {address}: no cluster answers there ({error}); start one or unset it") from None


def quiet() -> None:
    """Leave the progress lines to raycap: Ray Data's and Ray Train's own go to their log files alone.

    For the driver and, since a worker is another process, for each worker that reads data.
    """
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)


def hidden_gpus(use_gpu: bool) -> dict[str, Any] | None:
    """The runtime_env of workers without a GPU of their own, which Ray shows all of them."""
    gpus = ray.cluster_resources().get("GPU", 0)
    return {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}} if gpus and not use_gpu else None


def require(num_workers: int, cpus_per_worker: float, use_gpu: bool, reader_cpus: float = 0.0) -> None:
    """Refuse a worker group that the cluster can never place; Ray itself would wait forever.

    Args:
        num_workers: how many workers run at once; 0 works in this process.
        cpus_per_worker: CPUs (fractions allowed) that each reserves, on one node.
        use_gpu: whether each reserves one GPU.
        reader_cpus: CPUs that must remain for one task that reads data.

    Raises:
        UserError: names the setting, what it asks for and what the cluster has.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    if use_gpu and gpus < max(num_workers, 1):
        if gpus == 0:
            raise UserError("use_gpu = true: the cluster has no GPU; set use_gpu to false or join a cluster with GPUs")
        raise UserError(f"num_workers = {num_workers}: the cluster has {gpus:g} GPUs; set at most {int(gpus)}")
    most_at_once = places(cpus_per_worker, use_gpu)
    if num_workers > most_at_once or num_workers * cpus_per_worker + reader_cpus > cpus:
        most = max(0, min(most_at_once, int((cpus - reader_cpus) / cpus_per_worker)))
        raise UserError(
            f"num_workers = {num_workers}: each reserves {cpus_per_worker:g} CPUs of one node, {reader_cpus:g} must "
            f"remain for reading data, and the cluster has {cpus:g} on {len(nodes)} nodes; set at most {most}, or a "
            f"smaller cpus_per_worker"
        )


def places(cpus: float, use_gpu: bool) -> int:
    """How many workers, each with so many CPUs of one node and maybe a GPU, the cluster can ever run at once."""
    return sum(_places(node["Resources"], cpus, use_gpu) for node in ray.nodes() if node["Alive"])


def _places(node: dict[str, float], cpus_per_worker: float, use_gpu: bool) -> int:
    places = int(node.get("CPU", 0.0) / cpus_per_worker)
    return min(places, int(node.get("GPU", 0.0))) if use_gpu else places
