"""What all routes share: the captioner, the models being served, and who may ask how much."""

import asyncio

from fastapi import Request

from raycap.errors import UserError
from raycap.serve.api.door import Door
from raycap.serve.api.images import FetchUrl, Images
from raycap.serve.api.readiness import Readiness, try_model
from raycap.serve.api.record import RequestRecord, record_of
from raycap.serve.api.served import ReadyModel, Served
from raycap.serve.errors import Overloaded
from raycap.serve.guard.keys import KeyRing
from raycap.serve.guard.limits import Limits
from raycap.serve.guard.rate_limit import RateLimiter, anonymous_name
from raycap.serve.stages.cache import ByteCache
from raycap.serve.stages.pipeline import Captioned, Captioner
from raycap.serve.stages.weights import Routing
from raycap.serve.telemetry.metrics import MODELS_LOADED
from raycap.serve.telemetry.telemetry import Telemetry

# Of a new model while the stages have too much to do, or have lost a replica.
_PROOF_ATTEMPTS = 10


class Service:
    """Behind the routes. It serves no model until :meth:`switch` was called.

    Args:
        captioner: the stages.
        limits: of every request.
        cache_bytes: of captions kept for requests that come again.
        fetch: images by URL; None refuses URLs.
        keys: who may use /v1; None lets anyone.
        rate_limiter: how fast each client may ask; None lets all ask as they like.
        ready_seconds: how long a pass through the stages counts as proof that they work.
        telemetry: told of each request.
        max_requests: being answered at once.
        retry_after_seconds: what one more is told to wait.
    """

    def __init__(
        self,
        captioner: Captioner,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        cache_bytes: int = 16 * 1024 * 1024,
        fetch: FetchUrl | None = None,
        keys: KeyRing | None = None,
        rate_limiter: RateLimiter | None = None,
        ready_seconds: float = 5.0,
        telemetry: Telemetry = Telemetry(),  # noqa: B008 - keeps nothing
        max_requests: int = 1024,
        retry_after_seconds: float = 1.0,
    ) -> None:
        self.telemetry = telemetry
        self.captioner, self.limits = captioner, limits
        self.images = Images(limits, fetch)
        self.cache: ByteCache[Captioned] = ByteCache(cache_bytes)
        self.keys, self.rate_limiter = keys, rate_limiter
        self.readiness = Readiness(captioner, ready_seconds)
        self.door = Door(max_requests, limits.max_held_bytes, retry_after_seconds)
        self.served = Served({})
        self.refused: str | None = None
        """Why the last models that were to be served are not: for the operator, not for clients."""
        self._switching = asyncio.Lock()
        # Last: another thread reads it from now on.
        telemetry.recorder.watch(MODELS_LOADED, lambda: len(self.served.models))

    async def switch(self, routing: Routing) -> None:
        """Serve other models: each new one has to give a caption first, and until all have, the old ones go on.

        Raises:
            UserError: one does not; one line.
        """
        async with self._switching:
            try:
                served = await asyncio.to_thread(Served.read, routing)
            except UserError as error:
                raise UserError(f"{error}; the models served before go on") from None
            for name, model in served.models.items():
                before = self.served.models.get(name)
                # Its share of the traffic needs no proof.
                if (
                    before is not None
                    and before.served.model_copy(update={"traffic": model.served.traffic}) == model.served
                ):
                    continue
                try:
                    await self._prove(model)
                except Exception as error:
                    reason = " ".join(str(error).split())[:300] or type(error).__name__
                    message = f"models.{name}: gives no caption ({reason}); the models served before go on"
                    raise UserError(message) from error
            self.served, self.refused = served, None

    async def _prove(self, model: ReadyModel) -> None:
        """Load a model in every stage and let it give a caption; stages that have too much to do are waited for."""
        for attempts_left in reversed(range(_PROOF_ATTEMPTS)):
            try:
                with self.readiness.observe():
                    await self.captioner.prepare(model.weights_key)
                    await try_model(self.captioner, model)
                self.readiness.passed()
                return
            except Overloaded as error:
                if attempts_left == 0:
                    raise
                await asyncio.sleep(error.retry_after_seconds)

    def admit(self, request: Request, num_images: int | None = 1) -> RequestRecord:
        """See who asks, and count the images; None where they are not known yet, see :meth:`count_images`.

        Raises:
            RequestError: 401, no or an unknown key; 429, too many images.
        """
        record = record_of(request)
        if self.keys is not None:
            record.key = self.keys.identify(request.headers.get("authorization"))
        if num_images is not None:
            self.count_images(request, num_images)
        return record

    def count_images(self, request: Request, num_images: int) -> None:
        """Of a request that was admitted.

        Raises:
            RequestError: 429, too many.
        """
        record = record_of(request)
        record.num_images = num_images
        if self.rate_limiter is not None:
            client = record.key or anonymous_name(request.client.host if request.client is not None else "")
            self.rate_limiter.take(client, num_images)
