"""An LSTM captioner's directory.

config.json         model_type, arguments of the decoder, sizes of the ResNet and of its images
model.safetensors   encoder.* and decoder.*
tokenizer.json ...  its vocabulary, in transformers' form
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, ResNetConfig, ResNetModel

from raycap import storage
from raycap.checkpoint.captioner_shape import LSTM_CAPTIONER, is_lstm_captioner
from raycap.checkpoint.directory import WEIGHTS, read_config, write_model
from raycap.checkpoint.pretrained import load_resnet
from raycap.errors import UserError
from raycap.models.lstm_captioner import LstmCaptioner
from raycap.models.resnet_regions import ResNetRegions


class CaptioningLstm(NamedTuple):
    """An LSTM captioner with all it needs."""

    encoder: ResNetRegions
    decoder: LstmCaptioner
    vocabulary: PreTrainedTokenizerBase


def save_lstm_captioner(directory: Path, model: CaptioningLstm) -> None:
    """Write an LSTM captioner into a local directory that nobody reads yet (see ``directory.publish``)."""
    encoder = model.encoder
    config = {
        "model_type": LSTM_CAPTIONER,
        "decoder": model.decoder.settings,
        "resnet": encoder.resnet.config.to_diff_dict(),
        "images": {name: getattr(encoder, name) for name in ("image_size", "grid", "image_mean", "image_std")},
    }
    write_model(directory, config, nn.ModuleDict({"encoder": encoder, "decoder": model.decoder}).state_dict())
    model.vocabulary.save_pretrained(directory)


def load_lstm_captioner(source: str, field: str = "model") -> CaptioningLstm:
    """Load an LSTM captioner, on the CPU, in float32 and evaluation mode.

    Args:
        source: a local directory or s3:// prefix.
        field: the setting that names the source, for errors.

    Raises:
        UserError: nothing there, or another model.
    """
    config = read_config(source, field)
    if config["model_type"] != LSTM_CAPTIONER:
        raise UserError(
            f"{field} = {source}: holds a {config['model_type']}, not an LSTM captioner; give a model directory of one"
        )
    encoder = ResNetRegions(ResNetModel(ResNetConfig(**config["resnet"])), **config["images"])
    decoder = LstmCaptioner(**config["decoder"])
    with storage.local_directory(source) as directory:
        if not (directory / WEIGHTS).is_file():
            raise UserError(f"{field} = {source}: not whole (no {WEIGHTS}); save the model there again")
        nn.ModuleDict({"encoder": encoder, "decoder": decoder}).load_state_dict(load_file(directory / WEIGHTS))
        vocabulary = PreTrainedTokenizerFast.from_pretrained(directory)
    return CaptioningLstm(encoder.eval(), decoder.eval(), vocabulary)


def load_region_encoder(
    source: str, image_size: int | None = None, grid: int | None = None, field: str = "model"
) -> ResNetRegions:
    """Load an LSTM captioner's encoder, or make one of a ResNet, on the CPU, in float32 and evaluation mode.

    Args:
        source: a directory or s3:// prefix of an LSTM captioner, or what :func:`load_resnet` takes.
        image_size, grid: of a ResNet's regions, by default 224 and 7; a captioner has its own.

    Raises:
        UserError: nothing there, another model, or sizes given of a captioner.
    """
    if not is_lstm_captioner(source, field):
        return ResNetRegions(load_resnet(source, field), image_size or 224, grid or 7).eval()
    for name, value in (("image_size", image_size), ("grid", grid)):
        if value is not None:
            raise UserError(f"regions.{name} = {value}: {source} is an LSTM captioner, which has its own; leave it out")
    return load_lstm_captioner(source, field).encoder
