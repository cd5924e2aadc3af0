"""Pictures of where the decoder looked, as an answer holds them."""

import base64
import io

import numpy as np
from PIL import Image

from raycap.models.written_caption import Attention
from raycap.report.attention import draw_figure, overlay_attention
from raycap.serve.api.schemas import AttentionPictures


def draw_attention(pixels: np.ndarray, attention: Attention) -> AttentionPictures:
    """Lay each word's map over the image.

    Args:
        pixels: (S, S, 3) uint8, as the encoder saw them.
    """
    overlays = [overlay_attention(pixels, of_word) for of_word in attention.maps]
    figure = draw_figure(pixels, attention.words, overlays)
    return AttentionPictures(words=attention.words, maps=[_data_url(o) for o in overlays], figure=_data_url(figure))


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
