"""Blocks of training samples: planned by a seed, read ahead by Ray Data.

An epoch's chunks are permuted by (seed, epoch), dealt to parts in turn and read in blocks of several chunks; the order
depends on nothing else. The tasks that read import this module and that of their source: neither may import torch,
which takes longer than many a block.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from raycap.data.rows import Chunk

if TYPE_CHECKING:
    import torch

READER_CPUS = 0.25
"""What Ray reserves for each task that reads."""

_BLOCKS_AHEAD = 4  # for each reader
_PAUSE_SECONDS = 0.1

Arrays = dict[str, np.ndarray]
Batch = dict[str, "torch.Tensor"]
Read = Callable[[Sequence[Chunk], np.random.Generator], Arrays]


class Source(Protocol):
    """Where samples come from: chunks of a data set, and how to read them."""

    samples_per_row: int

    bytes_per_row: int
    """Of what ``read`` gives, about."""

    def chunks(self, split: str) -> list[Chunk]:
        """Every chunk of a split."""

    @property
    def read(self) -> Read:
        """Reads chunks to arrays with one entry per row; runs in a Ray Data task."""

    def to_samples(self, arrays: Arrays) -> Batch:
        """Turn what ``read`` gave into samples (``samples_per_row`` a row); runs in the worker."""


@dataclass(frozen=True)
class Block:
    """Chunks that are read and mixed together."""

    chunks: tuple[Chunk, ...]
    seed: tuple[int, ...]
    num_samples: int


Plan = list[list[Block]]
"""Of each of a worker's parts the blocks, in order."""


def plan_epoch(
    source: Source, split: str, *, seed: int, epoch: int, parts: range, num_parts: int, chunks_per_block: int
) -> Plan:
    """The blocks of some parts of one epoch.

    Args:
        parts: of them all, ``num_parts``.
    """
    chunks = source.chunks(split)
    order = np.random.default_rng((seed, epoch)).permutation(len(chunks))
    plan = []
    for part in parts:
        mine = [chunks[index] for index in order[part::num_parts]]
        groups = [tuple(mine[start : start + chunks_per_block]) for start in range(0, len(mine), chunks_per_block)]
        sizes = [source.samples_per_row * sum(chunk.num_rows for chunk in group) for group in groups]
        plan.append(
            [
                Block(group, (seed, epoch, part, index), size)
                for index, (group, size) in enumerate(zip(groups, sizes, strict=True))
            ]
        )
    return plan


def reading_order(plan: Plan, samples_per_part: int, skip: int = 0) -> list[Block]:
    """The blocks in the order in which :meth:`BatchStream.batches` needs them; arguments as there."""
    waiting = [deque(blocks_from(blocks, skip)) for blocks in plan]
    held = [0] * len(plan)
    order = []
    while any(waiting):
        for part, blocks in enumerate(waiting):
            while held[part] < samples_per_part and blocks:
                block, skipped = blocks.popleft()
                order.append(block)
                held[part] += block.num_samples - skipped
            held[part] = max(held[part] - samples_per_part, 0)
    return order


def blocks_from(blocks: Sequence[Block], skip: int) -> Iterator[tuple[Block, int]]:
    """The blocks that hold what comes after ``skip`` samples, each with how many of its own are skipped."""
    for block in blocks:
        if skip < block.num_samples:
            yield block, skip
        skip = max(skip - block.num_samples, 0)


def batches_per_epoch(source: Source, split: str, *, num_parts: int, samples_per_part: int, whole: bool) -> int:
    """Batches that every worker can take from an epoch, or must, to see all of it.

    Args:
        samples_per_part: in a batch.
        whole: the last, smaller batch counts too (validation); else every batch is full.

    The parts share the chunks evenly, but not the rows; in training the smallest counts, in validation the largest.
    """
    rows = np.array([chunk.num_rows for chunk in source.chunks(split)])
    if whole:
        # The order differs by epoch; no part is larger than that of the largest chunks.
        share = int(np.sort(rows)[::-1][: -(-len(rows) // num_parts)].sum()) * source.samples_per_row
        return -(-share // samples_per_part)
    share = int(np.sort(rows)[: len(rows) // num_parts].sum()) * source.samples_per_row
    return share // samples_per_part


def to_tensors(arrays: Arrays) -> Batch:
    """Tensors over the arrays' memory, nothing copied; for reading alone, as Ray's memory is."""
    import torch  # by the worker alone

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def read_blocks(source: Source, blocks: Sequence[Block], readers: int) -> Iterator[Arrays]:
    """One block's arrays after the other.

    Args:
        readers: Ray Data tasks that read ahead; 0 reads here, when a block is due.
    """
    return _read_ahead(source, blocks, readers) if readers else (_read_block(source.read, block) for block in blocks)


def _read_block(read: Read, block: Block) -> Arrays:
    return read(block.chunks, np.random.default_rng((*block.seed, 0)))


def _read_ahead(source: Source, blocks: Sequence[Block], readers: int) -> Iterator[Arrays]:
    import ray.data

    read_chunks = source.read

    def read(row: dict[str, Any]) -> Arrays:
        return _read_block(read_chunks, blocks[row["id"]])

    indices = ray.data.range(len(blocks), override_num_blocks=len(blocks))
    context = indices.context
    context.execution_options.preserve_order = True
    # Else Ray reads as far ahead as its memory allows, at the expense of the training beside it.
    largest = max(sum(chunk.num_rows for chunk in block.chunks) for block in blocks) * source.bytes_per_row
    limits = ray.data.ExecutionResources.for_limits(object_store_memory=largest * _BLOCKS_AHEAD * readers)
    context.execution_options.resource_limits = limits
    context.custom_execution_callback_classes = [_pause_class()]
    # One row holds a whole block, so that Ray never splits or merges it.
    dataset = indices.map(read, compute=ray.data.TaskPoolStrategy(size=readers), num_cpus=READER_CPUS)
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=1, batch_format="numpy"):
        columns: dict[str, np.ndarray] = {str(name): np.asarray(column) for name, column in batch.items()}
        for index in range(len(next(iter(columns.values())))):
            yield {name: column[index] for name, column in columns.items()}


def _pause_class() -> type:
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Pause(ExecutionCallback):
        """Ray Data 2.60 loops without a pause while it waits for its consumer, in this very process;
        without this a small model trains three times slower."""

        def on_execution_step(self, executor: Any) -> None:  # noqa: ARG002
            time.sleep(_PAUSE_SECONDS)

    return Pause
