"""How many requests are inside, how many bytes they hold, and when none comes in any more."""

import asyncio
import tracemalloc

import pytest
from pydantic import ValidationError

from raycap.serve.guard.limits import Limits

MEGABYTE = 2**20


@pytest.fixture
def roomy():
    return Limits(max_image_bytes=4 * MEGABYTE, max_body_bytes=8 * MEGABYTE, max_held_bytes=8 * MEGABYTE)


@pytest.fixture
def heavy(png):
    """A small image in a large file: what follows its end counts nevertheless."""
    return png() + bytes(3 * MEGABYTE)


def bodies(data, data_url):
    return {
        "raw": ("/v1/caption", {"content": data, "headers": {"content-type": "image/png"}}),
        "form": ("/v1/caption", {"files": {"file": ("a.png", data, "image/png")}}),
        "json": ("/v1/caption", {"json": {"image": data_url(data)}}),
        "list": ("/v1/captions", {"json": {"images": [data_url(data)]}}),
        "chat": (
            "/v1/chat/completions",
            {
                "json": {
                    "messages": [
                        {
                            "role": "user",
                            "content": [{"type": "image_url", "image_url": {"url": data_url(data)}}],
                        }
                    ]
                }
            },
        ),
        "embeddings": ("/v1/embeddings", {"json": {"input": data_url(data)}}),
    }


def bytes_of_the_server():
    """Of objects that were made in the package or in what it called; the client's own body is none of them."""
    made = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/raycap/serve/*", all_frames=True)])
    return sum(trace.size for trace in made.traces)


@pytest.mark.parametrize("kind", ["raw", "form", "json", "list", "chat", "embeddings"])
def test_a_request_that_waits_for_the_stages_holds_no_file_any_more(make, roomy, heavy, data_url, hold, kind):
    api, waiting = make(limits=roomy), hold()
    path, body = bodies(heavy, data_url)[kind]

    async def memory_while_it_waits():
        request = asyncio.create_task(api.send("POST", path, **body))
        await asyncio.wait_for(waiting.wait(), 10)
        # The thread that decoded may hold on to the file for a moment.
        for _ in range(40):
            await asyncio.sleep(0.05)
            if (num_bytes := bytes_of_the_server()) < MEGABYTE:
                break
        door = api.service.door
        counted = (door.num_inside, door.num_bytes)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        return num_bytes, counted

    tracemalloc.start(8)
    try:
        num_bytes, (num_inside, num_counted) = api.run(memory_while_it_waits())
    finally:
        tracemalloc.stop()
    assert num_bytes < MEGABYTE
    assert num_inside == 1
    # Of JSON and forms what stood around the image is counted until the end.
    assert num_counted < 1000


def test_what_all_requests_hold_is_bounded_and_freed(make, roomy, heavy, png, data_url):
    async def ask():
        begun, end = asyncio.Event(), asyncio.Event()

        async def slowly():
            yield heavy
            begun.set()
            await end.wait()

        async def send(content):
            return await api.send("POST", "/v1/caption", content=content, headers={"content-type": "image/png"})

        first = asyncio.create_task(send(slowly()))
        await asyncio.wait_for(begun.wait(), 10)
        second = asyncio.create_task(api.send("POST", "/v1/caption", json={"image": data_url(heavy)}))
        refused = await send(heavy + heavy[: -len(png())])
        answered = [await second, await send(png())]
        end.set()
        return refused, [*answered, await first]

    api = make(limits=roomy.model_copy(update={"max_image_bytes": 8 * MEGABYTE}), retry_after_seconds=7)
    refused, answered = api.run(ask())
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "7")
    assert refused.json()["error"]["type"] == "overloaded"
    assert [answer.status_code for answer in answered] == [200] * 3
    assert (api.service.door.num_inside, api.service.door.num_bytes) == (0, 0)


def test_bytes_behind_urls_count_as_they_come(make, roomy, data_url):
    async def fetch(url, max_bytes, came):
        for _ in range(4):
            came(MEGABYTE)
            await asyncio.sleep(0)
        return b"no image"

    api = make(limits=roomy, fetch=fetch)
    images = {"images": [f"http://example.org/{index}.png" for index in range(3)]}
    assert api.post("/v1/captions", json=images).status_code == 503
    assert api.service.door.num_bytes == 0


def test_more_requests_than_may_be_inside_are_refused_in_the_one_form(make, data_url, hold):
    api, waiting = make(max_requests=1, retry_after_seconds=3), hold()

    async def ask():
        first = asyncio.create_task(api.send("POST", "/v1/caption", json={"image": data_url()}))
        await asyncio.wait_for(waiting.wait(), 10)
        answers = [await api.send("GET", path) for path in ("/v1/models", "/healthz")]
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return [*answers, await api.send("GET", "/v1/models")]

    refused, healthy, later = api.run(ask())
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "3")
    assert refused.json()["error"]["request_id"] == refused.headers["x-request-id"]
    assert (healthy.status_code, later.status_code) == (200, 200)


def test_a_closed_door_refuses_all_but_the_probes(make, png):
    api = make()
    api.service.door.closed = True
    refused = api.post("/v1/caption", content=png(), headers={"content-type": "image/png"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"]["type"] == "closing"
    assert "about to end" in refused.json()["error"]["message"]
    assert refused.headers["connection"] == "close"
    assert [api.get(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]


def test_limits_that_no_largest_request_would_pass_are_refused():
    with pytest.raises(ValidationError, match=r"max_held_bytes \(1000\) must be at least max_body_bytes"):
        Limits(max_held_bytes=1000)
