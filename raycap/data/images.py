"""Image files to pixels: the one way every stage decodes and resizes an image."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from raycap.data.image_headers import declared_pixels, trap
from raycap.data.tiff_directory import is_overweight

MAX_PIXELS = 64_000_000

# Of Pillow's forty formats those that photos come in; some of the others run other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """The bytes are no image we decode; ``reason`` is ``undecodable`` or ``oversized``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file upright (EXIF orientation applied) as RGB; transparency on white.

    The files may be hostile: what they cost is bounded by their bytes and ``max_pixels``. Of an
    animation only the first frame is decoded.

    Raises:
        ImageError: not one of ``FORMATS``, cut off, a trap, or more than ``max_pixels`` (read from the
            header, before any pixel is decoded).
    """
    _silence_pillow()
    try:
        if reason := trap(data):
            raise ImageError("undecodable", reason)
        if (num_pixels := declared_pixels(data)) > max_pixels:
            raise ImageError("oversized", f"{num_pixels} pixels declared, more than {max_pixels}")
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise ImageError("oversized", f"{image.width} x {image.height} is more than {max_pixels} pixels")
        if any(tile[0] == "bmp_rle" for tile in getattr(image, "tile", ())):
            # Its decoder takes a jump of a few bytes for up to 256 rows at once.
            raise ImageError("undecodable", "a run-length encoded BMP")
        image.load()
        # Without copies unless turned: four bytes a pixel, so a copy of the largest costs 256 MB.
        if (method := _UPRIGHT.get(_orientation(image))) is not None:
            image = image.transpose(method)
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
        raise ImageError("undecodable", f"the file is empty or none of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's decoders raise whatever the broken file leads them to
        detail = " ".join(str(error).split())[:200]
        raise ImageError("undecodable", f"{type(error).__name__}: {detail}") from None


def _silence_pillow() -> None:
    """Keep what Pillow thinks of a stranger's file out of the log.

    Once for the process, since ``catch_warnings`` is not for threads; and first among the filters.
    """
    silence = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if warnings.filters[:1] != [silence]:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _orientation(image: Image.Image) -> int:
    """The EXIF tag, 1 (upright) where its EXIF is broken or asks for too much."""
    # Of a JPEG and a TIFF this was seen before Pillow opened them; it reads the others' only now.
    exif = image.info.get("exif", b"")
    if "Raw profile type exif" in image.info:
        exif = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    if is_overweight(exif):
        return 1
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if isinstance(orientation, int) else 1


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
