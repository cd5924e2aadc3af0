"""Many requests at once, some of which nobody waits for any more, and what is left of them in the stages."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp
from ray import serve
from serve.local_cluster import wait_until

_STAGES = ("encoder", "refiner", "decoder")


def unfinished() -> dict[str, int]:
    """What is left to do in all replicas of each stage."""
    left = {}
    for name in _STAGES:
        handle = serve.get_deployment_handle(name, "caption")
        if not handle.is_initialized:
            # Serve's throughput mode would have it use the event loop of whoever asks: there is none here.
            handle._init(_run_router_in_separate_loop=True)
        left[name] = sum(handle.broadcast("num_unfinished").results(timeout_s=30))
    return left


def wait_until_nothing_is_left(seconds: float) -> None:
    wait_until(lambda: not any(unfinished().values()), seconds, lambda: str(unfinished()))


async def ask_all(
    url: str,
    files: Sequence[bytes],
    count: int,
    options: Mapping[str, str] = {},
    leave: Callable[[], Any] | None = None,
) -> list[Any]:
    """As many requests at once, until they are answered or, if given, this has returned; each one's status, Retry-After
    and kind of error, a stream's text, None where the client left."""

    async def ask(session: aiohttp.ClientSession, index: int) -> Any:
        form = aiohttp.FormData(options)
        form.add_field("file", files[index % len(files)], filename="image.png")
        async with session.post(f"{url}/v1/caption", data=form) as answer:
            if answer.content_type == "text/event-stream":
                return await answer.text()
            assert answer.content_type == "application/json", await answer.text()
            error = (await answer.json()).get("error", {})
            assert "Traceback" not in error.get("message", "")
            return answer.status, answer.headers.get("Retry-After"), error.get("type")

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(60)
    ) as session:
        asking = [asyncio.create_task(ask(session, index)) for index in range(count)]
        if leave is not None:
            await asyncio.to_thread(leave)
            for task in asking:
                task.cancel()
        await asyncio.wait(asking)
    return [None if task.cancelled() else task.result() for task in asking]
