"""Fetching by URL: what is refused, and how far a hostile server gets. The servers are real, on loopback."""

import asyncio
import gzip
import time

import pytest
from serve.forbidden_urls import FORBIDDEN_URLS

from raycap.serve.errors import RequestError
from raycap.serve.guard.fetch import ImageFetcher, UrlFetch

BODY = b"an image, for all the fetcher knows" * 100


def answer(body=b"", status="200 OK", *headers):
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body


def sized(body=BODY):
    return answer(body, "200 OK", f"Content-Length: {len(body)}")


def redirect(location, status="302 Found"):
    return answer(b"", status, f"Location: {location}", "Content-Length: 0")


def fetch(pages, url="http://127.0.0.1:PORT/", max_bytes=10_000, is_allowed=lambda _: True, resolve=None, **config):
    """Fetch from a server of ``pages``: bytes by path, or a function of the stream.

    Returns:
        the body or RequestError, and the requests that came.
    """
    requests = []

    async def handle(reader, writer):
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            requests.append(request.decode())
            page = pages[request.split()[1].decode()]
            if callable(page):
                await page(writer)
            else:
                writer.write(page.replace(b"PORT", str(port).encode()))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def run():
        nonlocal port
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings = UrlFetch(**{"enabled": True, "allowed_ports": (port,), "timeout_seconds": 5} | config)
        fetcher = ImageFetcher(settings, is_allowed, resolve)
        try:
            return await fetcher.fetch(url.replace("PORT", str(port)), max_bytes)
        except RequestError as error:
            return error
        finally:
            server.close()

    port = 0
    return asyncio.run(run()), requests


def answered(error):
    assert isinstance(error, RequestError), error
    assert str(error).startswith("image: URL ")
    assert ";" in str(error)
    assert "\n" not in str(error)
    return error.status, error.kind


def test_a_good_url_gives_its_bytes_and_sends_nothing_of_ours():
    body, [request] = fetch({"/cat.png?a=%2F&b=c": sized()}, "http://127.0.0.1:PORT/cat.png?a=%2F&b=c#here")
    assert body == BODY
    assert "Accept-Encoding: identity" in request
    assert not {"cookie", "authorization", "referer"} & {line.partition(":")[0].lower() for line in request.split("\n")}


def test_a_body_without_its_length_is_read_to_its_end():
    assert fetch({"/": answer(BODY)})[0] == BODY
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:9], BODY[9:], b""))
    assert fetch({"/": answer(chunked, "200 OK", "Transfer-Encoding: chunked")})[0] == BODY


def test_fetching_is_off_by_default():
    error, requests = fetch({}, enabled=False)
    assert (answered(error), requests) == ((400, "url_disabled"), [])
    assert not UrlFetch().enabled


@pytest.mark.parametrize("url", FORBIDDEN_URLS, ids=lambda url: ascii(url)[:60])
def test_forbidden_urls_are_refused_unasked(url):
    async def resolve(host, port):
        raise OSError("example.org is not asked for in tests")

    error = asyncio.run(refusal(ImageFetcher(UrlFetch(enabled=True), resolve=resolve), url))
    assert answered(error) == (400, "url_refused")
    assert len(str(error)) < 600


async def refusal(fetcher, url):
    with pytest.raises(RequestError) as error:
        await fetcher.fetch(url, 1000)
    return error.value


def test_there_are_many_forbidden_urls():
    assert len(set(FORBIDDEN_URLS)) >= 70


@pytest.mark.parametrize("addresses", [["10.1.2.3"], ["93.184.215.14", "10.1.2.3"], ["fe80::1%2"], ["8.8.8.8", "::1"]])
def test_a_name_is_refused_if_any_of_its_addresses_is_and_none_is_told(addresses):
    async def resolve(host, port):
        return addresses

    async def missing(host, port):
        raise OSError("no such name")

    fetcher = ImageFetcher(UrlFetch(enabled=True), resolve=resolve)
    error = asyncio.run(refusal(fetcher, "http://example.org/"))
    assert answered(error) == (400, "url_refused")
    assert not any(address in str(error) for address in addresses)
    unknown = ImageFetcher(UrlFetch(enabled=True), resolve=missing)
    assert str(asyncio.run(refusal(unknown, "http://example.org/"))) == str(error), "inner names would be told apart"


def test_the_address_that_was_checked_is_the_one_asked():
    resolved = []

    async def rebinding(host, port):
        resolved.append(host)
        return ["127.0.0.1"] if len(resolved) == 1 else ["127.0.0.2"]

    body, [request] = fetch({"/": sized()}, "http://example.org:PORT/", resolve=rebinding)
    assert (body, resolved) == (BODY, ["example.org"])
    assert "Host: example.org:" in request


def test_who_answers_is_looked_at_before_anything_is_sent():
    judged = []

    def once(address):
        judged.append(str(address))
        return len(judged) == 1

    error, requests = fetch({"/": sized()}, is_allowed=once)
    assert (answered(error), requests, judged) == ((400, "url_refused"), [], ["127.0.0.1"] * 2)


def only_first(address):
    return str(address) == "127.0.0.1"


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:PORT/inner",
        "//127.0.0.2:PORT/inner",
        "http://0x7f.2:PORT/inner",
        "http://[::1]:PORT/inner",
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:22/",
        "http://user@127.0.0.1:PORT/inner",
        "file:///etc/passwd",
        "\\\\127.0.0.1:PORT\\inner",
    ],
)
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_checked_like_a_first_url(location, status):
    error, requests = fetch({"/": redirect(location, status), "/inner": sized()}, is_allowed=only_first)
    assert (answered(error), len(requests)) == ((400, "url_refused"), 1)
    assert "redirects" in str(error)
    assert "127.0.0.2" not in str(error), "where it leads is not told"


def test_redirects_are_followed_to_the_image_without_cookies():
    first = answer(b"", "302 Found", "Location: b/c?d", "Set-Cookie: a=b; Path=/", "Content-Length: 0")
    pages = {"/a": first, "/b/c?d": redirect("http://127.0.0.1:PORT/e"), "/e": sized()}
    body, requests = fetch(pages, "http://127.0.0.1:PORT/a")
    assert (body, len(requests)) == (BODY, 3)
    assert "cookie" not in "".join(requests).lower()


@pytest.mark.parametrize(("max_redirects", "num_requests"), [(0, 1), (3, 4)])
def test_a_loop_of_redirects_ends(max_redirects, num_requests):
    error, requests = fetch({"/": redirect("/")}, max_redirects=max_redirects)
    assert (answered(error), len(requests)) == ((422, "url_unreachable"), num_requests)


def test_a_body_said_to_be_too_long_is_not_read():
    error, _ = fetch({"/": answer(b"", "200 OK", "Content-Length: 10001")})
    assert answered(error) == (413, "image_too_large")


def test_an_endless_body_without_its_length_is_left_at_the_limit():
    num_sent = 0

    async def endless(writer):
        nonlocal num_sent
        writer.write(answer())
        while True:
            writer.write(bytes(10_000))
            await writer.drain()
            num_sent += 10_000

    error, _ = fetch({"/": endless}, max_bytes=100_000)
    assert answered(error) == (413, "image_too_large")
    assert num_sent < 20_000_000


@pytest.mark.parametrize("part", ["head", "body"])
def test_an_answer_in_drops_is_left_when_the_time_is_over(part):
    async def drip(writer):
        writer.write(b"HTTP/1.1 200 OK\r\n" if part == "head" else answer())
        for _ in range(200):
            writer.write(b"a:b\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)

    start = time.monotonic()
    error, _ = fetch({"/": drip}, timeout_seconds=0.4)
    assert answered(error) == (422, "url_unreachable")
    assert "0.4 s" in str(error)
    assert time.monotonic() - start < 2


def test_a_name_slow_to_resolve_is_left_when_the_time_is_over():
    async def slow(host, port):
        await asyncio.sleep(10)

    assert answered(fetch({}, "http://example.org:PORT/", resolve=slow, timeout_seconds=0.2)[0])[0] == 422


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate", "br", "zstd", "identity, gzip", "x"])
def test_a_packed_body_is_refused_and_never_unpacked(coding):
    bomb = gzip.compress(bytes(9_000_000))
    assert len(bomb) < 10_000
    page = answer(bomb, "200 OK", f"Content-Encoding: {coding}", f"Content-Length: {len(bomb)}")
    error, _ = fetch({"/": page})
    assert answered(error) == (422, "url_unreachable")
    assert "compressed" in str(error)


@pytest.mark.parametrize(
    "page",
    [
        answer(b"", "404 Not Found", "Content-Length: 0"),
        answer(b"", "500 Oops", "Content-Length: 0"),
        answer(BODY, "206 Partial Content"),
        answer(b"", "204 No Content"),
        answer(b"", "302 Found", "Content-Length: 0"),
        answer(b"", "304 Not Modified"),
        answer(b"short", "200 OK", "Content-Length: 100"),
        answer(b"", "200 OK", "Content-Length: -1"),
        answer(b"", "200 OK", "Content-Length: 1", "Content-Length: 2"),
        answer(b"", "200 OK", "X: " + "a" * 100_000),
        answer(b"zz\r\n", "200 OK", "Transfer-Encoding: chunked"),
        b"",
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x00\x00",
    ],
)
def test_a_server_that_gives_no_image_is_unreachable(page):
    error, _ = fetch({"/": page})
    assert answered(error) == (422, "url_unreachable")
    assert "127.0.0.1:" not in str(error).replace(str(error).split("'")[1], ""), "only the client's own URL is repeated"


def test_a_closed_port_is_unreachable():
    assert answered(fetch({}, "http://127.0.0.2:PORT/")[0]) == (422, "url_unreachable")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [("images.example.org", True), ("EXAMPLE.org", True), ("badexample.org", False), ("example.org.evil.com", False)],
)
def test_only_hosts_that_the_operator_names_are_asked(host, allowed):
    async def resolve(host, port):
        return ["127.0.0.1"]

    result, requests = fetch(
        {"/": sized()}, f"http://{host}:PORT/", resolve=resolve, allowed_hosts=("example.org", "example.net")
    )
    assert (result == BODY, len(requests)) == (allowed, int(allowed))


def test_a_name_is_resolved_and_asked_as_the_allow_list_has_it():
    resolved = []

    async def resolve(host, port):
        resolved.append(host.encode("idna").decode())  # as getaddrinfo does with whatever it is given
        return ["127.0.0.1"]

    # To IDNA 2003, which encodes it on the way, the decoded name would be strasse.de: another host.
    name = "xn--strae-oqa.de"
    body, [request] = fetch({"/": sized()}, f"http://{name}:PORT/", resolve=resolve, allowed_hosts=(name,))
    assert (body, resolved) == (BODY, [name])
    assert f"Host: {name}:" in request
    error, requests = fetch({}, f"http://{name}:PORT/", resolve=resolve, allowed_hosts=("strasse.de",))
    assert (answered(error), requests, resolved) == ((400, "url_refused"), [], [name])


def test_proxies_of_the_environment_are_not_asked(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.2:1")
    assert fetch({"/": sized()})[0] == BODY
