"""Inside Serve's proxy: requests that got no answer."""

import asyncio

import httpx

from raycap.serve.proxy import middlewares


async def answers(scope, receive, send):
    await send({"type": "http.response.start", "status": 500, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"of its own"})


async def loses(scope, receive, send):
    """As Serve's proxy does when the replica has died."""
    await receive()


def ask(app, headers=None):
    (middleware,) = middlewares()

    async def post():
        transport = httpx.ASGITransport(middleware.cls(app, *middleware.args, **middleware.kwargs))
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
            return await client.post("/v1/caption", content=b"image", headers=headers)

    return asyncio.run(post())


def test_a_lost_request_can_be_sent_again():
    answer = ask(loses, {"X-Request-ID": "mine"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    error = answer.json()["error"]
    assert (error["type"], error["request_id"], answer.headers["x-request-id"]) == ("lost", "mine", "mine")
    assert "send it again" in error["message"]


def test_every_answer_passes_as_it_is():
    answer = ask(answers)
    assert (answer.status_code, answer.text) == (500, "of its own")


def test_what_is_no_request_is_left_alone():
    (middleware,) = middlewares()
    sent = []

    async def send(message):
        sent.append(message)

    async def lifespan(scope, receive, send):
        return

    asyncio.run(middleware.cls(lifespan)({"type": "lifespan"}, None, send))
    assert sent == []
