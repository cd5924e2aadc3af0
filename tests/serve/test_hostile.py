"""The catalogue of hostile requests: itself, and sent to the application on a real local Serve."""

import json
import logging
import re
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

from raycap.data.images import decode_image
from raycap.models.decoding import Decoding
from raycap.predictor import CaptionPredictor
from raycap.serve import server
from raycap.serve.config import CaptionArgs
from raycap.serve.guard.fetch import ImageFetcher, UrlFetch
from raycap.serve.stages.weights import Routing

KEY = "a-good-key-of-this-test-only"
GOOD_KEY = ("Authorization", f"Bearer {KEY}")
NUM_AT_ONCE = 8
REQUEST_SECONDS = 8
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
        "limits": {"request_seconds": REQUEST_SECONDS},
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
        for role in ("ProxyActor", "ServeReplica:caption:ingress"):
            if role in title:
                found[role, process.pid] = process.memory_info().rss
    return found


class ServeLog:
    """What Serve's processes write from now on."""

    def __init__(self, session):
        self.session = session
        self.seen = {log: len(log.read_text(errors="replace")) for log in self._logs()}

    def _logs(self):
        return list(self.session.glob("session_latest/logs/serve/*.log"))

    def read(self):
        """Each file's new text by its name."""
        return {log.name: log.read_text(errors="replace")[self.seen.get(log, 0) :] for log in self._logs()}

    def require_no_failure(self):
        """No error of ours, whoever's request it was."""
        for name, text in self.read().items():
            sign = re.search(r"Traceback|ERROR|(POST|GET) \S+ (500|FAILED)", text)
            assert sign is None, f"{name}: {text[max(0, sign.start() - 500) : sign.start() + 6000]}"


@pytest.mark.integration
def test_every_hostile_request_is_refused_as_it_must_be_and_good_ones_go_on(url, caption, session, record_property):
    groups = {}
    for case in hostile_requests():
        groups.setdefault(case.name.partition(" ")[0].rstrip(":"), []).append(case)
    require_caption(url, caption)
    log, before, num_sent, wrong = ServeLog(session), door_memory(), 0, {}
    assert len(before) == 2, before
    for cases, headers in [*((cases, [GOOD_KEY]) for cases in groups.values()), (hostile_keys(), [])]:
        answers, faulty = send_all(url, cases, *headers)
        wrong |= faulty
        num_sent += len(answers)
        require_caption(url, caption)
    assert not wrong, "\n".join(f"{name}: {fault}" for name, fault in wrong.items())
    record_property("hostile requests", num_sent)
    assert num_sent == len(hostile_requests()) + len(hostile_keys()) >= 200
    after = door_memory()
    assert set(after) == set(before), "no process may have died"
    growth = {process: after[process] - before[process] for process in before}
    for (role, _), num_bytes in growth.items():
        record_property(f"{role} grew by MB", round(num_bytes / 1e6))
    assert max(growth.values()) < MOST_GROWTH_BYTES, growth
    log.require_no_failure()
    num_lines = sum(text.count("POST /v1/caption 4") for text in log.read().values())
    assert num_lines > num_sent // 2, "the logs must have been read for this to show anything"


def head(*lines, method="POST", path="/v1/caption", version="1.1"):
    """A good request's lines before its body."""
    first = f"{method} {path} HTTP/{version}"
    named = [f"Authorization: Bearer {KEY}", "Content-Type: image/png"]
    return "\r\n".join([first, "Host: test", *named, *lines, "", ""]).encode()


LENGTH = f"Content-Length: {len(GOOD)}"


@pytest.mark.integration
@pytest.mark.parametrize(
    "request_head",
    [
        head(LENGTH, "Connection: close", "Expect: 100-continue"),
        head(LENGTH, "Connection: close", path="http://test/v1/caption"),
        head(LENGTH, version="1.0"),
    ],
    ids=["expect 100-continue", "absolute URI", "HTTP/1.0"],
)
def test_rare_but_right_requests_are_answered(url, caption, request_head):
    answer = wire.exchange(url, request_head + GOOD, MOST_SECONDS)
    assert (answer.status, json.loads(answer.body)["caption"]) == (200, caption)


@pytest.mark.integration
def test_pipelined_requests_are_answered_in_their_order(url, caption):
    bad = head("Content-Length: 3") + b"bad"
    with wire.connect(url) as connection:
        connection.sendall(bad + head(LENGTH, "Connection: close") + GOOD)
        connection.settimeout(MOST_SECONDS)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    first, _, second = received.partition(b"HTTP/1.1 200 OK")
    assert first.startswith(b"HTTP/1.1 422")
    assert caption.encode() in second


@pytest.mark.integration
def test_a_body_in_chunks_without_end_is_cut_at_the_limit(url, caption):
    chunk = b"40000\r\n" + bytes(0x40000) + b"\r\n"
    answer = wire.exchange(url, head("Transfer-Encoding: chunked", "Connection: close") + chunk * 160, MOST_SECONDS * 2)
    assert (answer.status, answer.error["type"]) == (413, "image_too_large")
    require_caption(url, caption)


@pytest.mark.integration
def test_slow_and_idle_clients_do_not_block_others_and_a_slow_body_is_cut(url, caption):
    """Some never end their headers, some their body, some say nothing."""
    beginnings = [b"POST /v1/caption HTTP/1.1\r\nHost: te", head(LENGTH) + GOOD[:10], b""] * 60
    connections = [wire.connect(url) for _ in beginnings]
    try:
        for connection, beginning in zip(connections, beginnings, strict=True):
            connection.sendall(beginning)
        started_at = time.monotonic()
        require_caption(url, caption)
        with ThreadPoolExecutor(NUM_AT_ONCE) as threads:
            list(threads.map(lambda _: require_caption(url, caption), range(2 * NUM_AT_ONCE)))
        assert time.monotonic() - started_at < MOST_SECONDS
        slow = wire.finish(connections[1], b"", REQUEST_SECONDS + MOST_SECONDS)
        assert (slow.status, slow.error["type"]) == (504, "timeout")
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.integration
def test_clients_that_leave_in_the_middle_are_no_failure_of_the_server(url, caption, session):
    log = ServeLog(session)
    for beginning in (head("Content-Length: 1000000") + GOOD, head(LENGTH) + GOOD):
        for _ in range(100):
            with wire.connect(url) as connection:
                # Closed with a reset, as by a client that crashed.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.sendall(beginning)
    require_caption(url, caption)
    log.require_no_failure()


def test_where_urls_are_fetched_none_of_the_forbidden_is(models, caption):
    routing = Routing.model_validate({"models": {"caption": model_at(models)}})
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    fetch = ImageFetcher(UrlFetch(enabled=True)).fetch
    with serve_on_loopback(routing, fetch=fetch) as url:
        cases = [case for case in hostile_requests(urls_enabled=True) if "json: url" in case.name]
        assert len(cases) > 150
        _, wrong = send_all(url, cases)
        require_caption(url, caption)
    assert not wrong, "\n".join(f"{name}: {fault}" for name, fault in wrong.items())
