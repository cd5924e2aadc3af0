"""The threads that compute: each has torch's helpers of its own, and nobody else in the process has any.

Helpers that idle are not free: where OpenMP counts more threads than cores, it stops waiting actively at the end of
each product, of which a token has hundreds (libgomp, GOMP_SPINCOUNT).
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

from raycap.checkpoint.captioner_shape import CaptionerShape
from raycap.hardware import num_cores

# Of embeddings: between the small BLIP of the README (256) and BLIP-base (768).
_WIDE = 512


def compute_thread(name: str, num_threads: int) -> ThreadPoolExecutor:
    """One thread, in which one thing is computed after another, in the order in which it was asked for.

    Args:
        name: of the thread.
        num_threads: torch's in it.
    """
    return ThreadPoolExecutor(1, name, _compute_with, (num_threads,))


def compute_elsewhere() -> None:
    """The thread that calls this has no helpers, whatever others have."""
    _compute_with(1)


def _compute_with(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    torch.get_num_threads()  # what was set is a thread's own when it first asks; until then it is the last one's


def cores_of_replica(num_cpus: float) -> int:
    """Cores that a replica may keep busy: the whole CPUs it reserves, all that there are where it reserves none."""
    return int(num_cpus) or num_cores()


def cpu_threads(shapes: Iterable[CaptionerShape], cores: int) -> int:
    """Cores for each thread that computes, where no GPU does and encoder and decoder are in one process.

    Narrow models get half of them each and compute at once. Of wide ones, single products keep all cores busy.

    Args:
        cores: of the process.
    """
    return cores if are_wide(shapes) else max(1, cores // 2)


def are_wide(shapes: Iterable[CaptionerShape]) -> bool:
    """Whether single products of any of them keep all cores of a machine busy."""
    return any(shape.embed_dim >= _WIDE for shape in shapes)
