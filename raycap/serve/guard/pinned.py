"""Connections to addresses settled beforehand: a name that means another host a moment later changes nothing."""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from raycap.serve.guard.addresses import IPAddress


class ForbiddenPeerError(Exception):
    """A connection's other end is not one of those it was meant for."""


class SystemResolver:
    """The system's resolver, in threads of its own: names slow to resolve keep nobody else waiting."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="raycap-resolve")

    async def __call__(self, host: str, port: int) -> list[str]:
        def resolve() -> list[str]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return [str(address[0]) for *_, address in found]

        return await asyncio.get_running_loop().run_in_executor(self._threads, resolve)


class _PinnedResolver(AbstractResolver):
    """Gives the addresses that were checked."""

    def __init__(self, addresses: list[IPAddress]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in self._addresses
            if family in (socket.AF_UNSPEC, socket.AF_INET if address.version == 4 else socket.AF_INET6)
        ]

    async def close(self) -> None:
        pass


class PinnedConnector(aiohttp.TCPConnector):
    """Connects to checked addresses only, and looks once more who answered before anything is sent.

    Args:
        addresses: of the one host that it will be asked for.
        is_allowed: the rule that they passed.

    Raises:
        ForbiddenPeerError: by ``connect``, another one answered.
    """

    def __init__(self, addresses: list[IPAddress], is_allowed: Callable[[IPAddress], bool]) -> None:
        super().__init__(
            resolver=_PinnedResolver(addresses), use_dns_cache=False, force_close=True, family=socket.AF_UNSPEC
        )
        self._pinned, self._is_allowed = addresses, is_allowed

    async def connect(self, *arguments: Any, **keywords: Any) -> Any:
        connection = await super().connect(*arguments, **keywords)
        transport = connection.transport
        peer = transport.get_extra_info("peername") if transport is not None else None
        address = ip_address(peer[0]) if peer else None
        if address not in self._pinned or not self._is_allowed(address):
            connection.close()
            raise ForbiddenPeerError
        return connection
