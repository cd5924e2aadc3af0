"""The HTTP interface on loopback in a thread of this process, around all stages in one object: no Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from raycap.serve.api.app import make_api
from raycap.serve.api.service import Service
from raycap.serve.config import CaptionerOptions
from raycap.serve.deployments import CaptionerDeployment
from raycap.serve.stages.weights import Routing


@contextmanager
def serve_on_loopback(routing: Routing, **service_options) -> Iterator[str]:
    """The interface's URL; the models have given a caption each when it is there."""
    # Its own event loop: the captioner's batches belong to the loop in which it was made.
    ready: list[Service] = []

    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            service = Service(CaptionerDeployment(CaptionerOptions()), **service_options)
            await service.switch(routing)
            ready.append(service)
            apis.append(make_api(service))
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await apis[0](scope, receive, send)

    apis: list = []
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="critical", lifespan="on"))
    thread = threading.Thread(target=server.run, name="loopback")
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive(), "the server failed at its start"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
