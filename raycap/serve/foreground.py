"""A Serve configuration file served by one process, from its start to a signal, without the loss of a request: the
main of a container, or of a service of systemd's."""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve._private.api import serve_start
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, ServeApplicationSchema, ServeDeploySchema

from raycap import cluster
from raycap.config import Config, load_config
from raycap.errors import UserError
from raycap.job import USER_ERROR_EXIT_CODE
from raycap.progress import say
from raycap.serve.config import CaptionArgs
from raycap.serve.server import answers, failure_reason

_BUILDER = "raycap.serve.app:build"
_INGRESS = "ingress"


class ForegroundConfig(Config):
    """A file as ``serve deploy`` takes it, every key of Serve's included; what is here besides is for the command
    line, as ``drain_seconds=10``."""

    model_config = ConfigDict(extra="allow")

    applications: list[dict[str, Any]] = Field(min_length=1)
    """Each with ``import_path: raycap.serve.app:build``."""

    ready_seconds: float = Field(default=180.0, gt=0)
    """How long all replicas may take to load; a model from a hub may need more."""

    drain_seconds: float = Field(default=5.0, ge=0)
    """How long after a signal requests are still taken, while /readyz says 503: longer than those who decide where
    requests go need to see that."""

    def deployed(self) -> ServeDeploySchema:
        """What Serve is told.

        Raises:
            UserError: Serve, or the application, does not take it.
        """
        values = self.model_dump(exclude={"ready_seconds", "drain_seconds"})
        # Serve itself leaves out, without a word, what it does not know.
        _require_known(values, ServeDeploySchema, "")
        for index, given in enumerate(self.applications):
            _require_known(given, ServeApplicationSchema, f"applications.{index}.")
        try:
            schema = ServeDeploySchema.model_validate(values)
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
            raise UserError("\n".join(lines)) from None
        for application in schema.applications:
            if application.import_path != _BUILDER:
                raise UserError(
                    f"applications: {application.name} has import_path = {application.import_path}; give {_BUILDER}, "
                    "or use `serve run`, which takes any"
                )
            CaptionArgs.model_validate(application.args)
        return schema


def serve_until(stop: threading.Event, config: ForegroundConfig) -> None:
    """Deploy, declaratively, all applications of a configuration in the cluster of RAY_ADDRESS, or in a new one of this
    machine; once the event is set take them down, after every request that came in has its answer.

    Raises:
        UserError: the configuration is wrong, Serve runs there already, or not ready in time. Nothing of it is left
            running then.
    """
    schema = config.deployed()
    cluster.connect()
    if serve.status().proxies:
        raise UserError("Serve already runs in this cluster; change that with `serve deploy`, or start another cluster")
    options = schema.http_options.model_dump()
    client = serve_start(http_options=options, proxy_location=schema.proxy_location)
    try:
        client.deploy_apps(schema)
        host = "127.0.0.1" if options["host"] in ("0.0.0.0", "::") else options["host"]
        root = f"http://{host}:{options['port']}"
        urls = {app.name: root + (app.route_prefix or "/").rstrip("/") for app in schema.applications}
        if _wait_until_ready(urls, config.ready_seconds, stop):
            for name, url in urls.items():
                say(f"ready: {name} at {url}/")
            stop.wait()
            _drain(schema, config.drain_seconds)
    finally:
        serve.shutdown()


def main(argv: Sequence[str] | None = None) -> None:
    """``--config FILE.yaml [a.b=value ...]``; ends at SIGTERM or SIGINT with 0, at a wrong configuration with 2."""
    parser = argparse.ArgumentParser(description=serve_until.__doc__)
    parser.add_argument("--config", required=True, metavar="FILE.yaml", help="as for `serve deploy`")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="replaces a value of the file")
    arguments = parser.parse_intermixed_args(argv)
    stop = threading.Event()
    try:
        config = load_config(ForegroundConfig, arguments.config, arguments.overrides)
        config.deployed()
        cluster.connect()
        # Ray has a handler of its own from there on, which would end this process at once.
        _set_at_signals(stop)
        serve_until(stop, config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(USER_ERROR_EXIT_CODE)
    finally:
        ray.shutdown()


def _require_known(values: dict[str, Any], schema: type[BaseModel], prefix: str) -> None:
    unknown = sorted(set(values) - set(schema.model_fields))
    if unknown:
        keys = ", ".join(prefix + key for key in unknown)
        raise UserError(f"{keys}: unknown; Serve's keys there are {', '.join(schema.model_fields)}")


def _set_at_signals(stop: threading.Event) -> None:
    def handle(*_: object) -> None:
        # The second one ends it at once.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


def _wait_until_ready(urls: dict[str, str], ready_seconds: float, stop: threading.Event) -> bool:
    """Whether all are ready; False if told to stop before."""
    deadline = time.monotonic() + ready_seconds
    while not stop.wait(0.2):
        applications = serve.status().applications
        for name in urls:
            if name in applications and applications[name].status is ApplicationStatus.DEPLOY_FAILED:
                raise UserError(f"serve: {failure_reason(applications[name])}")
        waiting_for = [name for name, url in urls.items() if not answers(f"{url}/readyz", patience_seconds=15)]
        if not waiting_for:
            return True
        if time.monotonic() > deadline:
            raise UserError(
                f"ready_seconds = {ready_seconds:g}: not ready by then: {', '.join(waiting_for)}; give it longer, or "
                "see `serve status` and Ray's logs"
            )
    return False


def _drain(schema: ServeDeploySchema, drain_seconds: float) -> None:
    ingresses = [_ingress(application.name) for application in schema.applications]
    patience = max(CaptionArgs.model_validate(app.args).limits.request_seconds for app in schema.applications)
    say(f"draining: /readyz says 503, requests are taken for another {drain_seconds:g} s")
    _tell(ingresses, "drain")
    time.sleep(drain_seconds)
    _tell(ingresses, "close")
    deadline = time.monotonic() + patience
    while num_inside := sum(_tell(ingresses, "num_inside")):
        if time.monotonic() > deadline:
            say(f"{num_inside} requests have no answer after {patience:g} s, which all have; given up")
            return
        time.sleep(0.1)
    say("every request is answered")


def _ingress(name: str) -> DeploymentHandle[Any]:
    """Of the application of that name."""
    handle = serve.get_deployment_handle(_INGRESS, name)
    # Serve's throughput mode would have it use the event loop of whoever asks: there is none here.
    handle._init(_run_router_in_separate_loop=True)
    return handle


def _tell(ingresses: Sequence[DeploymentHandle[Any]], method: str) -> list[Any]:
    """Every replica of the applications' ingresses."""
    responses = [handle.broadcast(method) for handle in ingresses]
    return [result for response in responses for result in response.results(timeout_s=30)]
