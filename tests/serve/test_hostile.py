"""The catalogue of hostile requests: itself, and sent to the application on a real local Serve."""

import json
import logging
import shutil
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ray
from serve import hostile, wire
from serve.hostile import GOOD, hostile_keys, hostile_requests, request_bytes
from serve.loopback import serve_on_loopback

from raycap.checkpoint import load_refiner
from raycap.data.images import decode_image
from raycap.models.decoding import Decoding
from raycap.predictor import CaptionPredictor
from raycap.serve import server
from raycap.serve.config import CaptionArgs
from raycap.serve.fetch import ImageFetcher, UrlFetch
from raycap.serve.models import Routing

KEY = "a-good-key-of-this-test-only"
GOOD_KEY = ("Authorization", f"Bearer {KEY}")
NUM_AT_ONCE = 8
MOST_SECONDS = 15
"""For any answer, of a machine that has other work; most take hundredths."""

MOST_GROWTH_BYTES = 400 * 1024**2
"""Of one process, through all cases: eight bodies of 28 MB at once in base64, decoded, and as the allocator keeps."""


@pytest.mark.parametrize("urls_enabled", [False, True])
def test_there_are_many_cases_each_of_its_own_name(urls_enabled):
    cases = [*hostile_requests(urls_enabled), *hostile_keys()]
    assert len(cases) >= 200
    assert len({case.name for case in cases}) == len(cases)


def test_every_case_expects_only_answers_that_blame_the_client():
    for case in [*hostile_requests(), *hostile_keys()]:
        assert case.statuses, case.name
        assert case.statuses <= {400, 401, 404, 405, 413, 415, 422, 431}, case.name
        assert request_bytes(case, "host").startswith(case.method.encode())


def test_urls_are_refused_for_another_reason_where_they_are_fetched():
    kinds = [{kind for case in hostile_requests(enabled) for kind in case.kinds} for enabled in (False, True)]
    assert kinds[0] ^ kinds[1] == {"url_disabled", "url_refused"}


def post_json(url, value, *headers, path="/v1/caption", seconds=MOST_SECONDS):
    body = json.dumps(value).encode()
    case = hostile.Case("", "POST", path, (("Content-Type", "application/json"),), body, frozenset({200}))
    return wire.exchange(url, request_bytes(case, url.partition("//")[2], *headers), seconds)


def faults(case, answer):
    """What is wrong with an answer."""
    if answer.status not in case.statuses:
        return f"{answer.status}, not {sorted(case.statuses)}: {answer.body[:200]!r}"
    if answer.seconds > MOST_SECONDS:
        return f"after {answer.seconds:.1f} s"
    if len(answer.body) > 4000:
        return f"an answer of {len(answer.body)} bytes"
    error = answer.error
    if not error:
        return None if case.is_parsers or case.method == "HEAD" else f"not the one form: {answer.body[:200]!r}"
    if case.kinds and error["type"] not in case.kinds:
        return f"{error['type']}, not {sorted(case.kinds)}: {error['message']}"
    said, semicolon, remedy = error["message"].partition("; ")
    if not (said and semicolon and remedy) or "\n" in error["message"] or "Traceback" in error["message"]:
        return f"not field, value, remedy: {error['message']}"
    if error["request_id"] != answer.headers["x-request-id"]:
        return "another request's id"
    return None


def send_all(url, cases, *headers):
    """Every case, eight at a time.

    Returns:
        the answers, and what was wrong with them by the cases' names.
    """
    host = url.partition("//")[2]
    with ThreadPoolExecutor(NUM_AT_ONCE) as threads:
        answers = list(
            threads.map(lambda case: wire.exchange(url, request_bytes(case, host, *headers), MOST_SECONDS * 2), cases)
        )
    found = {case.name: faults(case, answer) for case, answer in zip(cases, answers, strict=True)}
    return answers, {name: fault for name, fault in found.items() if fault}


@pytest.fixture(scope="module")
def caption(models):
    """Of the good image, by the predictor; rounded as between stages it is the same."""
    predictor = CaptionPredictor.from_pretrained(str(models / "demo/blip/model"), str(models / "demo/rbm/model"))
    return predictor.caption([decode_image(GOOD)], Decoding())[0]


def model_at(models):
    return {"model": str(models / "demo/blip/model"), "rbm": str(models / "demo/rbm/model"), "precision": "fp32"}


@pytest.fixture(scope="module")
def session():
    """A directory for Ray, its name short as its sockets' paths have 107 characters."""
    directory = tempfile.mkdtemp(prefix="ray-")
    yield Path(directory)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def url(models, session):
    """The application, with a key, on a cluster of its own; answers are not kept, so that each is computed."""
    keys = session / "keys.yaml"
    keys.write_text(f"tests: {KEY}\n")
    values = {
        "models": {"caption": model_at(models)},
        "shape": {"kind": "cpu"},
        "keys": {"file": str(keys)},
        "caption_cache_bytes": 0,
        "limits": {"request_seconds": 8},
    }
    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=str(session), log_to_driver=False)
    try:
        yield server.start(CaptionArgs.model_validate(values), port=0)
        server.stop()
    finally:
        ray.shutdown()


def require_caption(url, caption):
    answer = post_json(url, {"image": hostile.GOOD_BASE64}, GOOD_KEY)
    assert (answer.status, json.loads(answer.body).get("caption")) == (200, caption)


def door_memory():
    """Resident bytes of the proxy and of the ingress, by their titles."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        title = " ".join(process.cmdline())
        if "ProxyActor" in title or "ServeReplica:caption:ingress" in title:
            found[title] = process.memory_info().rss
    return found


def serve_log(session):
    """All that Serve's processes wrote."""
    logs = [*session.glob("session_latest/logs/serve/*.log"), *session.glob("session_latest/logs/worker-*")]
    return "\n".join(log.read_text(errors="replace") for log in logs)


GROUPS = [*hostile_requests(), *hostile_keys()]


@pytest.mark.integration
def test_every_hostile_request_is_refused_as_it_must_be_and_good_ones_go_on(url, caption, session):
    requests = hostile_requests()
    groups = {}
    for case in requests:
        groups.setdefault(case.name.partition(" ")[0].rstrip(":"), []).append(case)
    require_caption(url, caption)
    before, num_sent, wrong = door_memory(), 0, {}
    assert len(before) == 2, before
    for cases in [*groups.values()]:
        answers, faulty = send_all(url, cases, GOOD_KEY)
        wrong |= faulty
        num_sent += len(answers)
        require_caption(url, caption)
    answers, faulty = send_all(url, hostile_keys())
    wrong |= faulty
    num_sent += len(answers)
    require_caption(url, caption)
    assert not wrong, "\n".join(f"{name}: {fault}" for name, fault in wrong.items())
    print(f"{num_sent} hostile requests refused")
    assert num_sent == len(requests) + len(hostile_keys()) >= 200
    after = door_memory()
    assert set(after) == set(before), "no process may have died"
    growth = {title: after[title] - before[title] for title in before}
    print(growth)
    assert max(growth.values()) < MOST_GROWTH_BYTES, growth
    log = serve_log(session)
    assert "POST /v1/caption 4" in log, "Serve's logs must have been read for this to show anything"
    for sign in ("Traceback", " failed", "POST /v1/caption 5"):
        lines = [line for line in log.splitlines() if sign in line]
        assert not lines, lines[:5]
