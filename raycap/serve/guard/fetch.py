"""Fetching the image behind a client's URL, without letting the client reach what only the server can.

Each hop is checked afresh: the URL is taken apart and put together again from its checked parts, its
host is resolved once, every address it has must be public, and the connection goes to these addresses
and no others, whatever the name would resolve to a moment later.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from urllib.parse import quote, urljoin, urlsplit

import aiohttp
from pydantic import Field
from yarl import URL

from raycap.config import Config
from raycap.serve.errors import RequestError
from raycap.serve.guard.addresses import IPAddress, is_public, parse_host
from raycap.serve.guard.pinned import ForbiddenPeerError, PinnedConnector, SystemResolver

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_MAX_URL_CHARACTERS = 2048
_NOT_PUBLIC = "its host has no address, or one outside the public internet"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "raycap"}
_PATH_CHARACTERS = "/%:@!$&'()*+,;=~-._?"


class UrlFetch(Config):
    """Whether and how the server fetches images that a request names by URL."""

    enabled: bool = False
    """Off, a request with a URL is refused: a server that fetches for others is a risk to its network."""

    timeout_seconds: float = Field(default=10, gt=0)
    """From the name's resolution to the last byte, all redirects included."""

    connect_seconds: float = Field(default=3, gt=0)
    """For one connection with its TLS handshake."""

    max_redirects: int = Field(default=3, ge=0)
    """Followed from the first URL on."""

    allowed_ports: tuple[int, ...] = (80, 443)
    """Of the URL and of all redirects."""

    allowed_hosts: tuple[str, ...] | None = None
    """``example.org`` allows it and all its subdomains; by default any public host is allowed."""


class _RefusedError(Exception):
    """A URL, or one that it redirects to, must not be asked; the message is the reason."""


class _UnreachableError(Exception):
    """The other server gave no image; the message is the reason."""


class _TooLargeError(Exception):
    """More bytes than allowed."""


class ImageFetcher:
    """Fetches images by URL.

    Args:
        config: the rules.
        is_allowed: tells whether an address may be asked.
        resolve: gives a name's addresses; by default the system's.
    """

    def __init__(
        self, config: UrlFetch, is_allowed: Callable[[IPAddress], bool] = is_public, resolve: Resolve | None = None
    ) -> None:
        self._config, self._is_allowed = config, is_allowed
        self._resolve = resolve or SystemResolver()

    async def fetch(self, url: str, max_bytes: int, came: Callable[[int], None] = lambda _: None) -> bytes:
        """The body behind an http(s) URL.

        Args:
            url: the client's.
            max_bytes: of the body.
            came: told of bytes as they come; what it raises ends the fetch.

        Raises:
            RequestError: 400 ``url_disabled`` or ``url_refused``, 422 ``url_unreachable``,
                413 ``image_too_large``. What a name resolved to is never told.
        """
        config = self._config
        if not config.enabled:
            message = "image: URL not fetched; send the image itself, or ask the operator to enable fetching"
            raise RequestError(400, "url_disabled", message, "image")
        shown = f"image: URL {url[:80]!a}{'...' if len(url) > 80 else ''}"
        try:
            async with asyncio.timeout(config.timeout_seconds):
                return await self._follow(url, max_bytes, came)
        except _RefusedError as error:
            message = f"{shown}: {error}; give a public http(s) address or send the image itself"
            raise RequestError(400, "url_refused", message, "image") from None
        except ForbiddenPeerError:
            message = f"{shown}: {_NOT_PUBLIC}; give a public http(s) address or send the image itself"
            raise RequestError(400, "url_refused", message, "image") from None
        except _UnreachableError as error:
            reason = str(error)
        except _TooLargeError:
            message = f"{shown}: more than {max_bytes} bytes; send a smaller image"
            raise RequestError(413, "image_too_large", message, "image") from None
        except TimeoutError:
            reason = f"not answered within {config.timeout_seconds:g} s (connection: {config.connect_seconds:g} s)"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Its text would name addresses.
            reason = f"failed ({type(error).__name__})"
        message = f"{shown}: {reason}; check that it opens elsewhere, or send the image itself"
        raise RequestError(422, "url_unreachable", message, "image")

    async def _follow(self, url: str, max_bytes: int, came: Callable[[int], None]) -> bytes:
        for num_redirects in range(self._config.max_redirects + 1):
            try:
                hop = self._check(url)
                addresses = await self._addresses(hop)
            except _RefusedError as error:
                raise _RefusedError(f"redirects where it must not: {error}" if num_redirects else str(error)) from None
            body, location = await self._ask(hop, addresses, max_bytes, came)
            if location is None:
                return body
            url = urljoin(str(hop), location)
        raise _UnreachableError(f"redirects more than {self._config.max_redirects} times")

    def _check(self, url: str) -> URL:
        """The URL rebuilt from its checked parts, so that nobody reads it otherwise than it was checked."""
        if len(url) > _MAX_URL_CHARACTERS:
            raise _RefusedError(f"longer than {_MAX_URL_CHARACTERS} characters")
        if any(character <= " " or character in "\\\x7f" for character in url):
            raise _RefusedError("it has a space, a control character or a backslash")
        try:
            parts = urlsplit(url)
            path, query = (quote(part, safe=_PATH_CHARACTERS) for part in (parts.path, parts.query))
        except ValueError:
            raise _RefusedError("not a URL") from None
        if parts.scheme not in _DEFAULT_PORTS:
            raise _RefusedError("neither http:// nor https://")
        if "@" in parts.netloc:
            raise _RefusedError("it has a user name")
        host_end = parts.netloc.rfind("]") + 1
        host_text, colon, port_text = parts.netloc[host_end:].partition(":")
        host_text = parts.netloc[:host_end] + host_text
        if colon and not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5):
            raise _RefusedError("its port is no number")
        port = int(port_text) if colon else _DEFAULT_PORTS[parts.scheme]
        if port not in self._config.allowed_ports:
            raise _RefusedError(f"its port is none of {', '.join(map(str, self._config.allowed_ports))}")
        try:
            host = str(parse_host(host_text))
        except ValueError:  # UnicodeError too
            raise _RefusedError("its host is neither a name nor an address") from None
        netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        hop = URL(f"{parts.scheme}://{netloc}{path or '/'}{'?' if query else ''}{query}", encoded=True)
        suffixes = self._config.allowed_hosts
        if suffixes is not None and not any(f".{hop.raw_host}".endswith(f".{suffix.lower()}") for suffix in suffixes):
            raise _RefusedError("its host is not one that the operator allows")
        return hop

    async def _addresses(self, hop: URL) -> list[IPAddress]:
        # Not ``host``, which is decoded: the system's resolver would encode it anew, by an older standard, to
        # another name than the one that was allowed.
        host, port = hop.raw_host, hop.port
        assert host is not None  # _check put them there
        assert port is not None
        try:
            addresses = [ip_address(host)]
        except ValueError:
            try:
                addresses = [ip_address(address) for address in await self._resolve(host, port)]
            except (OSError, UnicodeError):
                addresses = []
        if not addresses or not all(map(self._is_allowed, addresses)):
            # One answer for both: else a client could learn which names the inner network knows.
            raise _RefusedError(_NOT_PUBLIC)
        return addresses

    async def _ask(
        self, hop: URL, addresses: list[IPAddress], max_bytes: int, came: Callable[[int], None]
    ) -> tuple[bytes, str | None]:
        """The body, or where it is said to be."""
        # A connector each: a connection kept open would serve a later hop that was checked otherwise.
        connector = PinnedConnector(addresses, self._is_allowed)
        timeout = aiohttp.ClientTimeout(total=None, connect=self._config.connect_seconds)
        async with (
            aiohttp.ClientSession(
                connector=connector,
                timeout=timeout,
                headers=_HEADERS,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            ) as session,
            session.get(hop, allow_redirects=False) as answer,
        ):
            if answer.status in _REDIRECTS:
                if not (location := answer.headers.get("Location")):
                    raise _UnreachableError(f"answered with {answer.status} and no location")
                return b"", location
            if answer.status != 200:
                raise _UnreachableError(f"answered with {answer.status}")
            # Unpacked, a few bytes may be many; nobody was asked to pack them.
            if any(coding.strip().lower() != "identity" for coding in answer.headers.getall("Content-Encoding", ())):
                raise _UnreachableError("answered with a compressed body")
            if (answer.content_length or 0) > max_bytes:
                raise _TooLargeError
            body = bytearray()
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > max_bytes:
                    raise _TooLargeError
                came(len(chunk))
            return bytes(body), None
