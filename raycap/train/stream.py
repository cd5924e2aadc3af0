"""Seeded, seekable streams of training batches, read ahead by Ray Data.

An epoch's chunks are permuted by (seed, epoch), dealt to the workers in turn and read in blocks
of several chunks; the samples of a block are permuted and cut into batches. The order depends on
nothing else, so a stream can start at any (epoch, step), reading only the block it falls into.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from raycap.data.rows import Chunk

READER_CPUS = 0.25
"""What Ray reserves for each task that reads."""

_BLOCKS_AHEAD = 4  # for each reader
_PAUSE_SECONDS = 0.1

Batch = dict[str, torch.Tensor]
Arrays = dict[str, np.ndarray]


class Source(Protocol):
    """Where samples come from: chunks of a data set, and how to read them."""

    samples_per_row: int

    bytes_per_row: int
    """Of what ``read`` gives, about."""

    def chunks(self, split: str) -> list[Chunk]:
        """Every chunk of a split."""

    def read(self, chunks: Sequence[Chunk], rng: np.random.Generator) -> Arrays:
        """Read chunks to arrays with one entry per row; runs in a Ray Data task."""

    def to_samples(self, arrays: Arrays) -> Batch:
        """Turn what ``read`` gave into samples (``samples_per_row`` a row); runs in the worker."""


@dataclass(frozen=True)
class Block:
    """Chunks that are read and mixed together."""

    chunks: tuple[Chunk, ...]
    seed: tuple[int, ...]
    num_samples: int


def plan_epoch(
    source: Source, split: str, *, seed: int, epoch: int, rank: int, num_workers: int, chunks_per_block: int
) -> list[Block]:
    """The blocks that one worker reads in one epoch, in order."""
    chunks = source.chunks(split)
    order = np.random.default_rng((seed, epoch)).permutation(len(chunks))
    mine = [chunks[index] for index in order[rank::num_workers]]
    groups = [tuple(mine[start : start + chunks_per_block]) for start in range(0, len(mine), chunks_per_block)]
    return [
        Block(group, (seed, epoch, rank, index), source.samples_per_row * sum(chunk.num_rows for chunk in group))
        for index, group in enumerate(groups)
    ]


def batches_per_epoch(source: Source, split: str, *, num_workers: int, batch_size: int, whole: bool) -> int:
    """Batches that every worker can take from an epoch, or must, to see all of it.

    Args:
        whole: the last, smaller batch counts too (validation); else every batch is full.

    Workers share the chunks evenly, but not the rows; in training the smallest share counts, in
    validation the largest.
    """
    rows = np.array([chunk.num_rows for chunk in source.chunks(split)])
    if whole:
        # The order differs by epoch; no worker's share is larger than that of the largest chunks.
        share = int(np.sort(rows)[::-1][: -(-len(rows) // num_workers)].sum()) * source.samples_per_row
        return -(-share // batch_size)
    share = int(np.sort(rows)[: len(rows) // num_workers].sum()) * source.samples_per_row
    return share // batch_size


class BatchStream:
    """Iterates over blocks in plan order and cuts them into batches.

    Args:
        source: where the blocks are read.
        blocks: in order.
        readers: Ray Data tasks that read ahead; 0 reads here, when a block is due.
    """

    def __init__(self, source: Source, blocks: Sequence[Block], readers: int) -> None:
        self._source = source
        self._blocks = blocks
        self._arrays = _read_ahead(source, blocks, readers) if readers else _read_here(source, blocks)
        self._next = 0

    def batches(self, num_blocks: int, batch_size: int, *, skip: int = 0, shuffle: bool = True) -> Iterator[Batch]:
        """Batches of the next ``num_blocks`` blocks; samples that fill no batch come last, as a smaller one.

        Args:
            skip: samples left out at the start.
        """
        rest: Batch = {}
        for _ in range(num_blocks):
            block = self._blocks[self._next]
            self._next += 1
            samples = self._source.to_samples(next(self._arrays))
            if shuffle:
                order = torch.from_numpy(np.random.default_rng((*block.seed, 1)).permutation(block.num_samples))
                samples = {name: tensor[order.to(tensor.device)] for name, tensor in samples.items()}
            if skip:
                samples = {name: tensor[skip:] for name, tensor in samples.items()}
                skip = 0
            if rest:
                samples = {name: torch.cat([rest[name], tensor]) for name, tensor in samples.items()}
            count = len(next(iter(samples.values())))
            for start in range(0, count - batch_size + 1, batch_size):
                yield {name: tensor[start : start + batch_size] for name, tensor in samples.items()}
            rest = {name: tensor[count - count % batch_size :] for name, tensor in samples.items()}
        if rest and len(next(iter(rest.values()))):
            yield rest


def to_tensors(arrays: Arrays) -> Batch:
    """Tensors over the arrays' memory, nothing copied; for reading alone, as Ray's memory is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _read_block(source: Source, block: Block) -> Arrays:
    return source.read(block.chunks, np.random.default_rng((*block.seed, 0)))


def _read_here(source: Source, blocks: Sequence[Block]) -> Iterator[Arrays]:
    return (_read_block(source, block) for block in blocks)


def _read_ahead(source: Source, blocks: Sequence[Block], readers: int) -> Iterator[Arrays]:
    import ray.data

    def read(row: dict[str, Any]) -> Arrays:
        return _read_block(source, blocks[row["id"]])

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
