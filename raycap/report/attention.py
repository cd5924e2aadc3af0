"""Pictures of where a captioner looked, word by word."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# From no attention to the word's most, evenly spaced: dark to light, so that it also reads in grey.
_COLOURS = np.array([[13, 8, 60], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]], np.float64)
# The image stays visible where the decoder did not look, and under what it saw.
_LEAST_OPACITY, _MOST_OPACITY = 0.25, 0.75

_TILE_PIXELS = 192
_LABEL_PIXELS = 22
_MAX_COLUMNS = 6


def overlay_attention(pixels: np.ndarray, attention: np.ndarray) -> Image.Image:
    """Lay one word's map over the image, its strongest place in full colour.

    Args:
        pixels: (H, W, 3) uint8.
        attention: (rows, columns) over the whole image, not negative.
    """
    strength = attention.astype(np.float32) / max(float(attention.max()), 1e-12)
    size = (pixels.shape[1], pixels.shape[0])
    smooth = np.asarray(Image.fromarray(strength).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)  # (H, W)
    places = np.linspace(0, 1, len(_COLOURS))
    heat = np.stack([np.interp(smooth, places, channel) for channel in _COLOURS.T], -1)  # (H, W, 3)
    opacity = (_LEAST_OPACITY + (_MOST_OPACITY - _LEAST_OPACITY) * smooth)[..., None]
    return Image.fromarray((pixels * (1 - opacity) + heat * opacity).round().astype(np.uint8))


def draw_figure(pixels: np.ndarray, words: Sequence[str], overlays: Sequence[Image.Image]) -> Image.Image:
    """The image, then each word with its overlay, row by row.

    Args:
        pixels: (H, W, 3) uint8; the tiles have its aspect.
        overlays: of :func:`overlay_attention`, one for each word.
    """
    tiles = [("", Image.fromarray(pixels)), *zip(words, overlays, strict=True)]
    columns = min(_MAX_COLUMNS, len(tiles))
    tile_size = (_TILE_PIXELS, max(1, round(_TILE_PIXELS * pixels.shape[0] / pixels.shape[1])))
    height = tile_size[1] + _LABEL_PIXELS
    figure = Image.new("RGB", (columns * _TILE_PIXELS, math.ceil(len(tiles) / columns) * height), "white")
    draw, font = ImageDraw.Draw(figure), ImageFont.load_default(14)
    for index, (word, tile) in enumerate(tiles):
        left, top = index % columns * _TILE_PIXELS, index // columns * height
        draw.text((left + 4, top + 2), word, "black", font)
        figure.paste(tile.resize(tile_size), (left, top + _LABEL_PIXELS))
    return figure


def attention_png(image: Image.Image, words: Sequence[str], maps: np.ndarray) -> bytes:
    """A PNG file of :func:`draw_figure`.

    Args:
        image: RGB, of any size; drawn with its aspect.
        maps: (words, rows, columns) over the whole image.
    """
    image = image.copy()
    image.thumbnail((2 * _TILE_PIXELS, 2 * _TILE_PIXELS))
    pixels = np.asarray(image)
    figure = draw_figure(pixels, words, [overlay_attention(pixels, of_word) for of_word in maps])
    buffer = io.BytesIO()
    figure.save(buffer, "PNG")
    return buffer.getvalue()
