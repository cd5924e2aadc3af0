"""OpenAI's own client, over a socket, against the interface."""

import asyncio
import base64
import hashlib
import json
import threading
import time

import httpx
import numpy as np
import openai
import pytest
import uvicorn

from raycap.models.decoding import Decoding
from raycap.serve.api.app import make_api
from raycap.serve.api.service import Service
from raycap.serve.stages.pipeline import Captioned, Embedded


@pytest.fixture
def url(captioner, served, limits):
    """Of the interface, served until the test ends."""
    service = Service(captioner, limits)
    service.served = served
    server = uvicorn.Server(uvicorn.Config(make_api(service), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def messages(data_url):
    text = {"type": "text", "text": "What is in this picture?"}
    return [{"role": "user", "content": [text, {"type": "image_url", "image_url": {"url": data_url()}}]}]


def test_a_chat_gives_the_caption(client, url, messages, data_url):
    caption = httpx.post(f"{url}/v1/caption", json={"image": data_url()}).json()["caption"]
    answer = client.chat.completions.create(model="tiny-rbm", messages=messages)
    assert answer.choices[0].message.content == caption
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens == answer.usage.total_tokens > 0
    assert (answer.object, answer.model) == ("chat.completion", "tiny-rbm")


def test_a_chat_streams_the_same_words(client, messages):
    whole = client.chat.completions.create(model="tiny", messages=messages).choices[0]
    stream = client.chat.completions.create(
        model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}, max_tokens=7
    )
    *chunks, usage = list(stream)
    version = client.chat.completions.create(model="tiny", messages=messages).system_fingerprint
    assert version
    assert usage.system_fingerprint == chunks[-1].system_fingerprint == version
    choices = [chunk.choices[0] for chunk in chunks]
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices)
    assert [choice.finish_reason for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1].finish_reason in ("stop", "length")
    assert (usage.choices, usage.usage.completion_tokens > 0) == ([], True)
    same = client.chat.completions.create(model="tiny", messages=messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in same) == whole.message.content


def test_several_choices_come_whole_and_streamed(client, messages):
    options = {"model": "tiny", "messages": messages, "n": 2, "temperature": 1.0, "seed": 1}
    whole = client.chat.completions.create(**options)
    assert [choice.index for choice in whole.choices] == [0, 1]
    texts = ["", ""]
    for chunk in client.chat.completions.create(**options, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


@pytest.fixture
def two_of_three(captioner, monkeypatch):
    """What a search may answer that was asked for three captions."""
    answer = Captioned(["a red", "a star"], [-2.0, -1.0], 5, [False, True], "v1", {})
    monkeypatch.setattr(captioner, "_caption", lambda task: answer)
    return {"model": "tiny", "n": 3, "temperature": 1.0}


def test_each_choice_has_its_own_end_and_only_those_found_are_streamed(client, two_of_three, messages):
    expected = [(0, "a red", "length"), (1, "a star", "stop")]
    whole = client.chat.completions.create(messages=messages, **two_of_three)
    assert [(choice.index, choice.message.content, choice.finish_reason) for choice in whole.choices] == expected
    texts, ends = {}, {}
    for chunk in client.chat.completions.create(messages=messages, stream=True, **two_of_three):
        (choice,) = chunk.choices
        assert choice.index not in ends
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        if choice.finish_reason is not None:
            ends[choice.index] = choice.finish_reason
    assert [(index, texts[index], ends[index]) for index in texts] == expected


def test_each_caption_has_its_own_end(url, two_of_three, data_url):
    body = {"image": data_url(), "num_captions": 3, "temperature": 1.0}
    answer = httpx.post(f"{url}/v1/caption", json=body).json()
    assert [caption["finish_reason"] for caption in answer["captions"]] == ["length", "stop"]
    assert answer["finish_reason"] == "length"


def test_openais_fields_mean_what_they_say(client, captioner, messages):
    client.chat.completions.create(
        model="tiny-rbm",
        messages=[{"role": "system", "content": "Be brief."}, *messages, {"role": "assistant", "content": "a red"}],
        max_completion_tokens=6,
        temperature=0.5,
        top_p=0.9,
        seed=4,
        n=2,
        presence_penalty=0,
        response_format={"type": "text"},
        user="someone",
        extra_body={"gate": 0.75, "passes": 2},
    )
    task = captioner.tasks[-1]
    expected = Decoding(max_new_tokens=6, do_sample=True, temperature=0.5, top_p=0.9, seed=4, prompt="a red")
    assert (task.decoding, task.num_captions, task.refinement.gate, task.refinement.passes) == (expected, 2, 0.75, 2)
    client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=5)
    assert captioner.tasks[-1].decoding == Decoding(max_new_tokens=5)
    client.chat.completions.create(model="tiny", messages=messages, extra_body={"num_beams": 3})
    assert captioner.tasks[-1].decoding == Decoding(max_new_tokens=8, num_beams=3)


def test_what_clients_send_by_habit_is_taken(client, captioner, limits, messages, png, data_url):
    """Lengths made for other models, settings of a service, and a conversation's images before the last one."""
    before = [{"role": "user", "content": [image(data_url(png(colour="red")))]}, {"role": "assistant", "content": "x"}]
    follow_up = [{"role": "assistant", "content": "a star"}, {"role": "user", "content": "And what else?"}]
    client.chat.completions.create(
        model="tiny",
        messages=[*before, *messages, *follow_up],
        max_completion_tokens=1000,
        stop=["\n", "\n\n"],
        seed=-1,
        metadata={"trace": "7"},
        store=True,
        service_tier="flex",
        extra_body={"reasoning_effort": "low", "verbosity": "low", "prompt_cache_retention": "24h"},
    )
    task = captioner.tasks[-1]
    assert task.digest == hashlib.sha256(png()).digest()
    assert task.decoding.max_new_tokens == limits.max_new_tokens
    assert task.decoding.seed == 2**63 - 1
    client.chat.completions.create(model="tiny", messages=messages, n=2)
    assert (captioner.tasks[-1].num_captions, captioner.tasks[-1].decoding.do_sample) == (2, True)
    client.chat.completions.create(model="tiny", messages=messages, n=2, extra_body={"num_beams": 2})
    assert not captioner.tasks[-1].decoding.do_sample


WRONG = {
    "a tool": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    "a penalty": ({"presence_penalty": 0.5}, "presence_penalty"),
    "log-probabilities": ({"logprobs": True}, "logprobs"),
    "JSON": ({"response_format": {"type": "json_object"}}, "response_format"),
    "an end": ({"stop": ["."]}, "stop"),
    "an unknown field": ({"extra_body": {"gates": 1}}, "gates"),
    "two lengths": ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    "n beyond a greedy search": ({"n": 2, "temperature": 0}, "n"),
    "n beyond the limit": ({"n": 9}, "n"),
    "usage of no stream": ({"stream_options": {"include_usage": True}}, "stream_options"),
}


@pytest.mark.parametrize(("options", "field"), WRONG.values(), ids=WRONG)
def test_a_field_that_does_not_apply_is_openais_bad_request(client, messages, options, field):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=messages, **options)
    assert (refused.value.param, refused.value.code) == (field, refused.value.type)
    assert ";" in refused.value.message


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


MESSAGES = {
    "no image": (lambda url: [{"role": "user", "content": "hello"}], "messages"),
    "two images": (lambda url: [{"role": "user", "content": [image(url), image(url)]}], "messages"),
    "an assistant's image": (
        lambda url: [{"role": "assistant", "content": [image(url)]}],
        "messages.0.content.0",
    ),
    "sound": (lambda url: [{"role": "user", "content": [{"type": "input_audio"}]}], "messages.0.content.0"),
    "no URL": (lambda url: [{"role": "user", "content": [{"type": "image_url"}]}], "messages.0.content.0"),
    "another role": (lambda url: [{"role": "tool", "content": "x"}], "messages.0.role"),
    "no content": (lambda url: [{"role": "user"}], "messages.0.content"),
    "none": (lambda url: [], "messages"),
    "no list": (lambda url: "hello", "messages"),
}


@pytest.mark.parametrize(("messages", "field"), MESSAGES.values(), ids=MESSAGES)
def test_messages_that_do_not_show_one_image_are_refused(api, data_url, messages, field):
    answer = api.post("/v1/chat/completions", json={"model": "tiny", "messages": messages(data_url())})
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, field), answer.text


def test_a_bad_image_and_an_unknown_model_are_openais_errors(client, messages, data_url):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt", messages=messages)
    bad = [{"role": "user", "content": [image(data_url(b"hello"))]}]
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.create(model="tiny", messages=bad)
    assert refused.value.param == "messages.0.content.0.image_url"


def test_a_stream_that_the_client_leaves_is_closed_in_the_captioner(client, captioner, messages, hold):
    hold(at_step=2)
    stream = client.chat.completions.create(model="tiny", messages=messages, stream=True)
    next(iter(stream))
    assert captioner.closed == 0
    stream.close()
    deadline = time.monotonic() + 5
    while captioner.closed == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (captioner.closed, captioner.cancelled) == (1, 1)


def test_a_client_that_leaves_while_waiting_cancels_its_caption(url, captioner, data_url, hold):
    hold()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/caption", json={"image": data_url()}, timeout=0.5)
    deadline = time.monotonic() + 5
    while captioner.cancelled == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert captioner.cancelled == 1


def test_embeddings_by_openais_client_are_the_stages_numbers(client, captioner, data_url):
    answer = client.embeddings.create(model="tiny-rbm", input=data_url())
    _, after = captioner._embed(captioner.tasks[-1])
    expected = after[0].half().float().mean(0).numpy()
    assert np.allclose(answer.data[0].embedding, expected, atol=1e-6)
    as_floats = client.embeddings.create(model="tiny-rbm", input=[data_url()], encoding_format="float")
    assert np.allclose(as_floats.data[0].embedding, expected, atol=1e-6)
    assert answer.usage.total_tokens == 17


def test_models_by_openais_client(client):
    assert [model.id for model in client.models.list()] == ["tiny-rbm", "tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def embed(api, **body):
    answer = api.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def test_embeddings_say_stage_shape_and_type(api, captioner, png, data_url):
    images = [data_url(), data_url(png(colour="red"))]
    entries = embed(api, input=images, refined="both", tokens="all", dtype="float16")
    assert [(entry["index"], entry["stage"]) for entry in entries] == [
        (0, "encoder"),
        (0, "refiner"),
        (1, "encoder"),
        (1, "refiner"),
    ]
    # The images are prepared at once: either may be the first that the stages are asked for.
    (first,) = (task for task in captioner.tasks if task.digest == hashlib.sha256(png()).digest())
    before, after = captioner._embed(first)
    for entry, embeds in zip(entries, (before, after), strict=False):
        assert (entry["shape"], entry["dtype"]) == ([17, 32], "float16")
        numbers = np.frombuffer(base64.b64decode(entry["embedding"]), "<f2").reshape(entry["shape"])
        assert np.array_equal(numbers, embeds[0].half().numpy())
    first_token = embed(api, input=images[0], tokens="cls", refined=False, encoding_format="float")[0]
    assert first_token["embedding"] == before[0, 0].half().float().tolist()


def test_more_numbers_than_allowed_come_in_base64_only(make, limits, data_url):
    api = make(limits=limits.model_copy(update={"max_float_numbers": 17 * 32}))
    allowed = {"input": data_url(), "tokens": "all", "encoding_format": "float"}
    (entry,) = embed(api, **allowed)
    assert len(entry["embedding"]) == 17 * 32
    for more in ({"refined": "both"}, {"input": [data_url()] * 2}):
        api.captioner.tasks.clear()
        answer = api.post("/v1/embeddings", json=allowed | more)
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, "encoding_format")
        assert "; choose base64" in answer.json()["error"]["message"]
        assert api.captioner.tasks == [], "refused before a stage is asked"
        assert len(embed(api, **allowed | more | {"encoding_format": "base64"})) == 2
        assert embed(api, **allowed | more | {"tokens": "mean"})


def test_a_large_answer_holds_up_no_other_request(api, data_url, monkeypatch):
    async def embeddings(task):
        embeds = np.random.default_rng(0).random((577, 768)).astype(np.float16)
        return Embedded(embeds, embeds, "e1", {})

    monkeypatch.setattr(api.captioner, "embed", embeddings)
    body = {"input": data_url(), "refined": "both", "tokens": "all", "encoding_format": "float"}

    async def longest_wait():
        began = last = time.perf_counter()
        longest = 0.0
        asking = asyncio.create_task(api.send("POST", "/v1/embeddings", json=body))
        while not asking.done():
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
        assert (await asking).status_code == 200
        return longest / (last - began)

    assert api.run(longest_wait()) < 0.5


def test_embeddings_without_rbm_are_the_encoders(api, data_url):
    assert embed(api, input=data_url(), model="tiny")[0]["stage"] == "encoder"


BAD_EMBEDDINGS = {
    "refined without RBM": (lambda url: {"input": url, "model": "tiny", "refined": True}, "refined"),
    "too many images": (lambda url: {"input": [url] * 4}, "input"),
    "no image": (lambda url: {"input": []}, "input"),
    "tokens of text": (lambda url: {"input": [1, 2]}, "input"),
    "a text": (lambda url: {"input": "a red circle"}, "input"),
    "another format": (lambda url: {"input": url, "encoding_format": "int8"}, "encoding_format"),
    "too many passes": (lambda url: {"input": url, "passes": 9}, "passes"),
    "an unknown field": (lambda url: {"input": url, "dimensions": 9}, "dimensions"),
}


@pytest.mark.parametrize(("body", "field"), BAD_EMBEDDINGS.values(), ids=BAD_EMBEDDINGS)
def test_bad_requests_for_embeddings_are_refused(api, data_url, body, field):
    answer = api.post("/v1/embeddings", json=body(data_url()))
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, field), answer.text


def test_a_bad_image_fails_all_embeddings(api, data_url):
    answer = api.post("/v1/embeddings", json={"input": [data_url(), data_url(b"hello")]})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "input.1")


def test_a_failed_chat_stream_ends_with_an_error_event(api, data_url):
    async def fail_later(step):
        if step == 1:
            raise RuntimeError("secret")

    api.captioner.before = fail_later
    messages = [{"role": "user", "content": [image(data_url())]}]
    answer = api.post("/v1/chat/completions", json={"model": "tiny", "messages": messages, "stream": True})
    assert (answer.status_code, json.loads(answer.text)["error"]["type"]) == (500, "internal_error")
