"""An LSTM captioner beside a BLIP behind one HTTP interface: without Ray, and once as deployments of their own."""

import base64
import io
import json

import httpx
import pytest
import torch
from PIL import Image
from serve.local_cluster import LocalCluster, disaggregated, wait_until
from serve.loopback import serve_on_loopback
from serve.tiny_models import predict
from tiny import make_lstm_captioner

from raycap.checkpoint.lstm_captioner import load_lstm_captioner
from raycap.data.images import decode_image, resize_image
from raycap.models.decoding import Decoding
from raycap.models.lstm_decoding import LstmDecoding, write_captions
from raycap.serve.stages.weights import Routing

MAX_NEW_TOKENS = 9
SETTINGS = {"precision": "fp32", "decoding": {"max_new_tokens": MAX_NEW_TOKENS}}


def regions_of(directory, files):
    """(files, R, D) of each by itself, rounded as they are between stages."""
    encoder = load_lstm_captioner(directory).encoder
    pixels = [torch.from_numpy(resize_image(decode_image(file), encoder.image_size).copy()) for file in files]
    with torch.inference_mode():
        return torch.cat([encoder(image[None]) for image in pixels]).half().float()


def search(directory, files, **settings):
    """Texts of the model's own search."""
    _, decoder, vocabulary = load_lstm_captioner(directory)
    found = write_captions(decoder, regions_of(directory, files), LstmDecoding(max_words=MAX_NEW_TOKENS, **settings))
    return [[vocabulary.decode(caption.token_ids) for caption in of_image] for of_image in found]


@pytest.fixture(scope="module")
def url(models, lstm):
    routing = {
        "lstm": SETTINGS | {"model": lstm},
        "blip": SETTINGS | {"model": str(models / "demo/blip/model"), "rbm": str(models / "demo/rbm/model")},
    }
    with serve_on_loopback(Routing.model_validate({"models": routing})) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def caption(client, file, model="lstm", **options):
    return client.post("/v1/caption", files={"file": file}, data={"model": model} | options)


def data_url(file):
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def chat(client, file, *more, **options):
    content = [{"type": "image_url", "image_url": {"url": data_url(file)}}]
    messages = [{"role": "user", "content": content}, *more]
    return client.post("/v1/chat/completions", json={"model": "lstm", "messages": messages, **options})


def test_all_routes_give_the_search_s_captions(client, lstm, files):
    greedy = [captions[0] for captions in search(lstm, files)]
    answers = [caption(client, file).json() for file in files[:4]]
    assert [answer["caption"] for answer in answers] == greedy[:4]
    assert len(set(greedy[:4])) > 1, "the images must be told apart for this to show anything"
    several = [("files", (f"{index}.png", file)) for index, file in enumerate(files[4:8])]
    results = client.post("/v1/captions", files=several, data={"model": "lstm"}).json()["results"]
    assert [result["caption"] for result in results] == greedy[4:8]
    assert chat(client, files[8]).json()["choices"][0]["message"]["content"] == greedy[8]
    again = caption(client, files[0])
    assert again.headers["X-Raycap-Cache"] == "hit"
    assert again.json()["caption"] == greedy[0]
    assert again.json()["refinement"] == {"gate": 0.0, "passes": 1}


def test_beams_and_draws_are_the_search_s(client, lstm, files):
    (beams,) = search(lstm, files[:1], num_beams=4, num_captions=3)
    answer = caption(client, files[0], num_beams="4", num_captions="3").json()
    assert [each["text"] for each in answer["captions"]] == beams
    sampling = {"temperature": 1.5, "top_p": 0.9, "seed": 5}
    (drawn,) = search(lstm, files[:1], do_sample=True, num_captions=3, **sampling)
    asked = {name: str(value) for name, value in sampling.items()}
    answer = caption(client, files[0], num_captions="3", **asked).json()
    assert sorted(each["text"] for each in answer["captions"]) == sorted(drawn)


def test_a_stream_sends_word_by_word(client, lstm, files):
    ((expected,),) = search(lstm, files[:1])
    # A caption that is known would come as one.
    with client.stream(
        "POST", "/v1/caption", files={"file": files[0]}, data={"model": "lstm", "stream": "true", "explain": "true"}
    ) as stream:
        events = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    *deltas, whole = map(json.loads, events)
    assert "".join(delta["delta"] for delta in deltas) == whole["caption"] == expected
    assert len(deltas) == len(expected.split()) > 1


def test_each_word_has_a_map_over_the_image(client, files):
    answer = caption(client, files[1], explain="true").json()
    attention = answer["attention"]
    assert attention["words"] == answer["caption"].split()
    assert len(attention["maps"]) == len(attention["words"]) > 0
    pictures = [base64.b64decode(png.partition(",")[2]) for png in (*attention["maps"], attention["figure"])]
    assert all(Image.open(io.BytesIO(picture)).format == "PNG" for picture in pictures)
    assert Image.open(io.BytesIO(pictures[0])).size == (32, 32)


def test_the_models_say_their_kind_and_both_answer(client, models, files):
    listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert {name: (model["kind"], model["refined"]) for name, model in listed.items()} == {
        "lstm": ("lstm_captioner", False),
        "blip": ("blip", True),
    }
    assert client.get("/readyz").json() == {"status": "ready"}
    said = [caption(client, file, "blip").json()["caption"] for file in files[:4]]
    decoding = Decoding(max_new_tokens=MAX_NEW_TOKENS)
    assert said == predict(models, files[:4], str(models / "demo/rbm/model"), decoding)


def test_embeddings_are_the_regions(client, lstm, files):
    answer = client.post("/v1/embeddings", json={"model": "lstm", "input": data_url(files[0]), "tokens": "all"}).json()
    (entry,) = answer["data"]
    assert (entry["stage"], entry["shape"]) == ("encoder", [9, 12])
    numbers = torch.frombuffer(bytearray(base64.b64decode(entry["embedding"])), dtype=torch.float32).view(9, 12)
    assert torch.allclose(numbers, regions_of(lstm, files[:1])[0], atol=1e-3)


def test_what_an_lstm_captioner_cannot_do_is_a_clear_400(client, files):
    def refused(answer, field, message):
        error = answer.json()["error"]
        assert (answer.status_code, error["field"]) == (400, field)
        assert message in error["message"]

    refused(caption(client, files[0], gate="0.5"), "gate", "model lstm has no RBM")
    refused(caption(client, files[0], passes="2"), "passes", "model lstm has no RBM")
    refused(caption(client, files[0], prompt="a red"), "prompt", "is an LSTM captioner and continues no text")
    prompted = chat(client, files[0], {"role": "assistant", "content": "a red"})
    refused(prompted, "messages", "is an LSTM captioner and continues no text")
    image = {"model": "lstm", "input": data_url(files[0])}
    refused(client.post("/v1/embeddings", json=image | {"refined": True}), "refined", "has no RBM")
    refused(client.post("/v1/embeddings", json=image | {"tokens": "cls"}), "tokens", "no class token")
    assert caption(client, files[0], gate="0", passes="1", prompt="").status_code == 200, "what is neutral is no error"


@pytest.mark.integration
def test_regions_and_decoder_apart_serve_both_kinds_and_change_to_other_weights(models, lstm, files, tmp_path):
    other = make_lstm_captioner(tmp_path / "other", seed=1)
    greedy = [captions[0] for captions in search(lstm, files)]
    of_other = [captions[0] for captions in search(other, files)]
    assert greedy != of_other, "the models must differ for this to show anything"
    blip = SETTINGS | {"model": str(models / "demo/blip/model"), "traffic": 0}
    both = {"lstm": SETTINGS | {"model": lstm}, "blip": blip}
    application = disaggregated({}, refiner=None, encoder={"max_models": 3}, decoder={"max_models": 3}, models=both)
    with LocalCluster() as cluster, httpx.Client(base_url=cluster.url, timeout=60) as client:
        cluster.deploy(application)
        cluster.wait_until_running(300)
        assert set(cluster.replicas()) == {"ingress", "encoder", "decoder"}
        assert client.get("/readyz").json() == {"status": "ready"}
        assert [client.post("/v1/caption", files={"file": file}).json()["caption"] for file in files] == greedy
        plain = predict(models, files[:4], None, Decoding(max_new_tokens=MAX_NEW_TOKENS))
        assert [caption(client, file, "blip").json()["caption"] for file in files[:4]] == plain
        deltas = caption(client, files[0], stream="true").text
        assert json.dumps({"delta": greedy[0].split()[0]}) in deltas.replace('":"', '": "')
        first = caption(client, files[0]).json()["model_version"]
        changed = {"lstm": SETTINGS | {"model": other}, "blip": blip}
        cluster.deploy(application | {"deployments": [{"name": "ingress", "user_config": {"models": changed}}]})
        wait_until(lambda: caption(client, files[0]).json()["model_version"] != first, 120, cluster.log)
        assert [caption(client, file).json()["caption"] for file in files] == of_other
