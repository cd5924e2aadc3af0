"""The order of the data: complete, seeded, the same from any place it is resumed at.

Read in process; reading by Ray Data is in test_training.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from raycap.data.rows import Chunk
from raycap.train.blocks import Arrays, Batch, batches_per_epoch, plan_epoch, reading_order
from raycap.train.stream import BatchStream


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


def epoch_of(
    source: Numbers, parts: range, num_parts: int, epoch: int = 0, samples: int = 10, skip: int = 0
) -> list[list[int]]:
    plan = plan_epoch(source, "train", seed=5, epoch=epoch, parts=parts, num_parts=num_parts, chunks_per_block=2)
    stream = BatchStream(source, reading_order(plan, samples, skip), 0)
    return [batch["index"].tolist() for batch in stream.batches(plan, samples, skip=skip)]


def part(index: int) -> range:
    return range(index, index + 1)


SIZES = [13, 64, 7, 31, 64, 50, 1, 22]


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_the_workers_together_see_every_sample_once(num_workers: int) -> None:
    source = Numbers(SIZES)
    seen = [i for rank in range(num_workers) for batch in epoch_of(source, part(rank), num_workers) for i in batch]
    assert sorted(seen) == list(range(sum(SIZES)))


def test_epochs_differ_and_repeat_by_seed() -> None:
    source = Numbers(SIZES)
    assert epoch_of(source, part(0), 2) == epoch_of(source, part(0), 2)
    assert epoch_of(source, part(0), 2) != epoch_of(source, part(0), 2, epoch=1)


def test_samples_of_different_chunks_are_mixed() -> None:
    source = Numbers([64, 64])
    first = epoch_of(source, part(0), 1, samples=64)[0]
    assert 16 < sum(index < 64 for index in first) < 48


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_every_worker_has_at_least_the_promised_batches(num_workers: int) -> None:
    source = Numbers(SIZES)
    full = batches_per_epoch(source, "train", num_parts=num_workers, samples_per_part=10, whole=False)
    whole = batches_per_epoch(source, "train", num_parts=num_workers, samples_per_part=10, whole=True)
    for epoch in range(20):
        for rank in range(num_workers):
            batches = epoch_of(source, part(rank), num_workers, epoch)
            assert sum(len(batch) == 10 for batch in batches) >= full
            assert len(batches) <= whole


@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_skipping_gives_the_batches_that_would_have_come(num_parts: int) -> None:
    source = Numbers(SIZES)
    everything = epoch_of(source, range(num_parts), num_parts)
    # Up to where the smallest part ends; no step is taken beyond.
    for steps in range(batches_per_epoch(source, "train", num_parts=num_parts, samples_per_part=10, whole=False)):
        assert epoch_of(source, range(num_parts), num_parts, skip=10 * steps) == everything[steps:]


@pytest.mark.parametrize("num_workers", [2, 3, 6])
def test_a_step_sees_the_same_samples_however_many_workers_share_its_parts(num_workers: int) -> None:
    source, num_parts = Numbers([13, 64, 22, 31] * 6), 6
    alone = epoch_of(source, range(num_parts), num_parts, samples=4)
    share = num_parts // num_workers
    workers = [
        epoch_of(source, range(rank * share, (rank + 1) * share), num_parts, samples=4) for rank in range(num_workers)
    ]
    steps = batches_per_epoch(source, "train", num_parts=num_parts, samples_per_part=4, whole=False)
    assert steps > 10
    for step in range(steps):
        assert [i for batches in workers for i in batches[step]] == alone[step]


def test_blocks_are_read_when_they_are_due() -> None:
    """Else a pipeline that reads ahead would hold one part's blocks for as long as the others take."""
    source = Numbers([20] * 12)
    plan = plan_epoch(source, "train", seed=0, epoch=0, parts=range(3), num_parts=3, chunks_per_block=1)
    order = reading_order(plan, 10)
    assert [[block in blocks for blocks in plan].index(True) for block in order] == [0, 1, 2] * 4


def test_the_tasks_that_read_do_not_wait_for_torch() -> None:
    modules = ("blocks", "captioned_images", "cropped_images", "stored_regions", "stored_embeddings", "word_counts")
    imports = "; ".join(f"import raycap.train.{module}" for module in modules)
    subprocess.run([sys.executable, "-c", f"{imports}; import sys; assert 'torch' not in sys.modules"], check=True)
