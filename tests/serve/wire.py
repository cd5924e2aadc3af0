"""HTTP as bytes over a socket: a client library would mend or refuse what a hostile client sends."""

from __future__ import annotations

import http.client
import io
import json
import select
import socket
import time
from typing import NamedTuple
from urllib.parse import urlsplit

_CHUNK_BYTES = 256 * 1024


class Answer(NamedTuple):
    """Of a server; without a status it closed the connection, or the deadline passed."""

    status: int | None
    headers: dict[str, str]
    body: bytes
    seconds: float
    num_sent: int
    """Bytes of the request that the server took until its answer was whole."""

    @property
    def error(self) -> dict:
        """What stands in our one form; empty where the answer has another."""
        try:
            body = json.loads(self.body)
        except ValueError:
            return {}
        return body["error"] if isinstance(body, dict) and set(body) == {"error"} else {}


def connect(url: str, seconds: float = 20) -> socket.socket:
    """A socket to a server."""
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), seconds)


def exchange(url: str, request: bytes, seconds: float = 20) -> Answer:
    """Send a request and read the answer at the same time: a server may answer, and close, before it has read all."""
    with connect(url, seconds) as connection:
        return finish(connection, request, seconds)


def finish(connection: socket.socket, request: bytes, seconds: float = 20) -> Answer:
    """Send the rest of a request, and read until the server closes or the answer is whole."""
    started_at, received, num_sent = time.monotonic(), bytearray(), 0
    unsent = memoryview(request)
    connection.setblocking(False)
    while (left := started_at + seconds - time.monotonic()) > 0:
        readable, writable, _ = select.select([connection], [connection] if unsent else [], [], left)
        try:
            if writable:
                taken = connection.send(unsent[:_CHUNK_BYTES])
                unsent, num_sent = unsent[taken:], num_sent + taken
        except (BrokenPipeError, ConnectionResetError):
            unsent = unsent[:0]
        if readable:
            try:
                data = connection.recv(_CHUNK_BYTES)
            except ConnectionResetError:
                break
            received += data
            if not data or parse(bytes(received)) is not None:
                break
    status, headers, body = parse(bytes(received)) or (None, {}, bytes(received))
    return Answer(status, headers, body, time.monotonic() - started_at, num_sent)


def parse(received: bytes) -> tuple[int, dict[str, str], bytes] | None:
    """Status, headers in lower case and body of an answer; None unless it is whole."""
    if b"\r\n\r\n" not in received:
        return None
    response = http.client.HTTPResponse(_Received(received))  # type: ignore[arg-type] - a socket's one method
    try:
        response.begin()
        body = response.read()
    except (http.client.HTTPException, ValueError):
        return None
    headers = {name.lower(): value for name, value in response.getheaders()}
    if len(body) < int(headers.get("content-length", "0")) and response.length:
        return None
    return response.status, headers, body


class _Received:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self.data)
