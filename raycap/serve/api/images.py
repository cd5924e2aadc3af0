"""From what stands in a request to pixels, in threads: a bad image is refused before it takes a place in a batch."""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from raycap.data.images import ImageError, decode_image, resize_image
from raycap.serve.api.door import Held
from raycap.serve.api.threads import Threads
from raycap.serve.errors import RequestError
from raycap.serve.guard.limits import Limits

FetchUrl = Callable[[str, int, Callable[[int], None]], Awaitable[bytes]]
"""From a URL and the most bytes to the bytes behind it, or a RequestError; told how many more have come."""


@dataclass
class ImageInput:
    """An image as it came."""

    field: str
    """Where in the request."""

    source: bytes | str
    """The file; or base64, a data URL or an http(s) URL. Empty from when it is read: a request may wait for long."""

    def __post_init__(self) -> None:
        self.is_url = isinstance(self.source, str) and self.source[:8].lower().startswith(("http://", "https://"))
        """Whether it has to be fetched."""


class Images:
    """Reads images under limits.

    Args:
        limits: of an image.
        fetch: None refuses URLs.
    """

    def __init__(self, limits: Limits, fetch: FetchUrl | None = None) -> None:
        self.limits, self.fetch = limits, fetch
        self.threads = Threads()
        """What reads images, and what makes large answers of them."""

    async def read(self, image: ImageInput, held: Held) -> bytes:
        """The image file.

        Args:
            held: told of its bytes, where they take the place of those that came.

        Raises:
            RequestError: it is empty, too large, not base64, or not to be had.
            raycap.serve.errors.Overloaded: all requests hold too many bytes already.
        """
        limit = self.limits.max_image_bytes
        source, image.source = image.source, b""
        if isinstance(source, bytes):
            data = source
        elif image.is_url:
            data = await self._fetch(source, image.field, held)
        else:
            if len(source) > base64_bytes(limit) * 2:
                raise image_too_large(image.field, limit)
            data = await asyncio.to_thread(_from_base64, source, image.field)
            held.give_back(len(source) - len(data))
        if not data:
            raise RequestError.malformed(f"{image.field}: empty; send an image file", image.field)
        if len(data) > limit:
            raise image_too_large(image.field, limit)
        return data

    async def load_pixels(self, data: bytes, image_size: int, field: str) -> np.ndarray:
        """An image file to (image_size, image_size, 3) uint8.

        Raises:
            RequestError: it cannot be decoded, or not in time.
        """
        try:
            return await self.threads.run(
                lambda: _load_pixels(data, image_size, self.limits.max_pixels), self.limits.decode_seconds
            )
        except ImageError as error:
            raise RequestError.of_image(error, field) from None
        except TimeoutError:
            message = f"{field}: not decoded within {self.limits.decode_seconds:g} s; send a smaller or simpler image"
            raise RequestError(422, "decode_timeout", message, field) from None

    async def _fetch(self, url: str, field: str, held: Held) -> bytes:
        if self.fetch is None:
            message = f"{field}: URL not fetched; send the image itself in base64"
            raise RequestError(400, "url_disabled", message, field)
        try:
            return await self.fetch(url, self.limits.max_image_bytes, held.take)
        except RequestError as error:
            error.field = field
            raise


def base64_bytes(num_bytes: int) -> int:
    """What so many bytes are in base64."""
    return 4 * -(-num_bytes // 3)


def image_too_large(field: str, max_image_bytes: int) -> RequestError:
    message = f"{field}: more than {max_image_bytes} bytes; send a smaller image"
    return RequestError(413, "image_too_large", message, field)


def _load_pixels(data: bytes, image_size: int, max_pixels: int) -> np.ndarray:
    return resize_image(decode_image(data, max_pixels), image_size)


def _from_base64(text: str, field: str) -> bytes:
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise RequestError.malformed(f"{field}: a data URL without `;base64,`; encode the file in base64", field)
    try:
        # Many encoders break lines; the alphabet is checked all the same.
        return base64.b64decode(text.encode("ascii").translate(None, b" \t\r\n"), validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"{field}: neither an http(s) URL nor base64 ({error}); encode the file's bytes in base64"
        raise RequestError.malformed(message, field) from None
