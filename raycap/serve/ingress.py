"""The HTTP door as a Serve deployment, before the stages' deployments.

It holds no models and imports no torch: a replica is small, and there in seconds. Embeddings never come through here,
unless a client asks for them. Images are decoded and resized here, in threads: a bad one is refused before it takes a
place in a batch, the CPU work grows with the ingress's replicas and not with those that hold a GPU, and what goes on to
the encoder is at most 442 kB (384 x 384 pixels) whatever came in.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from raycap.config import parse_config
from raycap.errors import UserError
from raycap.serve.api.app import make_api
from raycap.serve.api.service import Service
from raycap.serve.config import CaptionArgs, ServeArgsError
from raycap.serve.garbage import collect_seldom
from raycap.serve.guard.fetch import ImageFetcher
from raycap.serve.guard.keys import KeyRing
from raycap.serve.guard.rate_limit import RateLimiter
from raycap.serve.stages.handles import RemoteCaptioner
from raycap.serve.stages.pipeline import Captioner
from raycap.serve.stages.weights import Routing
from raycap.serve.telemetry.telemetry import Telemetry

logger = logging.getLogger("ray.serve")


class Ingress:
    """Answers HTTP requests with what a captioner gives.

    Which models are served is no argument but the deployment's ``user_config``: an argument could not change without a
    restart.

    Args:
        args: of the application.
        captioner: made with the replica's telemetry.

    Raises:
        ServeArgsError: the keys cannot be read.
    """

    telemetry = Telemetry()

    def __init__(self, args: CaptionArgs, captioner: Callable[[Telemetry], Captioner]) -> None:
        try:
            key_ring = KeyRing(args.keys) if args.keys is not None else None
        except UserError as error:
            raise ServeArgsError(str(error)) from None
        collect_seldom()
        self.args = args
        self.telemetry = Telemetry.of_replica(args.tracing)
        limiter = RateLimiter(args.rate_limit) if args.rate_limit is not None else None
        self.service = Service(
            captioner(self.telemetry),
            args.limits,
            args.caption_cache_bytes,
            ImageFetcher(args.fetch).fetch,
            key_ring,
            limiter,
            telemetry=self.telemetry,
            max_requests=args.max_inside,
            retry_after_seconds=args.front.retry_after_seconds,
        )

    def __del__(self) -> None:
        # Serve's call as a replica stops, before its process is killed.
        self.telemetry.close()

    @property
    def draining(self) -> bool:
        """Whether it is not ready for new requests any more."""
        return self.service.served.draining or self.service.door.draining

    async def drain(self) -> None:
        """Not ready from now on; requests that come are answered nevertheless."""
        self.service.door.draining = True

    async def close(self) -> None:
        """Refuse requests that come from now on."""
        self.service.door.draining = self.service.door.closed = True

    async def num_inside(self) -> int:
        """How many requests are being answered."""
        return self.service.door.num_inside

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve's call, at the start and whenever the configuration changes: serve these models as soon as each has
        given a caption.

        A replica that serves already, and is given models it cannot serve, goes on with those it has: had it raised,
        Serve would end it, and no other would come up. ``/readyz`` then says so, and the log why in one line.

        Args:
            user_config: of :class:`raycap.serve.stages.weights.Routing`.

        Raises:
            ServeArgsError: one line, which ``serve status`` shows; of a replica that serves no model yet.
        """
        try:
            if self.service.keys is not None:
                # So that keys, too, change without a restart.
                await asyncio.to_thread(self.service.keys.reload)
            routing = parse_config(Routing, user_config, origin="user_config")
            self.args.require_refiner(routing)
            self.args.require_room(routing)
            await self.service.switch(routing)
        except UserError as error:
            if not self.service.served.models:
                raise ServeArgsError(str(error)) from None
            self.service.refused = str(error)
            logger.error("user_config is refused: %s", error)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_api(self.service, echoes_id=False)


@serve.ingress()
class CaptionIngress(Ingress):
    """In front of stages that are deployments of their own.

    Args:
        args: of the application.
        captioner: handle of the deployment that captions.
    """

    def __init__(self, args: CaptionArgs, captioner: DeploymentHandle) -> None:
        super().__init__(args, lambda _: RemoteCaptioner(captioner, args.last_stage.most_replicas))
