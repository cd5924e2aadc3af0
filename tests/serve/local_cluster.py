"""A Ray cluster on this machine, as `ray start` and `serve deploy` make it, with parts that can be
killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from ray.util.state import list_actors, list_nodes

HOST = "127.0.0.1"
# None that was set for other clusters of the same user.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "raycap.serve.proxy:middlewares",
}
# Ray then listens on the loopback address alone, and takes no second node.
_ONE_NODE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class LocalCluster:
    """A head from :meth:`start` on; everything it started is gone after :meth:`stop`.

    Args:
        environment: of the nodes, beside this process's own.
        host: address of the head. More nodes can come if it is one of a :mod:`private_network`.
    """

    def __init__(self, environment: Mapping[str, str] = {}, host: str = HOST) -> None:
        self.host = host
        # Ray's sockets' paths have 107 characters at most.
        self.directory = Path(tempfile.mkdtemp(prefix="ray-"))
        self.environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.environment |= _ENVIRONMENT | (_ONE_NODE if host == HOST else {}) | dict(environment)
        self.ray_port, self.dashboard_port, self.http_port, self.client_port = free_ports(4)
        self.nodes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.http_port}"

    @property
    def dashboard(self) -> str:
        return f"http://{self.host}:{self.dashboard_port}"

    def __enter__(self) -> "LocalCluster":
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self, num_cpus: int = 4) -> "LocalCluster":
        options = [f"--port={self.ray_port}", f"--temp-dir={self.directory}", f"--num-cpus={num_cpus}"]
        options += [
            f"--dashboard-host={self.host}",
            f"--dashboard-port={self.dashboard_port}",
            "--include-dashboard=true",
        ]
        self._start_node(self.host, ["--head", f"--ray-client-server-port={self.client_port}", *options])
        wait_until(lambda: _get(f"{self.dashboard}/api/version") is not None, 90, self.log)
        return self

    def add_node(self, host: str, num_cpus: int = 4) -> subprocess.Popen[bytes]:
        """Another machine, as far as Ray can tell; :func:`kill_tree` is its loss of power."""
        node = self._start_node(host, [f"--address={self.host}:{self.ray_port}", f"--num-cpus={num_cpus}"])
        wait_until(lambda: self.node_of(host) is not None, 90, self.log)
        return node

    def node_of(self, host: str) -> str | None:
        """The id of the living node at an address."""
        # Ray takes dead nodes, which are filtered out, for ones that it could not ask.
        nodes = list_nodes(address=self.dashboard, filters=[("state", "=", "ALIVE")], raise_on_missing_output=False)
        return next((node.node_id for node in nodes if node.node_ip == host), None)

    def _start_node(self, host: str, options: list[str]) -> subprocess.Popen[bytes]:
        command = [*_script("ray"), "start", "--block", "--disable-usage-stats", "--object-store-memory=100000000"]
        # Any free port: other clusters of this machine want the same of the default range.
        command += [f"--node-ip-address={host}", "--min-worker-port=0", "--max-worker-port=0", *options]
        with (self.directory / f"node-{len(self.nodes)}.log").open("w") as log:
            node = subprocess.Popen(
                command,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.nodes.append(node)
        return node

    def stop(self) -> None:
        for node in reversed(self.nodes):
            kill_tree(node)
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """The errors in what the nodes and Serve have written: what a failed test shows."""
        logs = [*self.directory.glob("node-*.log"), *self.directory.glob("session_latest/logs/serve/*.log")]
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
        return "\n".join(line[:1000] for line in lines if "rror" in line)[-5000:]

    def deploy(self, application: Mapping[str, Any], *, proxy_location: str = "HeadOnly") -> None:
        """`serve deploy` of a file with one application; returns when it is taken, not when it is done."""
        config = {
            "proxy_location": proxy_location,
            "http_options": {"host": self.host, "port": self.http_port},
            "logging_config": {"encoding": "JSON"},
            "applications": [dict(application)],
        }
        path = self.directory / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        done = self.serve("deploy", str(path))
        assert done.returncode == 0, done.stdout + done.stderr

    def serve(self, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command of Serve's own."""
        return subprocess.run(
            [*_script("serve"), command, "--address", self.dashboard, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """The first application's part of `serve status`, which reads this too."""
        details = _get(f"{self.dashboard}/api/serve/applications/") or {}
        return next(iter(details.get("applications", {}).values()), {"status": "none"})

    def wait_until_running(self, seconds: float = 120.0) -> None:
        wait_until(lambda: self.status()["status"] == "RUNNING" and is_ready(self.url), seconds, self._explain)

    def _explain(self) -> str:
        return f"{json.dumps(self.status(), default=str)[:2000]}\n{self.log()}"

    def replicas(self) -> dict[str, dict[int, str]]:
        """The pids of each deployment's living replicas, each with its node's id."""
        found: dict[str, dict[int, str]] = {}
        for actor in list_actors(address=self.dashboard, filters=[("state", "=", "ALIVE")], limit=1000, detail=True):
            kind, _, rest = actor.class_name.partition(":")
            if kind == "ServeReplica":
                found.setdefault(rest.rpartition(":")[2], {})[actor.pid] = actor.node_id
        return found

    def memory_bytes(self) -> int:
        """Resident memory of all replicas and proxies together."""
        total = 0
        for actor in list_actors(address=self.dashboard, filters=[("state", "=", "ALIVE")], limit=1000):
            if actor.class_name.startswith(("ServeReplica", "ProxyActor")):
                try:
                    total += psutil.Process(actor.pid).memory_info().rss
                except psutil.NoSuchProcess:
                    continue
        return total


def disaggregated(model: Mapping[str, Any], **args: Any) -> dict[str, Any]:
    """An application of three stages without caches, so that each request goes through all of them."""
    stages = {name: args.pop(name, {}) for name in ("encoder", "refiner", "decoder")}
    stages["encoder"] = {"cache_bytes": 0} | stages["encoder"]
    deployments = args.pop("deployments", [])
    return {
        "name": "caption",
        "route_prefix": "/",
        "import_path": "raycap.serve.app:build",
        "args": {
            "shape": {"kind": "disaggregated", **stages},
            "models": {"caption": dict(model)},
            "caption_cache_bytes": 0,
            **args,
        },
        "deployments": deployments,
    }


def is_ready(url: str) -> bool:
    return _get(f"{url}/readyz") is not None


def wait_until(condition: Callable[[], Any], seconds: float, explain: Callable[[], str] = str) -> None:
    """Raises AssertionError, with the explanation, if it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s\n{explain()}"
        time.sleep(0.1)


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """A process and all that came of it, at once."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(family, timeout=10)


def free_ports(count: int) -> list[int]:
    """Outside 10002-19999, which Ray gives to its workers."""
    sockets, ports = [], []
    while len(ports) < count:
        candidate = socket.socket()
        sockets.append(candidate)
        candidate.bind((HOST, 0))
        port = candidate.getsockname()[1]
        if not 10002 <= port <= 19999:
            ports.append(port)
    for candidate in sockets:
        candidate.close()
    return ports


def _script(name: str) -> list[str]:
    return [str(Path(sys.executable).with_name(name))]


def _get(url: str) -> Any:
    try:
        response = httpx.get(url, timeout=15)
    except httpx.HTTPError:
        return None
    return response.json() if response.status_code == 200 else None
