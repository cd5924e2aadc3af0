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
        first_row: number of this worker's first chain among all; a multiple of group_rows, else the
            numbers belong to this worker's way of sharing as well.
        group_rows: rows that are drawn together.
    """

    def __init__(self, seed: int, first_row: int = 0, group_rows: int = GROUP_ROWS) -> None:
        self.seed, self.first_row, self.group_rows = seed, first_row, group_rows
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

    def normal_columns_(self, values: torch.Tensor, first_column: int, group_columns: int) -> torch.Tensor:
        """Fill (B, columns) with Normal(0, 1) keyed by the columns, for workers that share them and not the chains.

        Args:
            first_column: number of the first one among those of all workers; a multiple of group_columns.
            group_columns: columns that are drawn together.
        """
        self._draw += 1
        for start in range(0, values.shape[1], group_columns):
            columns = values[:, start : start + group_columns]
            drawn = values.new_empty(columns.shape[1], columns.shape[0])
            columns.copy_(drawn.normal_(generator=self._seeded(values.device, first_column + start)).T)
        return values

    def _groups(self, values: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Generator]]:
        self._draw += 1
        for start in range(0, len(values), self.group_rows):
            yield values[start : start + self.group_rows], self._seeded(values.device, self.first_row + start)

    def _seeded(self, device: torch.device, row: int) -> torch.Generator:
        generator = self._generators.setdefault(device, torch.Generator(device))
        key = hashlib.blake2b(struct.pack("4q", self.seed, self._step, self._draw, row), digest_size=8)
        return generator.manual_seed(int.from_bytes(key.digest()) >> 1)

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
    # In place on the one new tensor: at this size what is read from far memory costs more than what is computed.
    return bits.view(torch.int16).to(probability.dtype).sub_(probability, alpha=65536).lt_(-32768)


def normal_like(values: torch.Tensor, source: Randomness = None) -> torch.Tensor:
    """Normal(0, 1) in the shape, type and place of ``values``."""
    drawn = torch.empty_like(values)
    return source.normal_(drawn) if isinstance(source, KeyedGenerator) else drawn.normal_(generator=source)
