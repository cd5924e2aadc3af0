"""The HTTP door as a Serve deployment. Embeddings never come through here, unless a client asks for them.

Images are decoded and resized here, in threads: a bad one is refused before it takes a place in a
batch, the CPU work grows with the ingress's replicas and not with those that hold a GPU, and what goes
on to the encoder is at most 442 kB (384 x 384 pixels) whatever came in.
"""

from typing import Any

from fastapi import FastAPI
from ray import serve

from raycap.config import parse_config
from raycap.errors import UserError
from raycap.serve.api.app import make_api
from raycap.serve.api.service import Service
from raycap.serve.config import ServeArgsError
from raycap.serve.fetch import ImageFetcher, UrlFetch
from raycap.serve.keys import KeyRing, Keys
from raycap.serve.limits import Limits
from raycap.serve.models import Routing
from raycap.serve.pipeline import Captioner
from raycap.serve.rate_limit import RateLimit, RateLimiter


@serve.ingress()
class CaptionIngress:
    """Answers HTTP requests with what the captioner gives.

    Which models are served is no argument but the deployment's ``user_config``: an argument could not change without a
    restart.

    Args:
        captioner: the stages.
        limits: of every request.
        caption_cache_bytes: of captions kept for requests that come again.
        fetch: of images that requests name by URL.
        keys: where the keys are that /v1 asks for; None asks for none.
        rate_limit: of each client; None lets all ask as they like.

    Raises:
        UserError: the keys cannot be read.
    """

    def __init__(
        self,
        captioner: Captioner,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        caption_cache_bytes: int = 16 * 1024 * 1024,
        fetch: UrlFetch = UrlFetch(),  # noqa: B008 - frozen
        keys: Keys | None = None,
        rate_limit: RateLimit | None = None,
    ) -> None:
        key_ring = KeyRing(keys) if keys is not None else None
        limiter = RateLimiter(rate_limit) if rate_limit is not None else None
        self.service = Service(captioner, limits, caption_cache_bytes, ImageFetcher(fetch).fetch, key_ring, limiter)

    @property
    def draining(self) -> bool:
        """Whether it is not ready for new requests any more."""
        return self.service.served.draining

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve's call, at the start and whenever the configuration changes: serve these models as soon as each has
        given a caption.

        Args:
            user_config: of :class:`raycap.serve.models.Routing`.

        Raises:
            ServeArgsError: one line; what was served before goes on.
        """
        try:
            await self.service.switch(parse_config(Routing, user_config, origin="user_config"))
        except UserError as error:
            raise ServeArgsError(str(error)) from None

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_api(self.service)
