"""The OpenAPI document tells the truth: requests made from it, right and wrong, against the interface on loopback."""

import base64
import json
import logging
from collections import Counter

import hostile_images
import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks
from serve.loopback import serve_on_loopback
from starlette.testclient import TestClient

from raycap.serve.api.app import make_api
from raycap.serve.api.service import Service
from raycap.serve.guard.limits import Limits
from raycap.serve.guard.rate_limit import RateLimit, RateLimiter
from raycap.serve.stages.weights import Routing

PNG = hostile_images.good("PNG")
IMAGES = [base64.b64encode(PNG).decode(), f"data:image/png;base64,{base64.b64encode(PNG).decode()}"]


@pytest.fixture(scope="module")
def url(models):
    """Two models; short captions, so that many are asked for in little time."""
    model = {"model": str(models / "demo/blip/model"), "precision": "fp32", "decoding": {"max_new_tokens": 6}}
    served = {"refined": model | {"rbm": str(models / "demo/rbm/model")}, "plain": model}
    logger = logging.getLogger("ray.serve")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    limits = Limits(max_new_tokens=20, max_beams=3)
    with serve_on_loopback(Routing.model_validate({"models": served}), limits=limits) as url:
        yield url
    logger.setLevel(level)


@pytest.fixture(scope="module")
def document(url):
    return httpx.get(f"{url}/openapi.json").json()


def with_images(body, draw):
    """Good images in place of most texts that stand for one: made from the schema alone no image would decode."""
    if isinstance(body, bytes):
        return PNG
    if not isinstance(body, dict) or draw(st.integers(0, 3)) == 0:
        return body
    body = dict(body)
    for name in {"image", "input"} & set(body):
        body[name] = draw(st.sampled_from(IMAGES))
    if "images" in body:
        body["images"] = draw(st.lists(st.sampled_from([*IMAGES, "no image"]), min_size=1, max_size=3))
    if "messages" in body:
        part = {"type": "image_url", "image_url": {"url": IMAGES[1]}}
        body["messages"] = [{"role": "user", "content": [part]}]
    if "file" in body:
        body["file"] = PNG
    if "files" in body:
        body["files"] = [PNG] * draw(st.integers(1, 3))
    # Most combinations of options contradict each other.
    for name in sorted(set(body) - {"image", "images", "input", "messages", "file", "files"}):
        if draw(st.integers(0, 3)) > 0:
            del body[name]
    return body


@pytest.fixture(scope="module")
def schema(url):
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


OPERATIONS = [
    *(("POST", path) for path in ("/v1/caption", "/v1/captions", "/v1/chat/completions", "/v1/embeddings")),
    *(("GET", path) for path in ("/v1/models", "/v1/models/{name}", "/healthz", "/readyz")),
]
# Not that what fits the schema is accepted: it says nothing of whether a text is an image, or a model has an RBM.
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
STEADY = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_what_fits_the_document_is_answered_as_it_says(schema, method, path):
    num_by_status = Counter()

    @settings(STEADY, max_examples=60)
    @given(case=schema[path][method].as_strategy(), data=st.data())
    def ask(case, data):
        if method == "POST":
            case.body = with_images(case.body, data.draw)
            if data.draw(st.integers(0, 3)) > 0:
                case.query = {}
        num_by_status[case.call_and_validate(checks=CHECKS, timeout=60).status_code] += 1

    ask()
    assert num_by_status[200] >= (1 if path == "/readyz" or method == "GET" else 10) or "{" in path, num_by_status


@pytest.mark.parametrize(("method", "path"), [operation for operation in OPERATIONS if operation[0] == "POST"])
def test_what_does_not_fit_the_document_is_refused_as_it_says(schema, method, path):
    num_by_status = Counter()

    @settings(STEADY, max_examples=60)
    @given(case=schema[path][method].as_strategy(GenerationMode.NEGATIVE))
    def ask(case):
        # A form's text has no type: a list of one is the same as the one.
        must_refuse = [checks.negative_data_rejection] if case.media_type == "application/json" else []
        num_by_status[case.call_and_validate(checks=[*CHECKS, *must_refuse], timeout=60).status_code] += 1

    ask()
    assert sum(number for status, number in num_by_status.items() if 400 <= status < 500) >= 30, num_by_status


def test_all_operations_are_tried(document):
    documented = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert documented == set(OPERATIONS)


def requests_of(document):
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                yield method, path, kind, content


def test_every_documented_request_is_answered(url, document):
    num_requests = 0
    for method, path, kind, content in requests_of(document):
        example = content["example"]
        if kind == "application/json":
            options = {"json": example}
        elif kind == "multipart/form-data":
            files = {name: values for name, values in example.items() if name.startswith("file")}
            texts = {name: str(value) for name, value in example.items() if name not in files}
            pairs = [(name, (file, PNG)) for name, v in files.items() for file in ([v] if isinstance(v, str) else v)]
            options = {"files": pairs, "data": texts}
        else:
            options = {"content": PNG, "headers": {"Content-Type": kind.replace("*", "png")}}
        answer = httpx.request(method, f"{url}{path}", timeout=60, **options)
        assert answer.status_code == 200, (path, kind, answer.text)
        assert "error" not in json.dumps(answer.json()), answer.text
        num_requests += 1
    assert num_requests == 8


def test_names_of_operations_are_fit_for_generated_clients(document):
    names = [operation["operationId"] for operations in document["paths"].values() for operation in operations.values()]
    assert len(set(names)) == len(names)
    assert {"caption", "captions", "chat", "embeddings", "list_models", "show_model", "healthz", "readyz"} == set(names)


def test_no_reference_leads_nowhere(document):
    def references(node):
        if isinstance(node, dict):
            yield from [node["$ref"]] if "$ref" in node else []
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    for reference in references(document):
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def operations_of(document):
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation


def validator(document, schema):
    return jsonschema.Draft202012Validator(schema | {"components": document["components"]})


def test_every_example_of_an_answer_fits_its_schema(document):
    num_examples = 0
    for path, method, operation in operations_of(document):
        for status, answer in operation["responses"].items():
            for kind, content in answer["content"].items():
                assert ("schema" in content) == (kind != "text/event-stream"), (path, method, status, kind)
                if "schema" in content:
                    errors = [
                        error.message
                        for error in validator(document, content["schema"]).iter_errors(content["example"])
                    ]
                    assert not errors, (path, method, status, errors)
                    num_examples += 1
    assert num_examples == 6 * 12 + 1 + 2


def test_every_operation_of_v1_may_ask_for_a_key_and_no_other_does(document):
    (name, scheme), *others = document["components"]["securitySchemes"].items()
    assert (scheme["type"], scheme["scheme"], others) == ("http", "bearer", [])
    for path, method, operation in operations_of(document):
        # Either of the two: a server without keys asks for none.
        expected = [{name: []}, {}] if path.startswith("/v1/") else None
        assert operation.get("security") == expected, (path, method)


def test_every_operation_of_v1_shows_an_answer_in_json(document):
    shown = {
        path: operation["responses"]["200"]["content"]["application/json"]["example"]
        for path, _, operation in operations_of(document)
        if path.startswith("/v1/")
    }
    assert len(shown) == 6
    assert shown["/v1/caption"]["caption"] == shown["/v1/captions"]["results"][0]["caption"]
    assert "error" in shown["/v1/captions"]["results"][1], "what comes in an image's place is shown too"
    assert shown["/v1/models"]["data"] == [shown["/v1/models/{name}"]]
    assert shown["/v1/chat/completions"]["system_fingerprint"]


def test_every_answer_has_its_id_and_those_that_ask_for_patience_say_for_how_long(document):
    headers = document["components"]["headers"]
    assert all(header["required"] for header in headers.values())
    for path, method, operation in operations_of(document):
        for status, answer in operation["responses"].items():
            names = {"X-Request-ID", "Retry-After"} if status in ("429", "503") else {"X-Request-ID"}
            references = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
            assert answer["headers"] == references, (path, method, status)


def test_a_server_that_is_not_ready_or_asked_too_much_answers_as_documented():
    limiter = RateLimiter(RateLimit(requests_per_minute=1, burst=1))
    client = TestClient(make_api(Service(None, rate_limiter=limiter)))
    document = client.get("/openapi.json").json()
    body = {"image": IMAGES[0]}
    for (method, path), status in (
        (("get", "/readyz"), 503),
        (("post", "/v1/caption"), 503),
        (("post", "/v1/caption"), 429),
    ):
        answer = client.request(method, path, json=body if method == "post" else None)
        assert answer.status_code == status
        documented = document["paths"][path][method]["responses"][str(status)]
        validator(document, documented["content"]["application/json"]["schema"]).validate(answer.json())
        for name in documented["headers"]:
            header = document["components"]["headers"][name]
            text = answer.headers[name]
            validator(document, header["schema"]).validate(int(text) if name == "Retry-After" else text)


def test_fields_of_openai_that_ask_for_nothing_are_documented_and_taken(url, document):
    """What a client of OpenAI's sends by habit; and what asks for something, by the document too, is refused."""
    content = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    by_schema = validator(document, content["schema"])
    neutral = {
        "frequency_penalty": 0,
        "function_call": "none",
        "functions": [],
        "logit_bias": {},
        "logprobs": False,
        "modalities": ["text"],
        "parallel_tool_calls": True,
        "presence_penalty": 0.0,
        "response_format": {"type": "text"},
        "stop": [],
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
    }
    effects = {
        "audio": {"voice": "alloy"},
        "frequency_penalty": 0.5,
        "function_call": "auto",
        "functions": [{"name": "f"}],
        "logit_bias": {"5": 1},
        "logprobs": True,
        "modalities": ["text", "audio"],
        "prediction": {"type": "content", "content": "a"},
        "presence_penalty": -1,
        "response_format": {"type": "json_object"},
        "tool_choice": "required",
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "top_logprobs": 3,
        "web_search_options": {},
        "unknown": None,
    }
    ignored = {"metadata": {"a": "b"}, "reasoning_effort": "low", "service_tier": "auto", "store": True}
    nothing = dict.fromkeys([*neutral, *(set(effects) - {"unknown"}), *ignored])

    def ask(fields):
        body = content["example"] | fields
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        assert by_schema.is_valid(body) == (answer.status_code == 200), (fields, answer.text)
        return answer.status_code

    for fields in (neutral, nothing, ignored, *({name: value} for name, value in neutral.items())):
        assert ask(fields) == 200, fields
    for name, value in effects.items():
        assert ask({name: value}) == 400, name
