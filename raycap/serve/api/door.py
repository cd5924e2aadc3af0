"""How much is inside: the requests being answered, and the bytes that they brought; what would be too much is refused,
and so is everything before a server ends."""

from starlette.types import ASGIApp, Receive, Scope, Send

from raycap.serve.errors import Overloaded, RequestError

# Asked by those who decide where requests go, until the very end.
_ALWAYS_OPEN = ("/healthz", "/readyz")


class Door:
    """Of one replica of the ingress.

    Args:
        max_requests: being answered at once.
        max_bytes: of what they brought and is not yet pixels, together.
        retry_after_seconds: what one too many is told to wait.
    """

    def __init__(self, max_requests: int, max_bytes: int, retry_after_seconds: float = 1.0) -> None:
        self.max_requests, self.max_bytes, self.retry_after_seconds = max_requests, max_bytes, retry_after_seconds
        self.draining = False
        """Not ready for new requests any more, which are answered nevertheless."""

        self.closed = False
        """New requests are refused with a 503; nothing was computed for them."""

        self.num_inside = 0
        """Requests being answered."""

        self.num_bytes = 0
        """That they hold."""


class Held:
    """Bytes of one request, counted as they come and until they are pixels or the request ends."""

    def __init__(self, door: Door) -> None:
        self._door, self._num_bytes = door, 0

    def take(self, num_bytes: int) -> None:
        """So many more came.

        Raises:
            Overloaded: with them all requests would hold too many.
        """
        door = self._door
        if door.num_bytes + num_bytes > door.max_bytes:
            raise Overloaded(door.retry_after_seconds)
        door.num_bytes += num_bytes
        self._num_bytes += num_bytes

    def give_back(self, num_bytes: int | None = None) -> None:
        """So many are held no more; by default none of them."""
        num_bytes = self._num_bytes if num_bytes is None else min(num_bytes, self._num_bytes)
        self._door.num_bytes -= num_bytes
        self._num_bytes -= num_bytes


class PassDoor:
    """ASGI middleware; inside of the one that answers errors and keeps the record."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Behind a prefix the path begins with it.
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path in _ALWAYS_OPEN:
            await self.app(scope, receive, send)
            return
        if self.door.closed:
            message = "this server is about to end; send requests to another, or again"
            raise RequestError(503, "closing", message, headers={"Retry-After": "1", "Connection": "close"})
        if self.door.num_inside >= self.door.max_requests:
            raise Overloaded(self.door.retry_after_seconds)
        held = scope["state"]["record"].held = Held(self.door)
        self.door.num_inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.door.num_inside -= 1
            held.give_back()
