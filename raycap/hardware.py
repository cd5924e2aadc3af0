"""Where tensors live and in which precision: decided once, from what the machine has.

Torch is imported by what asks it: settings name a precision in processes that compute nothing.
"""

from __future__ import annotations

import ctypes
import functools
import os
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Precision(StrEnum):
    """``auto`` is bf16 where the device computes it natively, else fp32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"

    def dtype(self, device: torch.device) -> torch.dtype:
        import torch

        if self is Precision.AUTO:
            return torch.bfloat16 if has_native_bf16(device) else torch.float32
        return torch.bfloat16 if self is Precision.BF16 else torch.float32


def default_device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


_KEPT_BYTES = 2**31 - 1
_GROWTH_BYTES = 64 * 2**20
_LARGEST_BLOCK_BYTES = 32 * 2**20  # glibc's own bound: half of a thread's arena

KEEP_FREED_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(_KEPT_BYTES),
    "MALLOC_TOP_PAD_": str(_GROWTH_BYTES),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_ARENA_MAX": "1",
}
"""Environment with which a process has glibc keep freed memory from its start, for all its threads: see mallopt(3).

By default what a product of a wide model frees goes back to the system, which clears it and maps it page by page for
the next product: with BLIP-base, in batches, a sixth of the CPU's time. Other allocators do not read these."""

KEEP_FREED_BLOCKS = {
    "MALLOC_TRIM_THRESHOLD_": str(_KEPT_BYTES),
    "MALLOC_MMAP_THRESHOLD_": str(_LARGEST_BLOCK_BYTES),
}
"""The same for blocks of less than 32 MiB, in an arena for each thread: all that narrow models need, whose threads
would wait for one another in a single arena."""


@functools.cache
def keep_freed_memory() -> None:
    """The same in a process that has begun, if no GPU computes; threads that hold memory already keep their own ways.

    For processes that only infer, with batches of one size after another.
    """
    if default_device().type != "cpu":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((-1, _KEPT_BYTES), (-2, _GROWTH_BYTES), (-4, 0), (-8, 1)):
            mallopt(parameter, value)


def num_cores() -> int:
    """Those this process may run on; where a system does not tell them, the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 products run in hardware there (Ampere and later; AVX512-BF16 or AMX on x86)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("amx_tile"))
