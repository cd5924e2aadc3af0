"""Counts the requests that are inside, and lets no new ones in before a server ends."""

from starlette.types import ASGIApp, Receive, Scope, Send

from raycap.serve.errors import RequestError

# Asked by those who decide where requests go, until the very end.
_ALWAYS_OPEN = ("/healthz", "/readyz")


class Door:
    """Of one replica of the ingress."""

    def __init__(self) -> None:
        self.draining = False
        """Not ready for new requests any more, which are answered nevertheless."""

        self.closed = False
        """New requests are refused with a 503; nothing was computed for them."""

        self.num_inside = 0
        """Requests being answered."""


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
        self.door.num_inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.door.num_inside -= 1
