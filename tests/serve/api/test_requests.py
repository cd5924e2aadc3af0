"""What every request gets: an id, the one form of errors, a log line, a deadline, keys and a rate limit."""

import asyncio
import json

import httpx
import pytest

from raycap.serve.api.app import make_api
from raycap.serve.api.record import RequestRecord
from raycap.serve.guard.keys import KeyRing, Keys
from raycap.serve.guard.rate_limit import RateLimit, RateLimiter


@pytest.fixture
def log(serve_log):
    """The records of all requests so far."""
    return lambda: [record for record in serve_log.records if hasattr(record, "request_id")]


def test_the_clients_id_comes_back_and_an_insane_one_is_replaced(api):
    def answered(given):
        return api.get("/healthz", headers={"x-request-id": given}).headers["x-request-id"]

    assert answered("Ab-1._") == "Ab-1._"
    assert answered("a" * 128) == "a" * 128
    for insane in ("a" * 129, "a b", "a;b", ""):
        assert len(answered(insane)) == 32
    assert api.get("/healthz").headers["x-request-id"] != api.get("/healthz").headers["x-request-id"]


def test_an_id_that_a_proxy_sends_back_is_not_sent_twice(api):
    api.app = make_api(api.service, echoes_id=False)
    sane, insane = (api.get("/healthz", headers={"x-request-id": given}).headers for given in ("mine", "not mine"))
    assert "x-request-id" not in sane
    assert len(insane["x-request-id"]) == 32


def test_an_unknown_path_or_method_is_answered_in_the_same_form(api):
    unknown, wrong_method = api.post("/v2/caption"), api.get("/v1/caption")
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found")
    assert (wrong_method.status_code, wrong_method.json()["error"]["type"]) == (405, "method_not_allowed")
    for answer in (unknown, wrong_method):
        assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]


def test_our_own_failure_is_a_500_that_tells_no_secrets(api, data_url):
    async def fail(step):
        raise RuntimeError("secret")

    api.captioner.before = fail
    answer = api.post(json={"image": data_url()})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "internal_error")
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/caption", lambda url: {"image": url}),
        ("/v1/caption", lambda url: {"image": url, "stream": True}),
        ("/v1/captions", lambda url: {"images": [url]}),
        ("/v1/embeddings", lambda url: {"input": url}),
    ],
)
def test_a_request_beyond_its_time_is_cancelled_and_answered_504(make, limits, data_url, hold, path, body):
    api = make(limits=limits.model_copy(update={"request_seconds": 1.5}))
    hold()
    answer = api.post(path, json=body(data_url()))
    assert (answer.status_code, answer.json()["error"]["type"]) == (504, "timeout")
    assert api.captioner.cancelled == 1


def test_a_stream_beyond_its_time_ends_with_an_error_event(api, data_url, monkeypatch):
    records, start = [], RequestRecord.start
    monkeypatch.setattr(RequestRecord, "start", lambda *given: records.append(start(*given)) or records[-1])

    async def before(step):
        if step == 1:  # the first piece is on its way: what follows has no time left
            records[0].deadline = 0.0
        if step == 2:
            await asyncio.Event().wait()

    api.captioner.before = before
    answer = api.post(json={"image": data_url(), "stream": True})
    assert answer.status_code == 200
    *_, last, _ = answer.text.split("\n\n")
    assert json.loads(last.partition("data: ")[2])["error"]["type"] == "timeout"
    assert (api.captioner.cancelled, api.captioner.closed) == (1, 1)


def test_a_body_that_never_comes_is_answered_504(make, limits):
    async def slow():
        yield b'{"image'
        await asyncio.sleep(60)

    api = make(limits=limits.model_copy(update={"request_seconds": 0.2}))
    assert api.post(content=slow(), headers={"content-type": "application/json"}).status_code == 504


@pytest.mark.parametrize("stream", [False, True])
def test_a_handler_that_is_cancelled_cancels_its_caption(api, data_url, hold, stream):
    async def cancelled():
        waiting = hold(1 if stream else 0)
        request = asyncio.ensure_future(api.send("POST", "/v1/caption", json={"image": data_url(), "stream": stream}))
        await waiting.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    api.run(cancelled())
    assert api.captioner.cancelled == 1
    assert api.captioner.closed == int(stream)


def test_each_request_has_a_log_record_that_json_can_hold(api, data_url, log):
    api.post(json={"image": data_url()}, headers={"x-request-id": "one"})
    api.post("/v1/captions", json={"images": [data_url(), data_url()]})
    api.post("/nowhere")
    first, several, nowhere = log()
    assert (first.request_id, first.endpoint, first.status, first.model) == ("one", "/v1/caption", 200, "tiny-rbm")
    assert (first.version, first.num_images, first.cache, first.key) == ("e1-r1-d1", 1, "miss", None)
    assert set(first.seconds) == {"prepare", "encode", "refine", "decode"}
    assert (several.num_images, several.cache) == (2, "hit")
    assert (nowhere.endpoint, nowhere.status) == ("none", 404)
    json.dumps([first.seconds, first.total_seconds])


KEY = "anna-key-0123456789"


@pytest.fixture
def guarded(make, monkeypatch):
    monkeypatch.setenv("RAYCAP_KEYS", f"anna: {KEY}")
    return make(
        keys=KeyRing(Keys(environment="RAYCAP_KEYS")),
        rate_limiter=RateLimiter(RateLimit(requests_per_minute=1, burst=3)),
    )


def test_every_route_of_v1_asks_for_a_key_and_no_other_does(guarded):
    for method, path in (
        ("POST", "/v1/caption"),
        ("POST", "/v1/captions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/tiny"),
    ):
        for headers in ({}, {"authorization": "Bearer wrong"}):
            answer = guarded.run(guarded.send(method, path, headers=headers))
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert guarded.get(path).status_code == 200, path


def test_a_request_of_several_images_takes_as_many_tokens(guarded, data_url, log):
    headers = {"authorization": f"Bearer {KEY}"}
    assert guarded.get("/v1/models", headers=headers).status_code == 200
    two = guarded.post("/v1/captions", json={"images": [data_url()] * 2}, headers=headers)
    one, refused = (guarded.post(json={"image": data_url()}, headers=headers) for _ in range(2))
    assert [two.status_code, one.status_code, refused.status_code] == [200, 200, 429]
    assert int(refused.headers["retry-after"]) >= 1
    assert {record.key for record in log()} == {"anna"}


def test_without_keys_each_address_has_its_own_rate(make, data_url):
    api = make(rate_limiter=RateLimiter(RateLimit(requests_per_minute=1, burst=1)))

    async def post(address):
        transport = httpx.ASGITransport(api.app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.post("/v1/caption", json={"image": data_url()})).status_code

    assert [api.run(post(address)) for address in ("8.8.8.8", "8.8.8.8", "9.9.9.9")] == [200, 429, 200]
