"""What a captioner's files say of it, without its weights and without torch: who only sends it images loads neither."""

from __future__ import annotations

from typing import Literal, NamedTuple

from raycap.checkpoint.directory import is_directory, read_config
from raycap.checkpoint.pretrained_config import read_pretrained_config

CaptionerKind = Literal["blip", "lstm_captioner"]

LSTM_CAPTIONER: CaptionerKind = "lstm_captioner"

# transformers' own, of what a BLIP's configuration leaves out.
_BLIP_DEFAULTS = {"image_size": 384, "patch_size": 16, "hidden_size": 768}


class CaptionerShape(NamedTuple):
    """Kind and sizes of a captioner."""

    kind: CaptionerKind
    image_size: int
    """Edge of the square images it sees, in pixels."""
    num_tokens: int
    """N of an image's embeddings (N, D)."""
    embed_dim: int
    """D."""


def read_captioner_shape(source: str, field: str = "model") -> CaptionerShape:
    """Kind and sizes of a captioner.

    Args:
        source: a local directory, an s3:// prefix or, of a BLIP, a hub name.
        field: the setting that names the source, for errors.

    Raises:
        UserError: nothing there, or no captioner.
    """
    if not is_lstm_captioner(source, field):
        vision = _BLIP_DEFAULTS | read_pretrained_config(source, field, "blip").get("vision_config", {})
        num_tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
        return CaptionerShape("blip", vision["image_size"], num_tokens, vision["hidden_size"])
    config = read_config(source, field)
    image_size, grid = config["images"]["image_size"], config["images"]["grid"]
    return CaptionerShape(LSTM_CAPTIONER, image_size, grid**2, config["decoder"]["region_dim"])


def is_lstm_captioner(source: str, field: str) -> bool:
    """Whether a source is a directory of this kind.

    Raises:
        UserError: it is a directory without a model.
    """
    return is_directory(source) and read_config(source, field)["model_type"] == LSTM_CAPTIONER
