"""Seeded, seekable streams of training batches.

The samples of a block are permuted and cut into batches. The order depends on nothing but the plan, so a stream can
start at any (epoch, step), reading only the block it falls into. A worker has one part or several, of each of which it
takes as many samples into a batch: so the parts, not the workers, make up a step's samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from raycap.train.blocks import Batch, Block, Plan, Source, blocks_from, read_blocks


class BatchStream:
    """Reads blocks in order and cuts them into batches.

    Args:
        source: where the blocks are read.
        blocks: of all calls of :meth:`batches` that will come, each by :func:`reading_order`.
        readers: Ray Data tasks that read ahead; 0 reads here, when a block is due.
    """

    def __init__(self, source: Source, blocks: Sequence[Block], readers: int) -> None:
        self._source = source
        self._arrays = read_blocks(source, blocks, readers)

    def batches(self, plan: Plan, samples_per_part: int, *, skip: int = 0, shuffle: bool = True) -> Iterator[Batch]:
        """Batches of a plan, the samples of its parts one behind another.

        What fills no batch comes last, as a smaller one; so does what is left of parts after others have ended.

        Args:
            samples_per_part: in a batch.
            skip: samples of each part that are left out at the start.
        """
        parts = [self._part(blocks, samples_per_part, skip, shuffle) for blocks in plan]
        while pieces := [piece for piece in (next(part, None) for part in parts) if piece is not None]:
            if len(pieces) == 1:
                yield pieces[0]
            else:
                yield {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def _part(self, blocks: Sequence[Block], batch_size: int, skip: int, shuffle: bool) -> Iterator[Batch]:
        rest: Batch = {}
        for block, skipped in blocks_from(blocks, skip):
            samples = self._source.to_samples(next(self._arrays))
            if shuffle:
                order = torch.from_numpy(np.random.default_rng((*block.seed, 1)).permutation(block.num_samples))
                samples = {name: tensor[order.to(tensor.device)] for name, tensor in samples.items()}
            if skipped:
                samples = {name: tensor[skipped:] for name, tensor in samples.items()}
            if rest:
                samples = {name: torch.cat([rest[name], tensor]) for name, tensor in samples.items()}
            count = len(next(iter(samples.values())))
            for start in range(0, count - batch_size + 1, batch_size):
                yield {name: tensor[start : start + batch_size] for name, tensor in samples.items()}
            rest = {name: tensor[count - count % batch_size :] for name, tensor in samples.items()}
        if rest and len(next(iter(rest.values()))):
            yield rest
