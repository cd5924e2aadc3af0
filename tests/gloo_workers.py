"""Workers of one gloo group, each a process of its own, as those of a training job are."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import distributed

# None of them takes ten seconds on an idle machine; one that hangs says where before pytest's time is up.
_SECONDS = 240.0


def run_workers(count: int, worker: Callable[..., None], *arguments: Any, folder: Path) -> None:
    """Call ``worker(rank, count, *arguments)`` on each rank; ``folder``, where they meet, is left with their files.

    They are not forked, since the test's process has threads and has computed gradients.
    """
    mp.spawn(_join, (count, worker, arguments, folder), nprocs=count)  # type: ignore[no-untyped-call]


def _join(rank: int, count: int, worker: Callable[..., None], arguments: tuple[Any, ...], folder: Path) -> None:
    faulthandler.dump_traceback_later(_SECONDS, exit=True)
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet-{count}",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=_SECONDS / 2),
    )
    worker(rank, count, *arguments)
    distributed.barrier()
    os._exit(0)  # gloo's threads abort, or never end, now and then when the interpreter takes them down
