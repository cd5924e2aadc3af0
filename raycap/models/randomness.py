"""Random numbers that belong to a chain and a step, whoever draws them.

One generator shared by all chains gives other numbers when the chains are spread over other workers.
Here the rows of a tensor are chains in groups of GROUP_ROWS, and each group's numbers follow from
(seed, step, draw, group) alone.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

import torch

GROUP_ROWS = 64


class KeyedGenerator:
    """Source of randomness for the chains that one worker owns; the CPU and a GPU draw other numbers.

    Args:
        seed: of the run.
        first_row: number of this worker's first chain among all; a multiple of GROUP_ROWS, else the
            numbers belong to this worker's way of sharing as well.
    """

    def __init__(self, seed: int, first_row: int = 0) -> None:
        self.seed, self.first_row = seed, first_row
        self._generators: dict[torch.device, torch.Generator] = {}
        self._step = self._draw = 0

    def start_step(self, step: int) -> None:
        """The draws that follow belong to this step."""
        self._step, self._draw = step, 0

    def uniform_(self, values: torch.Tensor) -> torch.Tensor:
        """Fill (B, ...) with Uniform[0, 1)."""
        for rows, generator in self._groups(values):
            rows.uniform_(generator=generator)
        return values

    def normal_(self, values: torch.Tensor) -> torch.Tensor:
        """Fill (B, ...) with Normal(0, 1)."""
        for rows, generator in self._groups(values):
            rows.normal_(generator=generator)
        return values

    def _groups(self, values: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Generator]]:
        self._draw += 1
        generator = self._generators.setdefault(values.device, torch.Generator(values.device))
        for start in range(0, len(values), GROUP_ROWS):
            row = self.first_row + start
            key = hashlib.blake2b(struct.pack("4q", self.seed, self._step, self._draw, row), digest_size=8)
            yield values[start : start + GROUP_ROWS], generator.manual_seed(int.from_bytes(key.digest()) >> 1)

    def bits_(self, values: torch.Tensor) -> torch.Tensor:
        """Fill (B, ...) int64 with 64 random bits each."""
        for rows, generator in self._groups(values):
            rows.random_(-(2**63), None, generator=generator)
        return values


Randomness = KeyedGenerator | torch.Generator | None
"""None is torch's default generator."""


def uniform_like(values: torch.Tensor, source: Randomness = None) -> torch.Tensor:
    """Uniform[0, 1) in the shape, type and place of ``values``."""
    drawn = torch.empty_like(values)
    return source.uniform_(drawn) if isinstance(source, KeyedGenerator) else drawn.uniform_(generator=source)


def toss(probability: torch.Tensor, source: Randomness = None) -> torch.Tensor:
    """1.0 with the given probability (within 2^-16), else 0.0, in the shape and type of ``probability``.

    A row's number of probabilities divisible by four is tossed with 16 random bits each, which takes a third of the
    time that Uniform[0, 1) numbers take; others, and double precision, with those.
    """
    if probability.dtype is not torch.float32 or probability.shape[-1] % 4:
        return uniform_like(probability, source).lt_(probability)
    shape = (*probability.shape[:-1], probability.shape[-1] // 4)
    bits = torch.empty(shape, dtype=torch.int64, device=probability.device)
    if isinstance(source, KeyedGenerator):
        source.bits_(bits)
    else:
        bits.random_(-(2**63), None, generator=source)
    # k of 65536 equally likely numbers lie below k - 32768. In floats: torch is slow to make and to convert booleans.
    threshold = torch.mul(probability, 65536).sub_(32768)
    return bits.view(torch.int16).to(probability.dtype).lt_(threshold)


def normal_like(values: torch.Tensor, source: Randomness = None) -> torch.Tensor:
    """Normal(0, 1) in the shape, type and place of ``values``."""
    drawn = torch.empty_like(values)
    return source.normal_(drawn) if isinstance(source, KeyedGenerator) else drawn.normal_(generator=source)
