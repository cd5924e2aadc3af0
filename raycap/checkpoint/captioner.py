"""A captioner of either kind, BLIP or LSTM, of its directory."""

from __future__ import annotations

from raycap.checkpoint.captioner_shape import is_lstm_captioner
from raycap.checkpoint.identity import CaptionDecoder, ImageEncoder
from raycap.checkpoint.lstm_captioner import load_lstm_captioner
from raycap.checkpoint.pretrained import load_blip
from raycap.models.lstm_caption_decoder import LstmCaptionDecoder


def load_captioner(source: str, field: str = "model") -> tuple[ImageEncoder, CaptionDecoder]:
    """Load a captioner of either kind as encoder and decoder, on the CPU, in float32 and evaluation mode.

    Args:
        source: a local directory, an s3:// prefix or, of a BLIP, a hub name.
        field: the setting that names the source, for errors.

    Raises:
        UserError: nothing there, or no captioner.
    """
    if not is_lstm_captioner(source, field):
        return load_blip(source, field)
    encoder, decoder, vocabulary = load_lstm_captioner(source, field)
    return encoder, LstmCaptionDecoder(decoder, vocabulary).eval()
