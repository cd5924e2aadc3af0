"""Where tensors live and in which precision: decided once, from what the machine has."""

from __future__ import annotations

from enum import StrEnum

import torch


class Precision(StrEnum):
    """``auto`` is bf16 where the device computes it natively, else fp32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"

    def dtype(self, device: torch.device) -> torch.dtype:
        if self is Precision.AUTO:
            return torch.bfloat16 if has_native_bf16(device) else torch.float32
        return torch.bfloat16 if self is Precision.BF16 else torch.float32


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 products run in hardware there (Ampere and later; AVX512-BF16 or AMX on x86)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("amx_tile"))
