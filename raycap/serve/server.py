"""The application served from within a program: started with a deadline, stopped at the end."""

import socket
import time
import urllib.request

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from raycap.errors import UserError
from raycap.serve.app import build
from raycap.serve.config import CaptionArgs

HOST = "127.0.0.1"
_APPLICATION = "caption"


def start(args: CaptionArgs, port: int = 8000, ready_seconds: float = 180.0) -> str:
    """Serve captions on this machine's loopback address, in the Ray cluster this process is connected to.

    Args:
        args: what to serve.
        port: 0 takes a free one.
        ready_seconds: how long all replicas may take to load; a model from a hub may need more.

    Returns:
        The URL, ready to answer: ``POST {url}/v1/caption``. Call :func:`stop` in the end.

    Raises:
        UserError: a wrong path or pairing of models, a port in use, no room in the cluster, Serve running
            there already, or not ready in time. Nothing of it is left running then.
    """
    application = build(args)
    if serve.status().proxies:
        # It would keep its own address, and stop() would end what it serves.
        raise UserError("Serve already runs in this cluster; end that with `serve shutdown`, or start another cluster")
    _require_room(args)
    port = _free_port(port)
    url = f"http://{HOST}:{port}"
    serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=HOST, port=port))
    try:
        # serve.run would wait without end for a replica that finds no place.
        target = serve.RunTarget(application, _APPLICATION)
        serve.run_many([target], wait_for_applications_running=False)
        _wait_until_ready(f"{url}/healthz", ready_seconds)
    except BaseException:
        stop()
        raise
    return url


def stop() -> None:
    """End the application and Serve with it; Ray stays."""
    serve.shutdown()


def _require_room(args: CaptionArgs) -> None:
    deployments = args.deployments().values()
    have = ray.cluster_resources()
    for kind, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        needed = sum(getattr(deployment, field) * deployment.num_replicas for deployment in deployments)
        if needed > have.get(kind, 0):
            raise UserError(
                f"{field}: all replicas together reserve {needed:g}, the cluster has {have.get(kind, 0):g} {kind}s; "
                f"lower {field} or num_replicas"
            )


def _free_port(port: int) -> int:
    with socket.socket() as candidate:
        # As servers do: a port whose last connections linger is free.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port = {port}: {error.strerror}; give a free one, or 0") from None
        return int(candidate.getsockname()[1])


def _wait_until_ready(health_url: str, ready_seconds: float) -> None:
    deadline = time.monotonic() + ready_seconds
    while True:
        status = serve.status().applications[_APPLICATION]
        if status.status is ApplicationStatus.DEPLOY_FAILED:
            raise UserError(f"serve: {failure_reason(status)}")
        # The proxy learns of the replicas a moment after the controller.
        if status.status is ApplicationStatus.RUNNING and answers(health_url):
            return
        if time.monotonic() > deadline:
            slow = [f"{name} ({stage.status})" for name, stage in status.deployments.items() if stage.message]
            raise UserError(
                f"ready_seconds = {ready_seconds:g}: not ready by then, waiting for {', '.join(slow) or 'the proxy'}; "
                "give it longer, or see Ray's logs"
            )
        time.sleep(0.2)


def failure_reason(status: ApplicationStatusOverview) -> str:
    """Of an application that could not be deployed; a failed replica's message ends with the exception's own line."""
    messages = [stage.message for stage in status.deployments.values() if stage.status == "DEPLOY_FAILED"]
    lines = [line.strip() for line in "\n".join(messages or [status.message]).splitlines()]
    errors = [line.partition("UserError: ")[2] for line in lines if "UserError: " in line]
    return errors[-1] if errors else " ".join(" ".join(messages or [status.message]).split())


def answers(url: str, patience_seconds: float = 5.0) -> bool:
    """Whether a GET of the URL is answered 200 in time."""
    try:
        with urllib.request.urlopen(url, timeout=patience_seconds) as response:
            return bool(response.status == 200)
    except OSError:
        return False
