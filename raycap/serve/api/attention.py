"""Pictures of where the decoder looked."""

import base64
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from raycap.models.written_caption import Attention
from raycap.serve.api.schemas import AttentionPictures

# From no attention to the word's most, evenly spaced: dark to light, so that it also reads in grey.
_COLOURS = np.array([[13, 8, 60], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]], np.float64)
# The image stays visible where the decoder did not look, and under what it saw.
_LEAST_OPACITY, _MOST_OPACITY = 0.25, 0.75

_TILE_PIXELS = 192
_LABEL_PIXELS = 22
_MAX_COLUMNS = 6


def draw_attention(pixels: np.ndarray, attention: Attention) -> AttentionPictures:
    """Lay each word's map over the image.

    Args:
        pixels: (S, S, 3) uint8, as the encoder saw them.
    """
    overlays = [_overlay(pixels, of_word) for of_word in attention.maps]
    figure = _figure(Image.fromarray(pixels), attention.words, overlays)
    return AttentionPictures(words=attention.words, maps=[_data_url(o) for o in overlays], figure=_data_url(figure))


def _overlay(pixels: np.ndarray, attention: np.ndarray) -> Image.Image:
    """(S, S, 3) uint8 under (rows, columns), each word's strongest place in full colour."""
    strength = attention.astype(np.float32) / max(float(attention.max()), 1e-12)
    size = (pixels.shape[1], pixels.shape[0])
    smooth = np.asarray(Image.fromarray(strength).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)  # (S, S)
    places = np.linspace(0, 1, len(_COLOURS))
    heat = np.stack([np.interp(smooth, places, channel) for channel in _COLOURS.T], -1)  # (S, S, 3)
    opacity = (_LEAST_OPACITY + (_MOST_OPACITY - _LEAST_OPACITY) * smooth)[..., None]
    return Image.fromarray((pixels * (1 - opacity) + heat * opacity).round().astype(np.uint8))


def _figure(image: Image.Image, words: list[str], overlays: list[Image.Image]) -> Image.Image:
    tiles = [("", image), *zip(words, overlays, strict=True)]
    columns = min(_MAX_COLUMNS, len(tiles))
    height = _TILE_PIXELS + _LABEL_PIXELS
    figure = Image.new("RGB", (columns * _TILE_PIXELS, math.ceil(len(tiles) / columns) * height), "white")
    draw, font = ImageDraw.Draw(figure), ImageFont.load_default(14)
    for index, (word, tile) in enumerate(tiles):
        left, top = index % columns * _TILE_PIXELS, index // columns * height
        draw.text((left + 4, top + 2), word, "black", font)
        figure.paste(tile.resize((_TILE_PIXELS, _TILE_PIXELS)), (left, top + _LABEL_PIXELS))
    return figure


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
