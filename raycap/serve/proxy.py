"""Inside Serve's own proxy: what becomes of a request whose replica of the ingress died.

Serve would answer a bare 500. Clients are told that they can send it again where Ray is started with
``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=raycap.serve.proxy:middlewares``.
"""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raycap.serve.api.errors import answer_error
from raycap.serve.api.record import RequestRecord
from raycap.serve.errors import RequestError


class AnswerLost:
    """ASGI middleware: a request that got no answer at all gets a 503, in the one form. What it asked for can be asked
    again, as captions change nothing. A stream that has begun breaks off."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = False

        async def send_and_note(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        await self.app(scope, receive, send_and_note)
        if scope["type"] == "http" and not answered:
            message = "the server that had this request ended before it could answer; send it again"
            lost = RequestError(503, "lost", message, headers={"Retry-After": "1"})
            record = RequestRecord.start(Headers(scope=scope).get("x-request-id"), request_seconds=0)
            answer = answer_error(lost, record)
            answer.headers.update(record.headers(with_id=True))
            await answer(scope, receive, send)


def middlewares() -> list[Middleware]:
    """As Serve asks for them."""
    return [Middleware(AnswerLost)]
