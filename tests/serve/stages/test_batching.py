import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from raycap.serve.stages.batching import Batcher


class Compute:
    """Doubles; waits for leave where told to, and remembers its batches."""

    def __init__(self):
        self.batches = []
        self.leave = threading.Event()
        self.leave.set()

    def __call__(self, group, items):
        self.leave.wait(5)
        self.batches.append((group, list(items)))
        if "bad" in items:
            raise ValueError("bad item")
        return [item * 2 for item in items]


@pytest.fixture
def compute():
    return Compute()


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as executor:
        yield executor


def test_requests_that_come_while_a_batch_is_computed_make_the_next_one(compute, executor):
    async def run():
        batcher = Batcher(compute, executor, batch_size=3)
        compute.leave.clear()
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(batcher(item)) for item in range(1, 6)]
        await asyncio.sleep(0.05)
        compute.leave.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(run()) == [0, 2, 4, 6, 8, 10]
    assert [items for _, items in compute.batches] == [[0], [1, 2, 3], [4, 5]]


def test_a_batch_is_closed_by_size_or_by_time(compute, executor):
    async def run(num_items):
        batcher = Batcher(compute, executor, batch_size=4, wait_seconds=0.2)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(batcher(item) for item in range(num_items)))
        return loop.time() - began

    assert asyncio.run(run(4)) < 0.15, "a full batch waits for nothing"
    assert asyncio.run(run(3)) >= 0.2
    assert [len(items) for _, items in compute.batches] == [4, 3]


def test_groups_are_never_mixed(compute, executor):
    async def run():
        batcher = Batcher(compute, executor, batch_size=8, wait_seconds=0.05)
        return await asyncio.gather(*(batcher(item, item % 2) for item in range(6)))

    assert asyncio.run(run()) == [0, 2, 4, 6, 8, 10]
    assert sorted(compute.batches) == [(0, [0, 2, 4]), (1, [1, 3, 5])]


def test_who_gives_up_while_waiting_is_left_out(compute, executor):
    async def run():
        batcher = Batcher(compute, executor, batch_size=8)
        compute.leave.clear()
        tasks = [asyncio.create_task(batcher(item)) for item in range(1)]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batcher(item)) for item in range(1, 4)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.sleep(0)
        compute.leave.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(run())
    assert isinstance(results.pop(2), asyncio.CancelledError)
    assert results == [0, 2, 6]
    assert [items for _, items in compute.batches] == [[0], [1, 3]]


def test_an_error_reaches_its_batch_and_no_other(compute, executor):
    async def run():
        batcher = Batcher(compute, executor, batch_size=2)
        bad = await asyncio.gather(batcher("bad"), return_exceptions=True)
        return bad, await batcher("x")

    (error,), good = asyncio.run(run())
    assert isinstance(error, ValueError)
    assert good == "xx"
