"""The order of the data: complete, seeded, the same from any place it is resumed at.

Read in process; reading by Ray Data is in test_training.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from raycap.data.rows import Chunk
from raycap.train.stream import Arrays, Batch, BatchStream, batches_per_epoch, plan_epoch


class Numbers:
    """Samples that are their own index."""

    samples_per_row = 1
    bytes_per_row = 8

    def __init__(self, sizes: Sequence[int]) -> None:
        starts = np.cumsum([0, *sizes[:-1]])
        self._chunks = [Chunk(str(start), 0, size) for start, size in zip(starts, sizes, strict=True)]

    def chunks(self, split: str) -> list[Chunk]:
        return self._chunks

    def read(self, chunks: Sequence[Chunk], rng: np.random.Generator) -> Arrays:
        return {"index": np.concatenate([np.arange(int(c.file), int(c.file) + c.num_rows) for c in chunks])}

    def to_samples(self, arrays: Arrays) -> Batch:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def epoch_of(source: Numbers, rank: int, num_workers: int, epoch: int = 0, batch_size: int = 10) -> list[list[int]]:
    plan = plan_epoch(source, "train", seed=5, epoch=epoch, rank=rank, num_workers=num_workers, chunks_per_block=2)
    batches = BatchStream(source, plan, 0).batches(len(plan), batch_size)
    return [batch["index"].tolist() for batch in batches]


SIZES = [13, 64, 7, 31, 64, 50, 1, 22]


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_the_workers_together_see_every_sample_once(num_workers: int) -> None:
    source = Numbers(SIZES)
    seen = [i for rank in range(num_workers) for batch in epoch_of(source, rank, num_workers) for i in batch]
    assert sorted(seen) == list(range(sum(SIZES)))


def test_epochs_differ_and_repeat_by_seed() -> None:
    source = Numbers(SIZES)
    assert epoch_of(source, 0, 2) == epoch_of(source, 0, 2)
    assert epoch_of(source, 0, 2) != epoch_of(source, 0, 2, epoch=1)


def test_samples_of_different_chunks_are_mixed() -> None:
    source = Numbers([64, 64])
    first = epoch_of(source, 0, 1, batch_size=64)[0]
    assert 16 < sum(index < 64 for index in first) < 48


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_every_worker_has_at_least_the_promised_batches(num_workers: int) -> None:
    source = Numbers(SIZES)
    full = batches_per_epoch(source, "train", num_workers=num_workers, batch_size=10, whole=False)
    whole = batches_per_epoch(source, "train", num_workers=num_workers, batch_size=10, whole=True)
    for epoch in range(20):
        for rank in range(num_workers):
            batches = epoch_of(source, rank, num_workers, epoch)
            assert sum(len(batch) == 10 for batch in batches) >= full
            assert len(batches) <= whole


def test_skipping_gives_the_batches_that_would_have_come() -> None:
    source = Numbers(SIZES)
    plan = plan_epoch(source, "train", seed=1, epoch=3, rank=0, num_workers=1, chunks_per_block=2)
    everything = [b["index"].tolist() for b in BatchStream(source, plan, 0).batches(len(plan), 10)]
    for steps in range(len(everything)):
        skip, blocks = steps * 10, list(plan)
        while skip >= blocks[0].num_samples:
            skip -= blocks.pop(0).num_samples
        rest = [b["index"].tolist() for b in BatchStream(source, blocks, 0).batches(len(blocks), 10, skip=skip)]
        assert rest == everything[steps:]
