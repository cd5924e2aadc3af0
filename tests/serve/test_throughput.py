"""Serve's throughput mode behind HAProxy, as serve_configs/throughput.yaml has it: what other tests see behind Serve's
own proxy holds there too. HAProxy listens on all interfaces, so that all runs in a network of its own."""

import asyncio
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import httpx
import pytest
import ray
import torch
from ray.serve._private.constants import RAY_SERVE_HAPROXY_STATS_PORT
from ray.serve._private.haproxy import get_haproxy_binary
from serve import private_network
from serve.local_cluster import HOST, disaggregated, kill_tree, wait_until
from serve.many_requests import ask_all, unfinished, wait_until_nothing_is_left
from serve.tiny_models import EMBED_DIM, Served

from raycap.checkpoint.pretrained import load_blip, save_blip
from raycap.models.blip import BlipShape, build_blip
from raycap.serve import server
from raycap.serve.config import CaptionArgs

MODE = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).with_name("raycap-haproxy")),
    # Serve would have a replica wait for balancers of load to leave it, of which there are none.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# What else is written outside of Ray's directory.
FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}
PNG = {"Content-Type": "image/png"}
RETRY_AFTER_SECONDS = 7
NUM_PLACES = 16
"""Of captions in the decoder, and as many that wait for one of these."""

MAX_TOKENS = 480
"""Of a caption, which then takes half a second or more; they are written one at a time."""


def unavailable():
    """Why it cannot run on this machine."""
    try:
        get_haproxy_binary()
    except FileNotFoundError as error:
        return str(error)
    return private_network.unavailable()


UNAVAILABLE = unavailable()


@pytest.mark.integration
@pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
def test_the_throughput_mode_behind_haproxy_keeps_all_promises():
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | MODE
    # Sockets' paths have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        environment |= {name: f"{directory}/{file}" for name, file in FILES.items()}
        environment["RAY_TMPDIR"] = directory
        options = ["-p", "no:cacheprovider", "-o", "python_classes=BehindHAProxy"]
        program = [sys.executable, "-m", "pytest", *options, f"{__file__}::BehindHAProxy"]
        process = subprocess.Popen(
            private_network.prefixed(*program),
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            output, _ = process.communicate(timeout=300)
        finally:
            kill_tree(process)
    assert process.returncode == 0, output[-10_000:]


@pytest.fixture(scope="module")
def model(models, files, tmp_path_factory):
    """One whose captions are as long as wanted."""
    root = tmp_path_factory.mktemp("long")
    encoder, decoder = load_blip(str(models / "demo/blip/model"))
    torch.manual_seed(0)
    sizes = {"image_size": 32, "embed_dim": EMBED_DIM, "num_vision_layers": 1, "num_text_layers": 1}
    _, long = build_blip(BlipShape(**sizes, max_text_tokens=MAX_TOKENS + 4), decoder.tokenizer)
    torch.nn.init.constant_(long.text_decoder.cls.predictions.bias[long.eos_id], -1e4)
    save_blip(root / "demo/blip/model", encoder, long)
    shutil.copytree(models / "demo/rbm", root / "demo/rbm")
    return Served.of(root, files)


@pytest.fixture(scope="module")
def url(model):
    narrow = {"max_rows": 1, "max_ongoing_requests": NUM_PLACES, "max_queued_requests": NUM_PLACES}
    limits = {"max_beams": 1, "max_captions": 1, "max_new_tokens": MAX_TOKENS}
    decoder = narrow | {"retry_after_seconds": RETRY_AFTER_SECONDS}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    application = disaggregated(model.values, decoder=decoder, limits=limits)
    yield server.start(CaptionArgs.model_validate(application["args"]), port=0)
    server.stop()
    ray.shutdown()


class BehindHAProxy:
    """Collected only by the program above, which runs in that network."""

    def test_a_caption_is_the_predictors(self, url, model, files):
        for file, caption in zip(files[:3], model.captions, strict=False):
            answer = httpx.post(f"{url}/v1/caption", content=file, headers=PNG, timeout=60)
            assert (answer.json()["caption"], answer.json()["model_version"]) == (caption, model.version)

    def test_haproxy_sends_requests_straight_to_the_replica(self, url):
        httpx.get(f"{url}/v1/models")
        table = httpx.get(f"http://{HOST}:{RAY_SERVE_HAPROXY_STATS_PORT}/stats;csv").text.removeprefix("# ")
        sent = {row["svname"]: int(row["stot"] or 0) for row in csv.DictReader(table.splitlines())}
        assert sum(count for name, count in sent.items() if name.startswith("SERVE_REPLICA_caption-ingress")) > 0, sent

    def test_a_stream_comes_in_pieces_and_ends_with_done(self, url, model, files):
        with httpx.stream(
            "POST", f"{url}/v1/caption", files={"file": files[0]}, data={"stream": "true"}, timeout=60
        ) as answer:
            *pieces, whole, done = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert done == "[DONE]"
        assert len(pieces) > 5
        assert "".join(json.loads(piece)["delta"] for piece in pieces) == model.captions[0]
        assert json.loads(whole)["caption"] == model.captions[0]

    def test_the_clients_id_comes_back_once_and_an_insane_one_is_not_taken(self, url):
        def ask(given):
            answer = httpx.get(f"{url}/nosuch", headers={"X-Request-ID": given})
            return answer.headers.get_list("x-request-id"), answer.json()["error"]["request_id"]

        assert ask("Ab-1._") == (["Ab-1._"], "Ab-1._")
        for insane in ("a b", "a" * 129):
            # Serve itself adds the client's, whatever it is.
            (first, *_), of_error = ask(insane)
            assert first == of_error
            assert re.fullmatch("[0-9a-f]{32}", of_error)

    def test_a_full_stage_is_a_503_that_says_when_to_come_again(self, url, files):
        answers = asyncio.run(ask_all(url, files, 6 * NUM_PLACES, {"max_new_tokens": "60"}))
        refused = (503, str(RETRY_AFTER_SECONDS), "overloaded")
        assert set(answers) == {(200, None, None), refused}, Counter(answers)
        assert answers.count((200, None, None)) >= NUM_PLACES
        wait_until_nothing_is_left(5)

    @pytest.mark.parametrize("stream", ["false", "true"])
    def test_what_a_client_that_left_had_asked_for_is_computed_no_longer(self, url, files, stream):
        options = {"max_new_tokens": str(MAX_TOKENS), "stream": stream}

        def until_some_are_there():
            wait_until(lambda: unfinished()["decoder"] > 2, 30)

        # One place is for whoever looks.
        answers = asyncio.run(ask_all(url, files, NUM_PLACES - 1, options, leave=until_some_are_there))
        assert answers.count(None) > NUM_PLACES // 2, "most must still be waiting for this to show anything"
        wait_until_nothing_is_left(3)
        answer = httpx.post(f"{url}/v1/caption", content=files[0], headers=PNG, timeout=60)
        assert answer.status_code == 200
