"""What a caption request and its answers look like, and how an image is taken out of a request."""

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator

from fastapi import Request
from pydantic import Field, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from raycap.config import Config, error_lines
from raycap.data.images import ImageError
from raycap.serve.config import Limits

# Room for what surrounds the image in a body: part headers, braces, a data URL's head.
_ENVELOPE_BYTES = 16 * 1024

_REMEDY = "send multipart/form-data with the image in field `file`, or application/json with base64 in `image`"


class CaptionRequest(Config):
    """A request in JSON."""

    image: str = Field(min_length=1)
    """The image file in base64, or as a data URL."""


class CaptionResponse(Config):
    """The answer."""

    caption: str
    model: str
    """The model's name, as GET /v1/models gives it."""


class ModelInfo(Config):
    """A model being served."""

    id: str
    refined: bool
    """Whether an RBM refines the embeddings."""
    image_size: int
    """Pixels of the square to which images are resized."""


class ModelList(Config):
    """All models being served."""

    models: list[ModelInfo]


class ErrorDetail(Config):
    """What was wrong with a request."""

    type: str
    message: str
    """Field, value, remedy."""
    field: str | None


class ErrorResponse(Config):
    """The one form of every error."""

    error: ErrorDetail


class RequestError(Exception):
    """A request that cannot be answered, and the status (and headers, if any) that say so."""

    def __init__(
        self, status: int, kind: str, message: str, field: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.field, self.headers = status, kind, field, headers

    @classmethod
    def malformed(cls, message: str, field: str | None = None) -> "RequestError":
        return cls(400, "malformed_request", message, field)

    @classmethod
    def of_image(cls, error: ImageError, field: str) -> "RequestError":
        if error.reason == "oversized":
            return cls(413, "image_too_large", f"{field}: {error}; send a smaller image", field)
        return cls(422, "undecodable_image", f"{field}: {error}; send a whole JPEG, PNG or WebP file", field)


async def read_image(request: Request, limits: Limits) -> tuple[bytes, str]:
    """The image file that a request carries, and the field it came in.

    Raises:
        RequestError: another content type, a malformed body, or one above the limits; of a body
            too large no more than the limit is read.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        data, field = await _read_multipart(request, limits.max_image_bytes), "file"
    elif content_type == "application/json":
        data, field = await _read_json(request, limits.max_image_bytes), "image"
    else:
        message = f"content-type = {content_type or 'none'}: not supported; {_REMEDY}"
        raise RequestError(415, "unsupported_content_type", message, "content-type")
    if not data:
        raise RequestError.malformed(f"{field}: empty; {_REMEDY}", field)
    if len(data) > limits.max_image_bytes:
        raise _too_large(field, limits.max_image_bytes)
    return data, field


async def _read_multipart(request: Request, max_image_bytes: int) -> bytes:
    body = _limited_body(request, max_image_bytes + _ENVELOPE_BYTES, "file", max_image_bytes)
    parser = MultiPartParser(request.headers, body, max_files=1, max_fields=0)
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        reason = getattr(error, "message", str(error)).rstrip(".")
        raise RequestError.malformed(f"body: {reason}; {_REMEDY}, and nothing else") from None
    try:
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            names = ", ".join(form) or "none"
            raise RequestError.malformed(f"file: missing (fields that came: {names}); {_REMEDY}", "file")
        return await upload.read()
    finally:
        await form.close()


async def _read_json(request: Request, max_image_bytes: int) -> bytes:
    max_base64_bytes = 4 * -(-max_image_bytes // 3)
    body = bytearray()
    async for chunk in _limited_body(request, max_base64_bytes + _ENVELOPE_BYTES, "image", max_image_bytes):
        body += chunk
    try:
        parsed = CaptionRequest.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors()[0]
        not_json = first["type"] == "json_invalid"
        reason = f"body: {first['msg']}" if not_json else "; ".join(error_lines(CaptionRequest, error))
        field = str(first["loc"][0]) if first["loc"] else None
        raise RequestError.malformed(f'{reason}; send {{"image": "<base64>"}}', field) from None
    return await asyncio.to_thread(_from_base64, parsed.image)


def _from_base64(text: str) -> bytes:
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise RequestError.malformed("image: a data URL without `;base64,`; encode the file in base64", "image")
    try:
        # Many encoders break lines; the alphabet is checked all the same.
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError.malformed(
            f"image: not base64 ({error}); encode the file's bytes in base64", "image"
        ) from None


async def _limited_body(
    request: Request, max_bytes: int, field: str, max_image_bytes: int
) -> AsyncGenerator[bytes, None]:
    num_bytes = int(request.headers.get("content-length", 0))
    if num_bytes > max_bytes:
        raise _too_large(field, max_image_bytes)
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise _too_large(field, max_image_bytes)
        yield chunk


def _too_large(field: str, max_image_bytes: int) -> RequestError:
    message = f"{field}: more than {max_image_bytes} bytes; send a smaller image"
    return RequestError(413, "image_too_large", message, field)
