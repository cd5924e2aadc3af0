"""The HTTP interface by itself, around a function that stands in for the stages."""

import asyncio
import base64
import io

import httpx
import pytest
from PIL import Image

from raycap.serve.config import Limits
from raycap.serve.ingress import make_api
from raycap.serve.requests import ModelInfo

IMAGE_SIZE = 8
LIMITS = Limits(max_image_bytes=4000, max_pixels=2000)


def png(width=20, height=10, colour="teal"):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def in_json(data):
    return {"image": base64.b64encode(data).decode()}


@pytest.fixture
def post():
    """Posts to /v1/caption; the caption is the shape and first pixel that would go to the encoder."""

    async def caption(pixels):
        if pixels[0, 0].tolist() == [255, 0, 0]:
            raise RuntimeError("secret detail")
        return f"{pixels.shape} {pixels[0, 0].tolist()}"

    api = make_api(caption, ModelInfo(id="tiny", refined=False, image_size=IMAGE_SIZE), LIMITS)

    def request(path="/v1/caption", method="POST", **options):
        async def run():
            transport = httpx.ASGITransport(api, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(run())

    return request


def test_multipart_json_and_data_url_give_the_same_caption(post):
    data = png()
    text = base64.b64encode(data).decode()
    broken_into_lines = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    answers = [
        post(files={"file": ("photo.png", data)}),
        post(json=in_json(data)),
        post(json={"image": f"data:image/png;base64,{text}"}),
        post(json={"image": broken_into_lines}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [answer.json() for answer in answers] == [{"caption": "(8, 8, 3) [0, 128, 128]", "model": "tiny"}] * 4


MULTIPART = {"content-type": "multipart/form-data; boundary=x"}
JSON = {"content-type": "application/json"}

BAD_REQUESTS = {
    "not JSON": ({"content": b"{nonsense", "headers": JSON}, 400, None),
    "not UTF-8": ({"content": b'{"image": "\xff"}', "headers": JSON}, 400, None),
    "empty JSON body": ({"content": b"", "headers": JSON}, 400, None),
    "a list": ({"json": [1]}, 400, None),
    "no image": ({"json": {}}, 400, "image"),
    "a number": ({"json": {"image": 5}}, 400, "image"),
    "an empty image": ({"json": {"image": ""}}, 400, "image"),
    "another key": ({"json": in_json(png()) | {"beams": 3}}, 400, "beams"),
    "not base64": ({"json": {"image": "@@@@"}}, 400, "image"),
    "cut base64": ({"json": {"image": "AAAAA"}}, 400, "image"),
    "not ASCII": ({"json": {"image": "é"}}, 400, "image"),
    "a data URL without base64": ({"json": {"image": "data:image/png,abc"}}, 400, "image"),
    "another multipart field": ({"files": {"photo": ("a.png", png())}}, 400, "file"),
    "two files": ({"files": [("file", ("a.png", png())), ("file", ("b.png", png()))]}, 400, None),
    "a text field beside the file": ({"files": {"file": ("a.png", png())}, "data": {"beams": "3"}}, 400, None),
    "an empty file": ({"files": {"file": ("a.png", b"")}}, 400, "file"),
    "no boundary": ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, None),
    "a broken multipart body": ({"content": b"nonsense", "headers": MULTIPART}, 400, None),
    "a cut multipart body": ({"content": b"--x\r\nContent-Disposition: form-da", "headers": MULTIPART}, 400, "file"),
    "a bare image": ({"content": png(), "headers": {"content-type": "image/png"}}, 415, "content-type"),
    "no content type": ({"content": png()}, 415, "content-type"),
    "a web form": ({"data": {"image": "abc"}}, 415, "content-type"),
    "no image file": ({"json": in_json(b"hello")}, 422, "image"),
    "a cut image file": ({"files": {"file": ("a.png", png()[:50])}}, 422, "file"),
    "too many pixels": ({"files": {"file": ("a.png", png(100, 21))}}, 413, "file"),
    "too many bytes": ({"files": {"file": ("a.png", bytes(4001))}}, 413, "file"),
    "too many bytes in JSON": ({"json": in_json(bytes(4001))}, 413, "image"),
    "a body far too long": ({"content": b" " * 100_000, "headers": JSON}, 413, "image"),
}


@pytest.mark.parametrize(("options", "status", "field"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_bad_input_is_answered_with_its_status_and_one_line(post, options, status, field):
    answer = post(**options)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (status, field), error
    assert set(error) == {"type", "message", "field"}
    assert "\n" not in error["message"]
    assert ";" in error["message"], "a remedy follows what is wrong"


def test_a_long_body_without_its_length_is_left_unread(post):
    num_sent = 0

    async def endless():
        nonlocal num_sent
        while True:
            num_sent += 1
            yield bytes(1000)

    assert post(content=endless(), headers=JSON).status_code == 413
    assert num_sent < 100


def test_an_unknown_path_or_method_is_answered_in_the_same_form(post):
    assert post("/v2/caption").json()["error"]["type"] == "not_found"
    wrong_method = post(method="GET")
    assert (wrong_method.status_code, wrong_method.json()["error"]["type"]) == (405, "method_not_allowed")


def test_our_own_failure_is_a_500_that_tells_no_secrets(post):
    answer = post(json=in_json(png(colour="red")))
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "internal_error")
    assert "secret" not in answer.text


def test_health_models_and_documentation_are_there(post):
    assert post("/healthz", "GET").json() == {"status": "ok"}
    assert post("/v1/models", "GET").json() == {"models": [{"id": "tiny", "refined": False, "image_size": 8}]}
    body = post("/openapi.json", "GET").json()["paths"]["/v1/caption"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
