"""Load on a server, by as many clients as wanted, with a record of every request; for tests and for benchmarks."""

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass(frozen=True)
class Sample:
    """One request. Times are of ``time.monotonic``."""

    started_at: float
    ended_at: float
    image: int
    """Which of the files."""

    status: int | None = None
    """None where there was no whole answer."""

    error: str | None = None
    """What came instead of an answer, or the answer's own ``error.type``."""

    retry_after: str | None = None
    caption: str | None = None
    version: str | None = None
    gate: float | None = None

    @property
    def seconds(self) -> float:
        return self.ended_at - self.started_at

    @property
    def is_retryable(self) -> bool:
        """Whether the client is told, or can see, that the same request may succeed later."""
        return (self.status == 503 and self.retry_after is not None) or self.error in ("refused", "disconnected")


@dataclass
class LoadResult:
    """All requests in the order in which they ended."""

    samples: list[Sample] = field(default_factory=list)

    @property
    def answered(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.status == 200]

    @property
    def failed(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.status != 200]

    def between(self, start: float, end: float = math.inf) -> "LoadResult":
        """Those that ended then."""
        return LoadResult([sample for sample in self.samples if start <= sample.ended_at < end])

    def errors(self) -> dict[str, int]:
        """How many of each kind."""
        return dict(Counter(f"{sample.status or ''} {sample.error}".strip() for sample in self.failed))

    def percentiles(self, *percents: float) -> dict[str, float]:
        """Milliseconds that answered requests took."""
        ordered = sorted(sample.seconds for sample in self.answered)
        if not ordered:
            return {}
        return {
            f"p{percent:g}_ms": round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))], 1)
            for percent in percents or (50, 95, 99)
        }

    def throughput(self, start: float, end: float) -> float:
        """Answers per second."""
        return len(self.between(start, end).answered) / (end - start)

    def per_second(self, start: float, end: float) -> list[int]:
        """Answers in each second."""
        counts = Counter(int(sample.ended_at - start) for sample in self.between(start, end).answered)
        return [counts[second] for second in range(math.ceil(end - start))]


class Load:
    """Clients in a thread of their own: from entering the context, or :meth:`start`, to :meth:`stop`.

    Args:
        url: of the server.
        files: images that each client sends in turn.
        clients: how many requests at once.
        rate: requests per second of all clients together; None: each client asks again as soon as it is answered.
        timeout_seconds: how long a client waits; one that has to is a hung request.
        pause_seconds: after an error, so that a server that is gone is not asked without end.
        retries: how often a client asks again where the answer says that it may; each is a sample of its own.
    """

    def __init__(
        self,
        url: str,
        files: Sequence[bytes],
        clients: int = 4,
        rate: float | None = None,
        timeout_seconds: float = 60.0,
        pause_seconds: float = 0.05,
        retries: int = 0,
    ) -> None:
        self.url, self.files, self.clients, self.rate = url, files, clients, rate
        self.timeout_seconds, self.pause_seconds, self.retries = timeout_seconds, pause_seconds, retries
        self.result = LoadResult()
        self._stopped = threading.Event()
        self._turns = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)

    def start(self) -> "Load":
        self._began_at = time.monotonic()
        self._thread.start()
        return self

    def stop(self) -> LoadResult:
        """No new requests; those in flight are waited for."""
        self._stopped.set()
        self._thread.join()
        return self.result

    def __enter__(self) -> "Load":
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def wait_for(self, condition: Callable[[LoadResult], Any], seconds: float = 60.0) -> None:
        """Go on until the record shows it.

        Raises:
            AssertionError: it does not in time.
        """
        deadline = time.monotonic() + seconds
        while not condition(LoadResult(list(self.result.samples))):
            assert time.monotonic() < deadline, f"not seen in {seconds:g} s; errors: {self.result.errors()}"
            time.sleep(0.05)

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=self.timeout_seconds)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            await asyncio.gather(*(self._client(session) for _ in range(self.clients)))

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self._stopped.is_set():
            turn, self._turns = self._turns, self._turns + 1
            if self.rate is not None:
                # By the clock, not by the last answer: a slow server does not slow the clients that are left.
                await asyncio.sleep(max(0.0, self._began_at + turn / self.rate - time.monotonic()))
            for _ in range(self.retries + 1):
                sample = await ask(session, self.url, self.files, turn % len(self.files))
                self.result.samples.append(sample)
                if sample.status == 200:
                    break
                await asyncio.sleep(self.pause_seconds)
                if not sample.is_retryable:
                    break


async def ask(session: aiohttp.ClientSession, url: str, files: Sequence[bytes], image: int) -> Sample:
    """One request for a caption; never raises."""
    started_at = time.monotonic()

    def sample(**values: Any) -> Sample:
        return Sample(started_at, time.monotonic(), image, **values)

    try:
        headers = {"Content-Type": "image/png"}
        async with session.post(f"{url}/v1/caption", data=files[image], headers=headers) as response:
            if response.content_type != "application/json":
                text = await response.text()
                retry_after = response.headers.get("Retry-After")
                return sample(status=response.status, error=text[:80], retry_after=retry_after)
            body = await response.json()
            if response.status != 200:
                retry_after = response.headers.get("Retry-After")
                return sample(status=response.status, error=body["error"]["type"], retry_after=retry_after)
            return sample(
                status=200,
                caption=body["caption"],
                version=body["model_version"],
                gate=body["refinement"]["gate"],
            )
    except TimeoutError:
        return sample(error="hung")
    except aiohttp.ClientConnectorError:
        return sample(error="refused")
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError):
        return sample(error="disconnected")
