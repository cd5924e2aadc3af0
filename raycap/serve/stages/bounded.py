"""Stages in the same process, which so many requests may ask at once: what Serve's queues see to where each request is
a call."""

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager

from raycap.serve.errors import Overloaded
from raycap.serve.stages.captioning import Decoder
from raycap.serve.stages.pipeline import Captioned, CaptionTask, Embedded, ImageTask


class BoundedCaptioner:
    """A :class:`~raycap.serve.stages.pipeline.Captioner`.

    Args:
        stages: what captions.
        max_requests: computed or waiting at once.
        retry_after_seconds: what one too many is told to wait.
    """

    def __init__(self, stages: Decoder, max_requests: int, retry_after_seconds: float) -> None:
        self.stages, self.max_requests, self.retry_after_seconds = stages, max_requests, retry_after_seconds
        self.num_requests = 0

    async def caption(self, task: CaptionTask) -> Captioned:
        with self._place():
            return await self.stages.caption(task)

    async def stream(self, task: CaptionTask) -> AsyncGenerator[str | Captioned, None]:
        with self._place():
            async with aclosing(self.stages.stream(task)) as pieces:
                async for piece in pieces:
                    yield piece

    async def embed(self, task: ImageTask) -> Embedded:
        with self._place():
            return await self.stages.embed(task)

    async def prepare(self, weights: str) -> None:
        await self.stages.prepare(weights)

    @contextmanager
    def _place(self) -> Generator[None, None, None]:
        if self.num_requests >= self.max_requests:
            raise Overloaded(self.retry_after_seconds)
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1
