"""What is known of a request by the time it is answered: the source of its log line and of the answer's headers."""

import asyncio
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastapi import Request

from raycap.serve.api.door import Held

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass
class RequestRecord:
    """Filled in as the request is worked on."""

    request_id: str
    deadline: float
    """By the event loop's clock."""

    key: str | None = None
    """Name of the client's key."""

    model: str | None = None
    version: str | None = None
    num_images: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each stage, all images together."""

    error: str | None = None
    """Type of the error that it was answered with."""

    trace: dict[str, str] = field(default_factory=dict)
    """Of its tasks; empty where it is not traced."""

    held: Held = field(init=False, repr=False)
    """Of what it brought; there from when it has passed the door."""

    cache: str | None = None
    """``hit``, if every image's answer was there already, or ``miss``."""

    @classmethod
    def start(cls, given_id: str | None, request_seconds: float) -> "RequestRecord":
        """Of a request that came just now; its own id is kept if a log can bear it."""
        sane = given_id is not None and _SANE_ID.fullmatch(given_id) is not None
        request_id = given_id if sane and given_id is not None else uuid.uuid4().hex
        return cls(request_id, asyncio.get_running_loop().time() + request_seconds)

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        for stage, of_stage in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + of_stage

    def add_cache(self, hit: bool) -> None:
        self.cache = "hit" if hit and self.cache != "miss" else "miss"

    def headers(self, with_id: bool) -> dict[str, str]:
        """Of the answer."""
        headers = {
            "X-Request-ID": self.request_id if with_id else None,
            "X-Raycap-Model": self.model,
            "X-Raycap-Model-Version": self.version,
            "X-Raycap-Cache": self.cache,
            "Server-Timing": ", ".join(f"{stage};dur={s * 1000:.1f}" for stage, s in self.seconds.items()),
        }
        return {name: value for name, value in headers.items() if value}


def record_of(request: Request) -> RequestRecord:
    """The record that the middleware began."""
    record: RequestRecord = request.state.record
    return record
