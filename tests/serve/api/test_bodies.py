"""How an image and its options come in, and what is refused."""

import asyncio
import base64
import time

import pytest

from raycap.serve.api import images

JSON = {"content-type": "application/json"}
MULTIPART = {"content-type": "multipart/form-data; boundary=x"}


def test_every_way_of_sending_an_image_gives_the_same_caption(api, png):
    data = png()
    text = base64.b64encode(data).decode()
    broken_into_lines = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    options = {"num_beams": 2, "num_captions": 2, "gate": 0.25, "max_new_tokens": 5}
    strings = {name: str(value) for name, value in options.items()}
    answers = [
        api.post(files={"file": ("photo.png", data)}, data=strings),
        api.post(json={"image": text} | options),
        api.post(json={"image": f"data:image/png;base64,{text}"} | options),
        api.post(json={"image": broken_into_lines} | options),
        api.post(content=data, headers={"content-type": "image/png"}, params=strings),
        api.post(content=data, headers={"content-type": "application/octet-stream"}, params=strings),
    ]
    assert [answer.status_code for answer in answers] == [200] * 6, [answer.text for answer in answers]
    assert len({str(answer.json()["captions"]) for answer in answers}) == 1
    assert len(answers[0].json()["captions"]) == 2
    assert answers[0].json()["refinement"] == {"gate": 0.25, "passes": 1}


def in_json(data, **options):
    return {"json": {"image": base64.b64encode(data).decode()} | options}


def in_form(data, field="file", **options):
    return {"files": {field: ("a.png", data)}, "data": options}


BAD_REQUESTS = {
    "not JSON": (lambda png: {"content": b"{nonsense", "headers": JSON}, 400, None),
    "not UTF-8": (lambda png: {"content": b'{"image": "\xff"}', "headers": JSON}, 400, None),
    "not a number": (lambda png: {"content": b'{"image": "a", "gate": NaN}', "headers": JSON}, 400, None),
    "an endless number": (lambda png: {"content": b'{"image": "a", "gate": 1e999}', "headers": JSON}, 400, "gate"),
    "an empty JSON body": (lambda png: {"content": b"", "headers": JSON}, 400, None),
    "a bomb of lists": (lambda png: {"content": b"[" * 20_000, "headers": JSON}, 400, None),
    "a bomb of objects": (lambda png: {"content": b'{"image":' * 2000, "headers": JSON}, 400, None),
    "a list": (lambda png: {"json": [1]}, 400, None),
    "no image": (lambda png: {"json": {}}, 400, "image"),
    "a number for an image": (lambda png: {"json": {"image": 5}}, 400, "image"),
    "an empty image": (lambda png: {"json": {"image": ""}}, 400, "image"),
    "an unknown key": (lambda png: in_json(png(), beams=3), 400, "beams"),
    "not base64": (lambda png: {"json": {"image": "@@@@"}}, 400, "image"),
    "cut base64": (lambda png: {"json": {"image": "AAAAA"}}, 400, "image"),
    "not ASCII": (lambda png: {"json": {"image": "é"}}, 400, "image"),
    "a data URL without base64": (lambda png: {"json": {"image": "data:image/png,abc"}}, 400, "image"),
    "a URL where none is fetched": (lambda png: {"json": {"image": "http://example.org/a.png"}}, 400, "image"),
    "options in a query beside JSON": (lambda png: in_json(png()) | {"params": {"gate": "1"}}, 400, "gate"),
    "another multipart field": (lambda png: in_form(png(), "photo"), 400, "file"),
    "a text for a file": (lambda png: {"files": {"file": (None, "abc")}}, 400, "file"),
    "two files": (lambda png: {"files": [("file", ("a.png", png())), ("file", ("b.png", png()))]}, 400, "file"),
    "a file for an option": (lambda png: {"files": [("file", ("a.png", png())), ("gate", ("b", b"1"))]}, 400, "gate"),
    "an unknown form field": (lambda png: in_form(png(), beams="3"), 400, "beams"),
    "an option twice in a form": (lambda png: in_form(png(), gate=["0", "1"]), 400, "gate"),
    "an option twice in a query": (
        lambda png: {"content": png(), "headers": {"content-type": "image/png"}, "params": {"gate": ["0", "1"]}},
        400,
        "gate",
    ),
    "an empty file": (lambda png: in_form(b""), 400, "file"),
    "an empty raw body": (lambda png: {"content": b"", "headers": {"content-type": "image/png"}}, 400, "body"),
    "no boundary": (lambda png: {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, None),
    "a broken multipart body": (lambda png: {"content": b"nonsense", "headers": MULTIPART}, 400, None),
    "a cut multipart body": (
        lambda png: {"content": b"--x\r\nContent-Disposition: form-da", "headers": MULTIPART},
        400,
        "file",
    ),
    "no content type": (lambda png: {"content": png()}, 415, "content-type"),
    "a web form": (lambda png: {"data": {"image": "abc"}}, 415, "content-type"),
    "a compressed body": (
        lambda png: {"content": b"x", "headers": JSON | {"content-encoding": "gzip"}},
        415,
        "content-encoding",
    ),
    "no image file": (lambda png: in_json(b"hello"), 422, "image"),
    "a cut image file": (lambda png: in_form(png()[:50]), 422, "file"),
    "too many pixels": (lambda png: in_form(png(100, 31)), 413, "file"),
    "too many bytes": (lambda png: in_form(bytes(4001)), 413, "file"),
    "too many bytes in JSON": (lambda png: in_json(bytes(4001)), 413, "image"),
    "too many raw bytes": (
        lambda png: {"content": bytes(4001), "headers": {"content-type": "image/png"}},
        413,
        "body",
    ),
    "a body far too long": (lambda png: {"content": b" " * 100_000, "headers": JSON}, 413, "image"),
}


@pytest.mark.parametrize(("options", "status", "field"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_bad_input_is_answered_with_its_status_and_one_line(api, png, options, status, field):
    answer = api.post(**options(png))
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (status, field), error
    assert set(error) == {"type", "message", "field", "request_id", "param", "code"}
    assert (error["param"], error["code"]) == (error["field"], error["type"])
    assert error["request_id"] == answer.headers["x-request-id"]
    assert "\n" not in error["message"]
    assert ";" in error["message"], "a remedy follows what is wrong"
    assert api.captioner.tasks == []


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=x", "image/png"])
def test_a_long_body_without_its_length_is_left_unread(api, content_type):
    num_sent = 0

    async def endless():
        nonlocal num_sent
        if "multipart" in content_type:
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        while True:
            num_sent += 1
            yield bytes(1000) if "multipart" in content_type else b" " * 1000

    assert api.post(content=endless(), headers={"content-type": content_type}).status_code == 413
    assert num_sent < 100


def test_a_length_too_large_is_refused_before_anything_is_read(api):
    async def unread():
        raise AssertionError("read")
        yield b""

    headers = {"content-type": "application/json", "content-length": "100000000"}
    assert api.post(content=unread(), headers=headers).status_code == 413


def test_an_image_by_url_comes_from_the_fetcher_under_the_image_limit(make, png):
    asked = []

    async def fetch(url, max_bytes, came):
        asked.append((url, max_bytes))
        return png()

    api = make(fetch=fetch)
    answer = api.post(json={"image": "https://example.org/a.png"})
    assert answer.status_code == 200
    assert asked == [("https://example.org/a.png", 4000)]
    assert "fetch;dur=" in answer.headers["server-timing"]


@pytest.mark.parametrize(("path", "field"), [("/v1/caption", "image"), ("/v1/embeddings", "input")])
def test_fetching_a_url_is_no_part_of_preparing_it(make, png, path, field):
    async def fetch(url, max_bytes, came):
        await asyncio.sleep(1)
        return png()

    answer = make(fetch=fetch).post(path, json={field: "http://example.org/a.png"})
    timing = [stage.partition(";dur=") for stage in answer.headers["server-timing"].split(", ")]
    seconds = {name: float(milliseconds) / 1000 for name, _, milliseconds in timing}
    assert seconds["fetch"] >= 0.9 > seconds["prepare"]


def test_an_image_that_takes_too_long_to_decode_is_refused(make, png, limits, monkeypatch):
    monkeypatch.setattr(images, "_load_pixels", lambda *_: time.sleep(0.5))
    api = make(limits=limits.model_copy(update={"decode_seconds": 0.05}))
    answer = api.post(files={"file": png()})
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "decode_timeout")
