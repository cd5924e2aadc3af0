"""Image files to pixels: the one way every stage decodes and resizes an image."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000


class ImageError(ValueError):
    """The bytes are no image we decode; ``reason`` is ``undecodable`` or ``oversized``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file upright (EXIF orientation applied) as RGB; transparency on white.

    Raises:
        ImageError: not an image, cut off, or more than ``max_pixels`` (read from the header,
            before any pixel is decoded).
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        if image.width * image.height > max_pixels:
            raise ImageError("oversized", f"{image.width} x {image.height} is more than {max_pixels} pixels")
        image.load()
        # In place and without copies: four bytes a pixel, so a copy of the largest costs 256 MB.
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):
            image = _to_eight_bits(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image if image.mode == "RGBA" else image.convert("RGBA")
            opaque = Image.new("RGB", image.size, "white")
            opaque.paste(image, mask=image)
            return opaque
        return image if image.mode == "RGB" else image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise ImageError("oversized", str(error)) from None
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("undecodable", "the file is empty or of no known image format") from None
    except Exception as error:  # Pillow's decoders raise whatever the broken file leads them to
        raise ImageError("undecodable", f"{type(error).__name__}: {error}") from None


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8-bit grey; Pillow's own conversion would clip all above 255 to white."""
    values = np.asarray(image)
    if image.mode != "I" or values.max() > 255:
        values = values >> 8
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def resize_image(image: Image.Image, image_size: int) -> np.ndarray:
    """Resize to a square as BLIP's processor does (bicubic, aspect ratio not kept).

    Returns:
        (image_size, image_size, 3) uint8.
    """
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)
