"""`jobs/serve.py`: one process that serves a Serve configuration file until a signal."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml
from serve.load import Load
from serve.local_cluster import HOST, disaggregated, free_ports, is_ready, kill_tree, wait_until
from serve.tiny_models import Served

from raycap.config import parse_config
from raycap.errors import UserError
from raycap.serve.foreground import ForegroundConfig

JOB = Path(__file__).parents[2] / "jobs/serve.py"
DRAIN_SECONDS = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"import_path": "other:build"}, "caption has import_path = other:build; give raycap.serve.app:build"),
        ({"args": {"models": {}}}, "args: models"),
        ({"rout_prefix": "/"}, "rout_prefix"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_starts(change, message):
    application = {"name": "caption", "import_path": "raycap.serve.app:build", "args": {}} | change
    with pytest.raises(UserError, match=message):
        parse_config(ForegroundConfig, {"applications": [application]}, origin="file").deployed()


@pytest.fixture(params=[False, True], ids=["disaggregated", "cpu-throughput"])
def server(models, files, tmp_path, request):
    """The job with tiny models, once in Serve's throughput mode: its process, URL and log."""
    (port,) = free_ports(1)
    application = disaggregated(Served.of(models, files).values)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    if request.param:
        application["args"]["shape"] = {"kind": "cpu"}
        # Serve would have a replica wait for balancers of load to leave it, of which there are none.
        environment |= {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0"}
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": HOST, "port": port},
        "applications": [application],
    }
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, str(JOB), "--config", str(tmp_path / "serve.yaml"), f"drain_seconds={DRAIN_SECONDS}"]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Where the tests run in the background, interrupts are ignored, and it would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    yield process, f"http://{HOST}:{port}", log
    kill_tree(process)


@pytest.mark.integration
def test_sigterm_loses_no_request_that_was_taken(models, files, server):
    model = Served.of(models, files)
    process, url, log = server
    wait_until(lambda: "ready: caption at" in log.read_text() or process.poll() is not None, 240, log.read_text)
    assert is_ready(url), log.read_text()
    not_ready_at = threading.Event()

    def watch():
        while is_ready(url):
            time.sleep(0.1)
        not_ready_at.set()

    with Load(url, files, 4) as load:
        load.wait_for(lambda result: len(result.answered) > 20)
        threading.Thread(target=watch, daemon=True).start()
        process.send_signal(signal.SIGTERM)
        signalled_at = time.monotonic()
        assert not_ready_at.wait(DRAIN_SECONDS), "it must be told before requests are refused"
        assert process.wait(120) == 0, log.read_text()
    assert load.result.between(signalled_at + 1, signalled_at + DRAIN_SECONDS - 1).answered, "draining still answers"
    for sample in load.result.answered:
        assert sample.caption == model.captions[sample.image]
    # After the draining a request was refused before anything was done for it, or found nobody there.
    refusals = {"503 closing", "refused", "disconnected"} | {f"404 {error}" for error in _errors(load, 404)}
    assert set(load.result.errors()) <= refusals
    first_refused = min(sample.started_at for sample in load.result.failed)
    assert first_refused > signalled_at + DRAIN_SECONDS - 0.5
    assert "every request is answered" in log.read_text()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def _errors(load, status):
    return {sample.error for sample in load.result.failed if sample.status == status}
