"""/v1/caption and /v1/captions: answers, headers, several images, the cache, streams."""

import asyncio
import base64
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from raycap.data.images import decode_image
from raycap.models.decoding import Decoding
from raycap.models.refinement import Refinement
from raycap.models.written_caption import Attention
from raycap.predictor import CaptionPredictor
from raycap.serve.api.attention import draw_attention
from raycap.serve.errors import Overloaded


def test_the_caption_is_the_predictors(api, models, png):
    predictor = CaptionPredictor.from_pretrained(str(models / "demo/blip/model"), str(models / "demo/rbm/model"))
    decoding = Decoding(max_new_tokens=8)
    expected = predictor.caption([decode_image(png())], decoding, Refinement(gate=0.5))[0]
    answer = api.post(files={"file": png()})
    body = answer.json()
    assert body["caption"] == body["captions"][0]["text"] == expected
    assert body["captions"][0]["log_probability"] < 0
    assert (body["model"], body["model_version"], body["attention"]) == ("tiny-rbm", "e1-r1-d1", None)
    assert body["refinement"] == {"gate": 0.5, "passes": 1}
    assert body["finish_reason"] in ("stop", "length")
    assert body["usage"]["completion_tokens"] > 0
    assert body["id"] == answer.headers["x-request-id"]
    assert answer.headers["x-raycap-model"] == "tiny-rbm"
    assert answer.headers["x-raycap-model-version"] == "e1-r1-d1"
    stages = [stage.partition(";dur=")[0] for stage in answer.headers["server-timing"].split(", ")]
    assert stages == ["prepare", "encode", "refine", "decode"]


def test_options_reach_the_captioner(api, data_url):
    options = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "num_captions": 2, "gate": 1.0, "passes": 2, "prompt": "a"}
    api.post(json={"image": data_url()} | options)
    task = api.captioner.tasks[0]
    expected = Decoding(max_new_tokens=8, do_sample=True, temperature=0.5, top_p=0.9, seed=3, prompt="a")
    assert (task.decoding, task.refinement, task.num_captions) == (expected, Refinement(gate=1, passes=2), 2)
    assert task.pixels.shape == (32, 32, 3)
    assert len(task.digest) == 32


def picture(url):
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_explain_shows_a_picture_for_each_word_and_one_of_all(api, data_url):
    body = api.post(json={"image": data_url(), "explain": True}).json()
    attention = body["attention"]
    assert attention["words"] == body["caption"].split()
    assert [picture(url).size for url in attention["maps"]] == [(32, 32)] * len(attention["words"])
    assert picture(attention["figure"]).width > 32


def test_pictures_are_drawn_where_no_other_work_waits_for_them(api, data_url, monkeypatch):
    drawing = []

    def draw(*args):
        drawing.append(threading.current_thread().name)
        return draw_attention(*args)

    monkeypatch.setattr("raycap.serve.api.captions.draw_attention", draw)
    (result,) = api.post("/v1/captions", json={"images": [data_url()], "explain": True}).json()["results"]
    assert result["attention"]["maps"]
    assert [name.startswith("raycap-images") for name in drawing] == [True]


def test_pictures_of_several_images_are_refused_with_a_remedy(api, png):
    files = [("files", ("a", png()))] * 2
    answer = api.post("/v1/captions", files=files, data={"explain": "true"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "explain")
    assert "/v1/caption" in answer.json()["error"]["message"]
    assert api.captioner.tasks == []


def test_the_same_request_again_is_answered_from_the_cache(api, png):
    first, again = api.post(files={"file": png()}), api.post(files={"file": png()})
    assert [first.headers["x-raycap-cache"], again.headers["x-raycap-cache"]] == ["miss", "hit"]
    assert len(api.captioner.tasks) == 1
    assert again.json()["timing_ms"] == {}
    own = {"id": None, "timing_ms": None}
    assert first.json() | own == again.json() | own
    assert again.headers["x-raycap-model-version"] == "e1-r1-d1"


@pytest.mark.parametrize("other", [{"gate": 0.1}, {"model": "tiny"}, {"max_new_tokens": 3}, {"temperature": 1.0}])
def test_another_setting_is_another_answer(api, data_url, other):
    api.post(json={"image": data_url()})
    assert api.post(json={"image": data_url()} | other).headers["x-raycap-cache"] == "miss"


def test_explain_is_never_answered_from_the_cache(api, data_url):
    for _ in range(2):
        answer = api.post(json={"image": data_url(), "explain": True})
        assert answer.headers["x-raycap-cache"] == "miss"
        assert answer.json()["attention"]


def test_several_images_are_answered_in_order_and_a_bad_one_in_its_place(api, png, data_url):
    good = [png(), png(colour="red")]
    single = [api.post(files={"file": file}).json()["caption"] for file in good]
    images = [data_url(good[0]), data_url(b"no image"), data_url(good[1])]
    answers = [
        api.post("/v1/captions", json={"images": images}),
        api.post("/v1/captions", files=[("files", ("a", file)) for file in (good[0], b"no image", good[1])]),
    ]
    for answer, field in zip(answers, ("images.1", "files.1"), strict=True):
        results = answer.json()["results"]
        assert [results[0]["caption"], results[2]["caption"]] == single
        assert (results[1]["error"]["type"], results[1]["error"]["field"]) == ("undecodable_image", field)
        assert len({results[0]["id"], results[2]["id"]}) == 2


def test_several_images_are_captioned_at_once(api, png):
    together = asyncio.Barrier(3)
    api.captioner.before = lambda step: asyncio.wait_for(together.wait(), 5)
    files = [("files", ("a", png(colour=colour))) for colour in ("red", "green", "blue")]
    assert all("caption" in result for result in api.post("/v1/captions", files=files).json()["results"])


BAD_SEVERAL = {
    "a bad option": (lambda url: {"images": [url], "num_beams": 0}, "num_beams"),
    "a contradiction": (lambda url: {"images": [url], "num_beams": 2, "temperature": 1.0}, "temperature"),
    "a stream": (lambda url: {"images": [url], "stream": True}, "stream"),
    "pictures of several": (lambda url: {"images": [url] * 2, "explain": True}, "explain"),
    "no image": (lambda url: {"images": []}, "images"),
    "too many images": (lambda url: {"images": [url] * 4}, "images"),
}


@pytest.mark.parametrize(("body", "field"), BAD_SEVERAL.values(), ids=BAD_SEVERAL)
def test_wrong_options_fail_the_whole_request(api, data_url, body, field):
    answer = api.post("/v1/captions", json=body(data_url()))
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)


def test_too_many_files_and_too_large_a_body_are_refused(api, png):
    many = api.post("/v1/captions", files=[("files", ("a", png()))] * 4)
    assert (many.status_code, many.json()["error"]["field"]) == (400, "files")
    assert api.post("/v1/captions", files=[("files", ("a", bytes(50_000)))]).status_code == 413


def test_overload_fails_the_whole_request_with_a_time_to_wait(api, data_url):
    async def overloaded(step):
        raise Overloaded(1.5)

    api.captioner.before = overloaded
    for path, body in (("/v1/captions", {"images": [data_url()]}), ("/v1/caption", {"image": data_url()})):
        answer = api.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "overloaded")
        assert answer.headers["retry-after"] == "2"


def events(answer):
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]


def test_a_stream_gives_pieces_then_the_answer_then_done(make, data_url):
    api = make(cache_bytes=0)
    whole = api.post(json={"image": data_url()}).json()
    answer = api.post(json={"image": data_url(), "stream": True})
    *pieces, last, done = events(answer)
    assert "".join(json.loads(piece)["delta"] for piece in pieces) == whole["caption"]
    assert len(pieces) == len(whole["caption"].split())
    assert {**json.loads(last), "id": None} == {**whole, "id": None}
    assert done == "[DONE]"
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert api.captioner.closed == 1


def test_a_streamed_caption_from_cache_or_beams_comes_as_one_piece(api, data_url):
    beams = {"image": data_url(), "stream": True, "num_beams": 2}
    for expected in ("miss", "hit"):
        answer = api.post(json=beams)
        piece, last, _ = events(answer)
        assert json.loads(piece)["delta"] == json.loads(last)["caption"]
        assert answer.headers["x-raycap-cache"] == expected


def test_of_several_captions_only_the_answer_is_streamed(api, data_url):
    last, _ = events(api.post(json={"image": data_url(), "stream": True, "num_beams": 2, "num_captions": 2}))
    assert len(json.loads(last)["captions"]) == 2


def test_an_error_before_the_first_piece_has_its_own_status(api, data_url):
    async def overloaded(step):
        raise Overloaded(1)

    api.captioner.before = overloaded
    assert api.post(json={"image": data_url(), "stream": True}).status_code == 503
    assert api.captioner.closed == 1
    assert api.post(json={"image": data_url(b"no image"), "stream": True}).status_code == 422


def test_an_error_after_the_first_piece_is_the_last_event(api, data_url):
    async def fail_later(step):
        if step == 2:
            raise RuntimeError("secret")

    api.captioner.before = fail_later
    answer = api.post(json={"image": data_url(), "stream": True})
    assert answer.status_code == 200
    _, last = events(answer)
    name, _, data = last.partition("\n")
    assert name == "event: error"
    error = json.loads(data.removeprefix("data: "))["error"]
    assert (error["type"], error["request_id"]) == ("internal_error", answer.headers["x-request-id"])
    assert "secret" not in answer.text


def test_attention_is_drawn_brightest_where_the_decoder_looked():
    maps = np.zeros((1, 4, 4), np.float32)
    maps[0, 3, 0] = 0.5
    drawn = draw_attention(np.full((32, 32, 3), 100, np.uint8), Attention(["a"], maps))
    grey = np.asarray(picture(drawn.maps[0]).convert("L"))
    assert grey[31, 0] > 150 > grey[0, 31]


def test_what_only_the_decoder_can_judge_is_refused_under_the_option_s_name(api, data_url):
    for prompt, field in (("a " * 20, "max_new_tokens"), ("a " * 40, "prompt")):
        answer = api.post(json={"image": data_url(), "prompt": prompt, "max_new_tokens": 20})
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["field"]) == (400, "invalid_option", field)
        assert error["message"].startswith(field)
