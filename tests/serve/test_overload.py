"""More requests than there is room for, and requests that are given up: over HTTP, on a local cluster."""

import asyncio
import shutil
import tempfile
import time
from collections import Counter

import aiohttp
import pytest
import ray
from serve.many_requests import ask_all, wait_until_nothing_is_left

from raycap.serve import server
from raycap.serve.config import CaptionArgs

pytestmark = pytest.mark.integration

REQUEST_SECONDS = 2.0
# Takes all of the decoder's rows, for as many steps as there may be.
SLOW = {"num_beams": "8", "max_new_tokens": "24"}
MANY = 120


@pytest.fixture(scope="module")
def cluster():
    directory = tempfile.mkdtemp(prefix="ray-")  # sockets' paths have 107 characters at most
    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=directory, log_to_driver=False)
    yield
    ray.shutdown()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def start(models, cluster):
    """Starts the application with these options of its stages."""

    def start(limits, kind="disaggregated", **stages):
        model = {"model": str(models / "demo/blip/model"), "rbm": str(models / "demo/rbm/model"), "precision": "fp32"}
        if kind == "disaggregated":
            stages["encoder"] = {"cache_bytes": 0} | stages.get("encoder", {})
        shape = {"kind": kind, **stages}
        values = {"models": {"caption": model}, "shape": shape, "caption_cache_bytes": 0, "limits": limits}
        return server.start(CaptionArgs.model_validate(values), port=0)

    yield start
    server.stop()


@pytest.mark.parametrize("stage", ["encoder", "refiner", "decoder"])
def test_a_full_queue_of_any_stage_is_a_503_that_says_when_to_come_again(files, start, stage):
    narrow = {"max_ongoing_requests": 1, "max_queued_requests": 1, "retry_after_seconds": 7}
    url = start({}, **{stage: narrow if stage == "decoder" else narrow | {"batch_size": 1}})
    answers = asyncio.run(ask_all(url, files, 40))
    assert set(answers) == {(200, None, None), (503, "7", "overloaded")}, Counter(answers)
    wait_until_nothing_is_left(5)
    assert asyncio.run(ask_all(url, files, 1)) == [(200, None, None)]


def test_one_process_for_all_refuses_in_the_same_way(files, start):
    narrow = {"max_ongoing_requests": 1, "max_queued_requests": 1, "retry_after_seconds": 7, "batch_size": 1}
    url = start({}, "cpu", captioner=narrow | {"cache_bytes": 0})
    answers = asyncio.run(ask_all(url, files, 40))
    assert set(answers) == {(200, None, None), (503, "7", "overloaded")}, Counter(answers)
    asyncio.run(ask_all(url, files, 40, SLOW, leave=lambda: time.sleep(0.2)))
    deadline = time.monotonic() + 10
    while (answers := asyncio.run(ask_all(url, files, 1))) != [(200, None, None)]:
        assert time.monotonic() < deadline, f"who left keeps a place: {answers}"


def test_more_clients_than_are_computed_at_once_are_served_no_slower(files, start):
    url = start({"request_seconds": 60.0})
    asyncio.run(ask_all(url, files, 32))  # warm

    def rate(clients):
        began = time.monotonic()
        answers = asyncio.run(ask_all(url, files, clients, {"max_new_tokens": "24"}))
        assert set(answers) == {(200, None, None)}, Counter(answers)
        return clients / (time.monotonic() - began)

    few, many = (max(rate(clients) for _ in range(2)) for clients in (48, 240))
    assert many > 0.5 * few, (many, few)


def test_each_of_many_at_once_gets_its_own_caption(models, files, predicted, start):
    """So many that they share calls to the decoder."""
    url = start({"request_seconds": 60.0})
    expected = predicted(str(models / "demo/rbm/model"))

    async def ask():
        async def caption(session, file):
            async with session.post(f"{url}/v1/caption", data={"file": file}) as answer:
                return (await answer.json())["caption"]

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            return await asyncio.gather(*(caption(session, files[index % len(files)]) for index in range(MANY)))

    assert asyncio.run(ask()) == [expected[index % len(files)] for index in range(MANY)]


def test_work_that_nobody_waits_for_any_more_ends(files, start):
    url = start({"request_seconds": REQUEST_SECONDS}, decoder={"max_rows": 8})
    asyncio.run(ask_all(url, files, 4))  # warm
    began = time.monotonic()
    answers = asyncio.run(ask_all(url, files, MANY, SLOW))
    assert set(answers) <= {(200, None, None), (504, None, "timeout")}, Counter(answers)
    assert answers.count((504, None, "timeout")) > 20, "many must be given up for this to show anything"
    assert time.monotonic() - began < 3 * REQUEST_SECONDS + 10
    wait_until_nothing_is_left(2)

    answers = asyncio.run(ask_all(url, files, MANY, SLOW, leave=lambda: time.sleep(0.7)))
    assert answers.count(None) > 20, "most must still be waiting for this to show anything"
    wait_until_nothing_is_left(2)
    assert asyncio.run(ask_all(url, files, 1)) == [(200, None, None)]
