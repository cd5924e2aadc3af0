"""A catalogue of requests that mean harm or make no sense, and how each must be answered.

Every answer is a 4xx in the one form ``{"error": {"type", "message", "field"}}``, except where the HTTP
parser answers before the application is asked (``is_parsers``).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple
from urllib.parse import urlencode

import hostile_images
from serve.forbidden_urls import FORBIDDEN_URLS

PATH = "/v1/caption"
GOOD = hostile_images.good("PNG")
GOOD_BASE64 = base64.b64encode(GOOD).decode()
MALFORMED = frozenset({"malformed_request"})
ANY = frozenset()
"""Of kinds: whichever it is."""

_BOUNDARY = "limit"
_DEEP = 10_000


class Case(NamedTuple):
    """A request, and what its answer may be."""

    name: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    content: bytes
    statuses: frozenset[int]
    kinds: frozenset[str] = MALFORMED
    is_parsers: bool = False


def request_bytes(case: Case, host: str, *more_headers: tuple[str, str]) -> bytes:
    """The request as it goes over the wire: an HTTP client would mend or refuse some of them."""
    headers = [("Host", host), *case.headers, *more_headers, ("Connection", "close")]
    named = {name.lower() for name, _ in headers}
    if not named & {"content-length", "transfer-encoding"}:
        headers.append(("Content-Length", str(len(case.content))))
    lines = [f"{case.method} {case.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1") + case.content


@cache
def hostile_requests(urls_enabled: bool = False) -> list[Case]:
    """All cases for a server with the default limits; with keys, a good one must be added to each.

    Args:
        urls_enabled: whether the server fetches images by URL.
    """
    return [*_images(), *_content_types(), *_multipart(), *_json(), *_base64(), *_options(), *_urls(urls_enabled),
            *_http()]  # fmt: skip


def hostile_keys() -> list[Case]:
    """Good requests with a bad ``Authorization``, for a server with keys; add no other."""
    missing = ["", "Bearer", "Bearer ", "Basic YTpi", "Token abc", "Digest username=a", "bearer:abc", "null"]
    invalid = [
        *("Bearer null", "Bearer undefined", "Bearer *", "Bearer ' OR 1=1--", "Bearer ../../etc/passwd"),
        *("Bearer a, Bearer b", "Bearer \xe9\xff", "Bearer " + "a" * 4000, "Bearer {{7*7}}", "bEaReR a:b"),
    ]
    cases = [_post_json("no key", {"image": GOOD_BASE64}, {401}, {"missing_key"})]
    for kind, values in (("missing_key", missing), ("invalid_key", invalid)):
        for value in values:
            case = _post_json(f"authorization {value[:30]!r}", {"image": GOOD_BASE64}, {401}, {kind})
            cases.append(case._replace(headers=(*case.headers, ("Authorization", value))))
    api_key = _post_json("x-api-key", {"image": GOOD_BASE64}, {401}, {"missing_key"})
    return [*cases, api_key._replace(headers=(*api_key.headers, ("X-API-Key", "a" * 32)))]


def _post(name, content_type, content, statuses, kinds=MALFORMED, path=PATH) -> Case:
    headers = () if content_type is None else (("Content-Type", content_type),)
    return Case(name, "POST", path, headers, content, frozenset(statuses), frozenset(kinds))


def _post_json(name, value, statuses=(400, 422), kinds=MALFORMED) -> Case:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return _post(f"json: {name}", "application/json", content, statuses, kinds)


def _part(name: str, data: bytes, extra: str = '; filename="a.png"') -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + data + b"\r\n"


def _form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()


def _post_form(name, content, statuses=(400, 422), kinds=MALFORMED, boundary=f"; boundary={_BOUNDARY}") -> Case:
    return _post(f"form: {name}", f"multipart/form-data{boundary}", content, statuses, kinds)


def _images() -> Iterator[Case]:
    for name, (data, reason) in hostile_images.bad_images().items():
        oversized = reason == hostile_images.OVERSIZED
        statuses = {413} if oversized else {422} if data else {400}
        kinds = {"image_too_large"} if oversized else {"undecodable_image"} if data else MALFORMED
        yield _post(f"raw: {name}", "image/png", data, statuses, kinds)
        yield _post_form(f"image {name}", _form(_part("file", data)), statuses, kinds)
        if data:
            yield _post_json(f"image {name}", {"image": base64.b64encode(data).decode()}, statuses, kinds)


def _content_types() -> Iterator[Case]:
    types = [
        *(None, "", "text/plain", "text/html", "application/xml", "application/x-www-form-urlencoded", "image"),
        *("multipart/mixed; boundary=limit", "multipart/related; boundary=limit"),
        *("application/jsonp", "application/json/json", "video/mp4", "*/*", "a" * 1000, "application/x-python-pickle"),
    ]
    for content_type in types:
        name = f"content-type {str(content_type)[:40]!r}"
        yield _post(name, content_type, GOOD, {415, 400}, {"unsupported_content_type", "malformed_request"})
    for content_type in ("image/svg+xml", "image/png"):
        yield _post(f"svg as {content_type}", content_type, b"<svg/>", {415, 422}, ANY)


def _multipart() -> Iterator[Case]:
    file = _part("file", GOOD)
    whole = _form(file)
    yield _post_form("no boundary", whole, boundary="")
    yield _post_form("empty boundary", whole, boundary="; boundary=")
    yield _post_form("another boundary", whole, boundary="; boundary=other")
    yield _post_form("boundary of 10000 characters", whole, boundary="; boundary=" + "b" * 10_000)
    yield _post_form("empty body", b"")
    yield _post_form("only the end", _form())
    yield _post_form("two files", _form(file, file))
    yield _post_form("hundred files", _form(*[file] * 100))
    yield _post_form("ten thousand fields", _form(file, *[_part(f"f{n}", b"", "") for n in range(10_000)]), {400, 413})
    yield _post_form("another field's file", _form(_part("upload", GOOD)))
    yield _post_form("file as text", _form(_part("file", b"text", "")))
    yield _post_form("empty file", _form(_part("file", b"")))
    yield _post_form("no disposition", f"--{_BOUNDARY}\r\n\r\n".encode() + GOOD + f"\r\n--{_BOUNDARY}--\r\n".encode())
    yield _post_form("no name", whole.replace(b'name="file"; ', b""))
    yield _post_form("part header of 1 MB", whole.replace(b"\r\n\r\n", b"\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n", 1))
    yield _post_form("ten thousand part headers", whole.replace(b"\r\n\r\n", b"\r\nX: a" * 10_000 + b"\r\n\r\n", 1))
    yield _post_form("cut in a header", whole[:30])
    yield _post_form("bare line ends", whole.replace(b"\r\n", b"\n"), {400, 422}, ANY)
    yield _post_form("junk for a part", f"--{_BOUNDARY}\r\n\0\0\0\0".encode())
    nested = _part("file", whole).replace(b"\r\n\r\n", b"\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n", 1)
    yield _post_form("nested", _form(nested), {400, 415, 422}, ANY)
    yield _post_form("unknown field", _form(file, _part("colour", b"red", "")))
    yield _post_form("option as a file", _form(file, _part("num_beams", b"3")))
    yield _post_form("option of 1 MB", _form(file, _part("prompt", b"a" * 1_000_000, "")), {400, 413, 422}, ANY)
    yield _post_form("option twice", _form(file, _part("num_beams", b"1", ""), _part("num_beams", b"2", "")))
    yield _post_form("option not UTF-8", _form(file, _part("prompt", b"\xff\xfe", "")))
    for charset in ("idna", "punycode", "rot13", "utf-16", '"\\0"', "\xff", "a" * 1000):
        boundary = f"; boundary={_BOUNDARY}; charset={charset}"
        yield _post_form(f"charset {charset[:20]!r}", whole, {415}, {"unsupported_content_type"}, boundary)
    bad_charset = whole.replace(b"\r\n\r\n", b"; filename*=UTF-99''%ff\r\n\r\n", 1).replace(b'"file"', b'"other"')
    yield _post_form("file name of no charset", bad_charset)


def _json() -> Iterator[Case]:
    good = f'"image": "{GOOD_BASE64}"'.encode()
    bodies = {
        "empty": b"", "spaces": b"   ", "cut": b'{"image": "AA', "no JSON": b"{nonsense", "null": b"null",
        "true": b"true", "a number": b"1", "a string": b'"AAAA"', "a list": b"[]", "two objects": b"{" + good + b"}{}",
        "an empty object": b"{}", "single quotes": b"{'image': 'AAAA'}", "trailing comma": b"{" + good + b",}",
        "comment": b"{" + good + b"/* a */}", "byte-order mark": b"\xef\xbb\xbf{" + good + b"}x",
        "UTF-16": ("{" + good.decode() + "}").encode("utf-16"), "not UTF-8": b'{"image": "\xff\xfe"}',
        "overlong UTF-8": b'{"image": "\xc0\xaf"}', "NUL": b"\0", "NUL within": b'{"image": "AA\0AA"}',
        "lone surrogate": b'{"image": "\\ud800"}', "bad escape": b'{"image": "\\x41"}',
        "deep list": b"[" * _DEEP + b"]" * _DEEP, "deep object": b'{"image":' * _DEEP + b"1" + b"}" * _DEEP,
        "deep image": b'{"image": ' + b"[" * _DEEP + b"]" * _DEEP + b"}", "deep and cut": b"[" * 1_000_000,
        "deep unknown field": b"{" + good + b', "a": ' + b"[" * _DEEP + b"]" * _DEEP + b"}",
        "NaN": b"{" + good + b', "temperature": NaN}', "infinity": b"{" + good + b', "temperature": Infinity}',
        "minus infinity": b"{" + good + b', "gate": -Infinity}',
        "overflow": b"{" + good + b', "temperature": 1e999999}',
        "a number of 10000 digits": b"{" + good + b', "num_beams": ' + b"9" * 10_000 + b"}",
        "a fraction of 10000 digits": b"{" + good + b', "gate": 1.' + b"9" * 10_000 + b"e5}",
        "leading zero": b"{" + good + b', "num_beams": 03}', "hexadecimal": b"{" + good + b', "num_beams": 0x3}',
        "image twice": b"{" + good + b", " + good + b"}", "option twice": b"{" + good + b',"gate":1,"gate":0}',
        "polluted prototype": b"{" + good + b', "__proto__": {"gate": 1}}', "dunder": b"{" + good + b',"__class__":1}',
        "empty key": b"{" + good + b', "": 1}',
        "key of 10000 characters": b"{" + good + b',"' + b"k" * 10_000 + b'":1}',
        "ten thousand keys": b"{" + good + b"".join(b',"k%d":1' % n for n in range(10_000)) + b"}",
        "pickle": b"\x80\x04\x95", "XML": b"<image/>", "YAML": b"image: !!python/object/apply:os.system [id]",
    }  # fmt: skip
    for name, body in bodies.items():
        yield _post_json(name, body, {400, 413, 422}, {"malformed_request", "image_too_large"})
    # Small here, large once parsed, and each an error to tell of.
    floods = {"numbers": b"1,", "objects": b"{},", "texts": b'"",', "lists of lists": b"[[],[]],"}
    for name, item in floods.items():
        many = b"[" + item * 300_000 + b"1]"
        for path, field in (
            *((PATH, "image"), ("/v1/captions", "images"), ("/v1/embeddings", "input")),
            *(("/v1/chat/completions", "messages"), ("/v1/chat/completions", "tools")),
        ):
            body = b'{"%s": %s}' % (field.encode(), many)
            yield _post(f"json: 300,000 {name} for {field}", "application/json", body, {400, 413}, ANY, path)
    for name, image in {
        "a number": 5, "true": True, "null": None, "a list": [GOOD_BASE64], "an object": {"url": "a"}, "empty": "",
    }.items():  # fmt: skip
        yield _post_json(f"image is {name}", {"image": image})
    for name in ("colour", "Image", "image ", "num_beam", "NUM_BEAMS", "num-beams", "max_pixels", "limits", "file"):
        yield _post_json(f"unknown field {name!r}", {"image": GOOD_BASE64, name: 1})


def _base64() -> Iterator[Case]:
    texts = {
        "wrong alphabet": "@@@@", "cut": GOOD_BASE64[:-3], "too much padding": "AA======", "only padding": "====",
        "padding within": "AA==AAAA", "spaces only": "   ", "not ASCII": "\u00e9" * 4, "url alphabet": "-_-_",
        "full-width": "\uff21" * 4, "percent": "%41%41%41%41", "hex": "\\x89PNG", "a path": "/etc/passwd.",
        "a relative path": "../../etc/passwd", "empty data URL": "data:",
        "data URL without comma": "data:image/png;base64", "data URL not base64": "data:image/png,abc",
        "data URL of nothing": "data:image/png;base64,",
    }  # fmt: skip
    for name, text in texts.items():
        yield _post_json(f"base64 {name}", {"image": text}, {400, 422}, ANY)
    for kind in ("text/html", "image/svg+xml", "application/pdf", "text/javascript", "application/x-sh", ""):
        data = base64.b64encode(b"<svg onload='alert(1)'/>").decode()
        yield _post_json(f"data URL of {kind!r}", {"image": f"data:{kind};base64,{data}"}, {400, 415, 422}, ANY)
    huge = b'{"image": "' + b"A" * 30_000_000 + b'"}'
    yield _post_json("base64 of 30 MB", huge, {413}, {"image_too_large"})
    yield _post("raw: 21 MB", "image/png", bytes(21 * 1024 * 1024), {413}, {"image_too_large"})
    yield _post_form("file of 21 MB", _form(_part("file", bytes(21 * 1024 * 1024))), {413}, {"image_too_large"})


_WRONG_VALUES: dict[str, list[object]] = {
    **{name: [0, -1, 9, 10**30, 1.5, "x", "", [1], {"a": 1}] for name in ("num_captions", "num_beams", "passes")},
    "max_new_tokens": [0, -1, 65, 10**30, 1.5, "x", "", [1], {"a": 1}],
    "temperature": [-1, 2.001, 1e308, "x", "", "nan", "inf", [1], {"a": 1}],
    "top_p": [0, -0.1, 1.001, 1e308, "x", "", "nan", "inf", [1], {"a": 1}],
    "gate": [-0.001, 1.001, -1e308, "x", "", "nan", "inf", [1], {"a": 1}],
    **{name: ["perhaps", "", 2, -1, 0.5, [True], {"a": 1}] for name in ("explain", "stream")},
    "prompt": ["a" * 201, "a" * 1_000_000, "\u00e9" * 201, [1], {"a": 1}],
    "model": ["no-such-model", "../../etc/passwd", "s3://bucket/model", "a" * 10_000, [1], {"a": 1}],
}  # fmt: skip


def _options() -> Iterator[Case]:
    for option, values in _WRONG_VALUES.items():
        statuses = {400, 404, 422} if option == "model" else {400, 422}
        kinds = ANY if option == "model" else MALFORMED | {"invalid_option"}
        for index, value in enumerate(values):
            name = f"{option} = {str(value)[:20]!r} ({type(value).__name__} {index})"
            yield _post_json(name, {"image": GOOD_BASE64, option: value}, statuses, kinds)
            if isinstance(value, list | dict):
                continue
            # Text has no types: these mean the same in a form and in a query.
            part = _part(option, str(value).encode(), "")
            yield _post_form(name, _form(_part("file", GOOD), part), statuses | {413}, ANY)
            if len(str(value)) < 5000:
                path = f"{PATH}?{urlencode({option: value})}"
                yield _post(f"query: {name}", "image/png", GOOD, statuses, kinds, path)
    for query in ("num_beams=1&num_beams=2", "colour=red", "num_beams[]=3", "num_beams", "gate=%ff", "gate=1%00", "=1"):
        yield _post(f"query: {query}", "image/png", GOOD, {400, 422}, MALFORMED, f"{PATH}?{query}")


def _urls(urls_enabled: bool) -> Iterator[Case]:
    kind = "url_refused" if urls_enabled else "url_disabled"
    for index, url in enumerate(FORBIDDEN_URLS):
        # Without its scheme nothing tells a URL from broken base64.
        is_url = url.startswith(("http://", "https://"))
        kinds = {kind} if is_url else {kind, "malformed_request", "undecodable_image"}
        # A lone surrogate is already no JSON.
        kinds |= {"malformed_request"} if "\ud800" in url else set()
        yield _post_json(f"url {index} {ascii(url)[:60]}", {"image": url}, {400, 422}, kinds)


def _http() -> Iterator[Case]:
    body = json.dumps({"image": GOOD_BASE64}).encode()
    headers = (("Content-Type", "application/json"),)
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"):
        yield Case(f"method {method}", method, PATH, headers, body, frozenset({405}), frozenset({"method_not_allowed"}))
    paths = [
        *("/v1/captions", "/v2/caption", "/v1/caption/../../etc/passwd", "/..%2f..%2fetc/passwd", "/v1//caption"),
        *(
            "/%2e%2e/%2e%2e/etc/passwd",
            "/.git/config",
            "/.env",
            "/v1/caption%00",
            "/v1/caption;a=b",
            "/V1/CAPTION",
            "/v1/caption/",
        ),
        *("/static/..%5c..%5cwindows", "/v1/caption.php", "/admin", "/v1/caption%0d%0aX: y".replace(" ", "%20")),
    ]
    for path in paths:
        yield Case(f"path {path}", "POST", path, headers, body, frozenset({404, 400}), ANY)
    for name, more in {
        "header of 100 kB": [("X-Long", "a" * 100_000)],
        "two thousand headers": [(f"X-{n}", "a" * 50) for n in range(2000)],
        "header line folded into another": [("X-A", "b\r\n\0X-B: c")],
        "header name with a space": [("X A", "b")],
        "header with NUL": [("X-A", "b\0c")],
        "content-length no number": [("Content-Length", "many")],
        "content-length negative": [("Content-Length", "-1")],
        "content-length twice": [("Content-Length", str(len(body))), ("Content-Length", "1")],
        "length and chunks": [("Content-Length", "4"), ("Transfer-Encoding", "chunked")],
        "unknown transfer coding": [("Transfer-Encoding", "gzip")],
        "chunks that are none": [("Transfer-Encoding", "chunked")],
    }.items():
        statuses = frozenset({400, 413, 431})
        yield Case(name, "POST", PATH, (*headers, *more), body, statuses, ANY, is_parsers=True)
    for coding in ("gzip", "deflate", "br"):
        packed = (("Content-Encoding", coding),)
        yield Case(
            f"body in {coding}", "POST", PATH, headers + packed, b"\x1f\x8b" + bytes(50), frozenset({400, 415}), ANY
        )
