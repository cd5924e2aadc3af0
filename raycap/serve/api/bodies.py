"""Reading a request's body, never more of it than the limits allow."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from jiter import from_json
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from raycap.serve.api.images import ImageInput, base64_bytes, image_too_large
from raycap.serve.api.record import record_of
from raycap.serve.errors import RequestError
from raycap.serve.guard.limits import Limits

# Room for what surrounds the image in a body: part headers, braces, options, a data URL's head.
_ENVELOPE_BYTES = 16 * 1024
_MAX_FORM_FIELDS = 32

# Each but a list's or an object's first follows a comma, and base64 has none. Three bytes of JSON, "{},", can become a
# hundred in memory, and each wrong value an error to describe.
_MAX_JSON_COMMAS = 4096

REMEDY = (
    "send multipart/form-data with the image in field `file`, or application/json with base64 in `image`, "
    "or the image file itself as image/*"
)


@dataclass(frozen=True)
class Form:
    """Images and options out of a form, or of a raw body and a query: all options are strings."""

    images: list[ImageInput]
    options: dict[str, str]


@dataclass(frozen=True)
class BodyLimit:
    """The most bytes of a body, and what is said of more."""

    num_bytes: int
    error: RequestError

    @classmethod
    def of_one(cls, limits: Limits, field: str, in_base64: bool) -> "BodyLimit":
        """Of a body with a single image."""
        num_bytes = base64_bytes(limits.max_image_bytes) if in_base64 else limits.max_image_bytes
        return cls(num_bytes + _ENVELOPE_BYTES, image_too_large(field, limits.max_image_bytes))

    @classmethod
    def of_several(cls, limits: Limits) -> "BodyLimit":
        """Of a body with several images."""
        message = f"body: more than {limits.max_body_bytes} bytes; send fewer or smaller images"
        return cls(limits.max_body_bytes, RequestError(413, "body_too_large", message))


def content_type(request: Request) -> str:
    """Without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unsupported_content_type(request: Request, remedy: str) -> RequestError:
    message = f"content-type = {content_type(request) or 'none'}: not supported; {remedy}"
    return RequestError(415, "unsupported_content_type", message, "content-type")


async def read_json(request: Request, limit: BodyLimit) -> dict[str, Any]:
    """An object out of a JSON body.

    Raises:
        RequestError: 400, not an object in JSON, or one with a key twice; 413, too large; 415, another content type.
    """
    if content_type(request) != "application/json":
        raise unsupported_content_type(request, "send application/json")
    _refuse_query(request)
    body = await _read(request, limit)
    if (num_commas := body.count(b",")) > _MAX_JSON_COMMAS:
        raise RequestError.malformed(f"body: {num_commas} commas; send an object of at most {_MAX_JSON_COMMAS}")
    try:
        # A thread, as a large body would hold up all other requests. The parser bounds the nesting itself.
        values = await asyncio.to_thread(from_json, body, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise RequestError.malformed(f"body: not JSON ({error}); send an object") from None
    if not isinstance(values, dict):
        raise RequestError.malformed(f"body: a {type(values).__name__}, not an object; see /docs for its fields")
    return values


async def read_form(request: Request, limit: BodyLimit, field: str, max_files: int) -> Form:
    """Files and options out of a multipart body.

    Args:
        field: the files'.

    Raises:
        RequestError: 400, malformed, without a file, with too many, or with an option twice; 413, too large.
    """
    _refuse_query(request)
    _require_utf8(request)
    # One file too many is let in, to be told from a form that is broken.
    parser = _Utf8Parser(request.headers, _chunks(request, limit), max_files=max_files + 1, max_fields=_MAX_FORM_FIELDS)
    # In memory, within the limits: a disk would hold up all other requests.
    parser.spool_max_size = limit.num_bytes + 1
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        reason = getattr(error, "message", str(error)).rstrip(".")
        raise RequestError.malformed(f"body: {reason}; send the image in a form field `{field}`") from None
    try:
        uploads = form.getlist(field)
        files = [upload for upload in uploads if isinstance(upload, UploadFile)]
        if not files or len(files) < len(uploads):
            came = ", ".join(name[:40] for name in form) or "none"
            message = f"{field}: no file (fields that came: {came}); send the image as a file in field `{field}`"
            raise RequestError.malformed(message, field)
        others = [(name, value) for name, value in form.multi_items() if name != field]
        for name, value in others:
            if not isinstance(value, str):
                raise RequestError.malformed(f"{name[:40]}: a file; send files in field `{field}` only", name[:40])
        if len(files) > max_files:
            raise too_many_images(field, len(files), max_files)
        names = [field] if max_files == 1 else [f"{field}.{index}" for index in range(len(files))]
        images = [ImageInput(name, await file.read()) for name, file in zip(names, files, strict=True)]
        return Form(images, _once((name, str(value)) for name, value in others))
    finally:
        await form.close()


async def read_raw(request: Request, limit: BodyLimit) -> Form:
    """The body as an image, the query as options."""
    options = _once(request.query_params.multi_items())
    return Form([ImageInput("body", await _read(request, limit))], options)


class _Utf8Parser(MultiPartParser):
    """Refuses texts that are not UTF-8; Starlette would take them for Latin-1."""

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            try:
                self._current_part.data.decode()
            except UnicodeDecodeError:
                raise MultiPartException("a field is not UTF-8") from None
        super().on_part_end()


def _require_utf8(request: Request) -> None:
    _, parameters = parse_options_header(request.headers.get("content-type"))
    charset = parameters.get(b"charset", b"utf-8").decode("latin-1")
    # Python knows charsets that take long, or do harm.
    if charset.lower() not in ("utf-8", "utf8", "us-ascii"):
        message = f"content-type: charset = {charset[:40]!r}: not supported; send the form in UTF-8"
        raise RequestError(415, "unsupported_content_type", message, "content-type")


def too_many_images(field: str, num_images: int, max_images: int) -> RequestError:
    if max_images == 1:
        return RequestError.malformed(f"{field}: several images; send one, or all of them to /v1/captions", field)
    message = f"{field}: at least {num_images} images, more than {max_images}; send them in several requests"
    return RequestError.malformed(message, field)


def _once(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in items:
        if name in values:
            raise RequestError.malformed(f"{name[:40]}: given more than once; give it once", name[:40])
        values[name] = value
    return values


def _refuse_query(request: Request) -> None:
    for name in request.query_params:
        message = f"{name[:40]}: in the query; put options into the body beside the image"
        raise RequestError.malformed(message, name[:40])


async def _read(request: Request, limit: BodyLimit) -> bytes:
    body = bytearray()
    async for chunk in _chunks(request, limit):
        body += chunk
    return bytes(body)


async def _chunks(request: Request, limit: BodyLimit) -> AsyncGenerator[bytes, None]:
    if (encoding := request.headers.get("content-encoding", "identity").strip().lower()) not in ("identity", ""):
        # Unpacked, a few bytes may be many.
        message = f"content-encoding = {encoding[:40]}: not supported; send the body as it is"
        raise RequestError(415, "unsupported_content_encoding", message, "content-encoding")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > limit.num_bytes:
        raise limit.error
    num_bytes, held = 0, record_of(request).held
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > limit.num_bytes:
            raise limit.error
        held.take(len(chunk))
        yield chunk
