"""How fast one client may ask: a token bucket for each, a token an image."""

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from pydantic import Field

from raycap.config import Config
from raycap.serve.errors import RequestError


class RateLimit(Config):
    """Of each client, at each replica of the ingress: replicas do not count together."""

    requests_per_minute: float = Field(gt=0, allow_inf_nan=False)
    """Images a minute in the long run; a request of several images counts for as many."""

    burst: int = Field(ge=1)
    """Images at once after a rest, and the most in one request."""

    max_clients: int = Field(default=10_000, ge=1)
    """Clients remembered; beyond them the one silent for longest is forgotten, and starts afresh."""


class _Bucket(NamedTuple):
    tokens: float
    seconds: float  # by the clock, when there were so many


class RateLimiter:
    """Counts each client's images.

    Args:
        limit: what one client may have.
        clock: seconds that only grow.
    """

    def __init__(self, limit: RateLimit, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    @property
    def num_clients(self) -> int:
        return len(self._buckets)

    def take(self, name: str, tokens: int = 1) -> None:
        """Count a request of ``tokens`` images for a client; a refused one costs nothing.

        Raises:
            RequestError: 429 with ``Retry-After`` (seconds), too many for now; 400, more at once
                than ever allowed.
        """
        assert tokens >= 1, tokens
        limit, now = self._limit, self._clock()
        if tokens > limit.burst:
            message = f"{tokens} images in one request: more than {limit.burst}; send fewer in each"
            raise RequestError(400, "too_many_images", message)
        tokens_per_second = limit.requests_per_minute / 60
        bucket = self._buckets.get(name, _Bucket(limit.burst, now))
        available = min(limit.burst, bucket.tokens + max(0.0, now - bucket.seconds) * tokens_per_second)
        if available < tokens:
            # Asking counts as being there: who hammers is not forgotten and so let in.
            self._buckets.move_to_end(name)
            # At least 1: a client told 0 would ask again at once.
            wait_seconds = max(1, math.ceil((tokens - available) / tokens_per_second))
            message = (
                f"more than {limit.requests_per_minute:g} images a minute (or {limit.burst} at once); "
                f"try again in {wait_seconds} seconds"
            )
            raise RequestError(429, "rate_limited", message, headers={"Retry-After": str(wait_seconds)})
        self._buckets[name] = _Bucket(available - tokens, now)
        self._buckets.move_to_end(name)
        if len(self._buckets) > limit.max_clients:
            self._buckets.popitem(last=False)


def anonymous_name(address: str) -> str:
    """The name under which a client without a key is counted.

    Args:
        address: of its socket; of IPv6 the first 64 bits count, since one client has all the others.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a test client's, a Unix socket's
        return f"address {address[:64]}"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return f"address {parsed.ipv4_mapped}"
        return f"address {ipaddress.ip_network((int(parsed) >> 64 << 64, 64))}"
    return f"address {parsed}"
