"""A captioner of either kind, BLIP or LSTM, of its directory."""

from __future__ import annotations

from typing import Literal, NamedTuple

from raycap.checkpoint.directory import read_config
from raycap.checkpoint.identity import CaptionDecoder, ImageEncoder
from raycap.checkpoint.lstm_captioner import is_lstm_captioner, load_lstm_captioner
from raycap.checkpoint.pretrained import load_blip, read_blip_config
from raycap.models.lstm_caption_decoder import LstmCaptionDecoder

CaptionerKind = Literal["blip", "lstm_captioner"]


class CaptionerShape(NamedTuple):
    """What a captioner's files say of it, without its weights."""

    kind: CaptionerKind
    image_size: int
    """Edge of the square images it sees, in pixels."""
    num_tokens: int
    """N of an image's embeddings (N, D)."""
    embed_dim: int
    """D."""


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


def read_captioner_shape(source: str, field: str = "model") -> CaptionerShape:
    """Kind and sizes of a captioner, without loading its weights; arguments and errors as of :func:`load_captioner`."""
    if not is_lstm_captioner(source, field):
        vision = read_blip_config(source, field).vision_config
        num_tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        return CaptionerShape("blip", vision.image_size, num_tokens, vision.hidden_size)
    config = read_config(source, field)
    image_size, grid = config["images"]["image_size"], config["images"]["grid"]
    return CaptionerShape("lstm_captioner", image_size, grid**2, config["decoder"]["region_dim"])
