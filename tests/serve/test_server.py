"""The whole application on a local cluster, over HTTP."""

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import ray
import yaml
from ray import serve

from raycap.checkpoint.pretrained import save_blip
from raycap.data.text import train_wordpiece
from raycap.errors import UserError
from raycap.models.blip import BlipShape, build_blip
from raycap.serve import server
from raycap.serve.app import build
from raycap.serve.config import CaptionArgs

pytestmark = pytest.mark.integration

CPU_CONFIG = Path(__file__).parents[2] / "serve_configs/cpu.yaml"


@pytest.fixture(scope="module")
def ray_directory():
    """Ray's own, with a short name: its sockets' paths have 107 characters."""
    directory = tempfile.mkdtemp(prefix="ray-")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(ray_directory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "raycap.serve.proxy:middlewares")
        ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=ray_directory, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def url(models, cluster):
    model = {"model": str(models / "demo/blip/model"), "rbm": str(models / "demo/rbm/model"), "precision": "fp32"}
    values = {"models": {"caption": model}, "shape": {"kind": "disaggregated"}}
    yield server.start(CaptionArgs.model_validate(values), port=0)
    server.stop()


def test_what_cannot_start_is_refused_at_once(models, cluster):
    """Stands first: the cluster serves nothing yet."""

    def args(**encoder):
        values = {"models": {"m": {"model": str(models / "demo/blip/model")}}}
        return CaptionArgs.model_validate(values | {"shape": {"kind": "disaggregated", "encoder": encoder}})

    with pytest.raises(UserError, match=r"num_cpus: .* reserve 8\.4, the cluster has 2 CPUs; lower"):
        server.start(args(num_replicas=2, num_cpus=4.05))
    with pytest.raises(UserError, match=r"num_gpus: .* reserve 1, the cluster has 0 GPUs"):
        server.start(args(num_gpus=1))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port = {port}: Address already in use; give a free one, or 0"):
            server.start(args(), port=port)


def post_file(url, data):
    return httpx.post(f"{url}/v1/caption", files={"file": data}, timeout=60)


def test_sixteen_at_once_each_get_the_caption_that_the_predictor_gives(models, files, predicted, url):
    with ThreadPoolExecutor(len(files)) as threads:
        answers = list(
            threads.map(lambda file: httpx.post(f"{url}/v1/caption", files={"file": file}, timeout=60), files)
        )
    assert [answer.status_code for answer in answers] == [200] * len(files)
    assert [answer.json()["caption"] for answer in answers] == predicted(str(models / "demo/rbm/model"))


def test_json_and_multipart_give_the_same(files, url):
    multipart = post_file(url, files[0])
    in_json = httpx.post(f"{url}/v1/caption", json={"image": base64.b64encode(files[0]).decode()}, timeout=60)
    assert multipart.json()["captions"] == in_json.json()["captions"]
    assert multipart.json()["model"] == "caption"


def test_errors_keep_their_status_behind_the_proxy(url):
    assert post_file(url, b"no image").status_code == 422
    assert post_file(url, bytes(21 * 1024 * 1024)).status_code == 413
    assert httpx.post(f"{url}/v1/caption", content=b"x").status_code == 415
    assert httpx.get(f"{url}/readyz").status_code == 200
    assert httpx.get(f"{url}/nowhere").json()["error"]["type"] == "not_found"


def test_a_second_application_is_refused_and_the_first_left_alone(models, url):
    with pytest.raises(UserError, match="Serve already runs in this cluster"):
        server.start(CaptionArgs.model_validate({"models": {"m": {"model": str(models / "demo/blip/model")}}}), port=0)
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_images_that_no_message_holds_together_are_all_captioned(files, url, tmp_path):
    """Sixteen of 384 x 384 pixels are 7 MB, their embeddings 14 MB; Serve sends 4 MiB at once."""
    tokenizer = train_wordpiece(["a red circle above a blue square"] * 2, 100)
    sizes = {"image_size": 384, "patch_size": 16, "embed_dim": 768, "num_heads": 12}
    blip = build_blip(BlipShape(**sizes, num_vision_layers=1, num_text_layers=1), tokenizer)
    save_blip(tmp_path / "wide", *blip)
    model = {"model": str(tmp_path / "wide"), "decoding": {"max_new_tokens": 3}}
    shape = {"kind": "disaggregated", "refiner": None, "encoder": {"cache_bytes": 0}}
    values = {"models": {"wide": model}, "shape": shape, "caption_cache_bytes": 0}
    serve.run(build(CaptionArgs.model_validate(values)), name="wide", route_prefix="/wide")
    try:
        with ThreadPoolExecutor(32) as clients:
            answers = list(clients.map(lambda file: post_file(f"{url}/wide", file), files * 4))
        assert [answer.status_code for answer in answers] == [200] * len(answers)
    finally:
        serve.delete("wide")


def test_what_a_killed_ingress_had_in_its_hands_can_be_sent_again(files, url):
    (ingress,) = [
        process
        for process in psutil.Process().children(recursive=True)
        if "ServeReplica:caption:ingress" in " ".join(process.cmdline())
    ]
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port), timeout=60) as client:
        headers = "Host: localhost\r\nContent-Type: image/png\r\nX-Request-ID: mine\r\nConnection: close\r\n"
        client.sendall(f"POST /v1/caption HTTP/1.1\r\n{headers}Content-Length: 1000\r\n\r\n".encode() + bytes(500))
        time.sleep(1)  # it is the replica's then
        ingress.kill()
        answer = http.client.HTTPResponse(client)
        answer.begin()
        error = json.load(answer)["error"]
    assert (answer.status, answer.headers["Retry-After"], error["type"]) == (503, "1", "lost")
    assert error["request_id"] == answer.headers["X-Request-ID"] == "mine"
    # Until another replica is there Serve's proxy lets requests wait.
    assert post_file(url, files[0]).status_code == 200


@pytest.fixture
def serve_run(models, ray_directory, tmp_path):
    """Starts ``serve run`` where the demo's models are, with cpu.yaml's application and one whose path is wrong.

    Gives the process, its URL and its log.
    """
    processes = []

    def start():
        config = yaml.safe_load(CPU_CONFIG.read_text())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            config["http_options"]["port"] = free.getsockname()[1]
        (good,) = config["applications"]
        mistaken = {"caption": good["args"]["models"]["caption"] | {"rbm": "demo/rbm/modle"}}
        wrong = {"name": "wrong", "route_prefix": "/wrong", "args": good["args"] | {"models": mistaken}}
        config["applications"].append(good | wrong)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        command = [str(Path(sys.executable).with_name("serve")), "run", str(tmp_path / "config.yaml")]
        environment = os.environ | {"RAY_ADDRESS": "local", "RAY_TMPDIR": ray_directory, "RAY_USAGE_STATS_ENABLED": "0"}
        log = (tmp_path / "log").open("w")
        process = subprocess.Popen(
            command,
            cwd=models,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Where the tests run in the background, interrupts are ignored, and it would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        processes.append(process)
        return processes[-1], f"http://127.0.0.1:{config['http_options']['port']}", tmp_path / "log"

    yield start
    for process in processes:
        process.kill()
        process.wait()


def wait_until(condition, log, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)


def answers(url):
    try:
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_serve_run_answers_names_a_wrong_path_in_one_line_and_ends_at_an_interrupt(files, serve_run):
    process, url, log = serve_run()
    wait_until(lambda: answers(url), log)
    assert post_file(url, files[0]).status_code == 200
    wait_until(lambda: "no model there" in log.read_text(), log)
    assert "demo/rbm/modle: no model there (config.json is missing); give a finished model directory" in log.read_text()
    assert "Traceback" not in log.read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not answers(url)
