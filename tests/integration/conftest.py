"""Jobs as people start them: in a process of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


class Job:
    """A running ``python jobs/NAME.py``."""

    def __init__(self, name: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments]
        variables = os.environ | {"RAY_AUTH_MODE": "disabled"} | (environment or {})
        variables.pop("RAY_ADDRESS", None) if "RAY_ADDRESS" not in (environment or {}) else None
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait(self, timeout_seconds: float = 300) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        output, errors = self.process.communicate(timeout=timeout_seconds)
        return self.process.returncode, output, errors

    def kill_worker(self, name: str, *, when: Callable[[], bool], timeout_seconds: float = 240) -> int:
        """SIGKILL one of this job's Ray workers, chosen by a part of its process title, once ``when()`` holds."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"ended before the kill: {self.process.communicate()}"
            if when():
                for process in psutil.Process(self.process.pid).children(recursive=True):
                    if name in _title(process):
                        os.kill(process.pid, signal.SIGKILL)
                        return process.pid
            time.sleep(0.05)
        raise TimeoutError(f"no worker {name} to kill within {timeout_seconds} s")

    def stop(self) -> None:
        """End the job and every process it started."""
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            for process in [psutil.Process(self.process.pid), *children]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self.process.communicate()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture
def start_job() -> Iterator[Callable[..., Job]]:
    """Start jobs that are ended with the test."""
    jobs: list[Job] = []

    def start(name: str, *arguments: str, environment: dict[str, str] | None = None) -> Job:
        jobs.append(Job(name, *arguments, environment=environment))
        return jobs[-1]

    yield start
    for job in jobs:
        job.stop()
