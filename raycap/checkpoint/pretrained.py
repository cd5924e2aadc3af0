"""BLIP, CLIP and ResNet in transformers' own form, of a directory or a name of the hub.

config.json, model.safetensors, tokenizer and image processor files, so that
``BlipForConditionalGeneration.from_pretrained`` reads a BLIP of ours too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BlipForConditionalGeneration,
    CLIPModel,
    ResNetModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import logging as transformers_logging

from raycap import storage
from raycap.checkpoint.directory import is_directory, read_config
from raycap.checkpoint.pretrained_config import not_on_hub, read_pretrained_config
from raycap.errors import UserError
from raycap.models.blip import BlipCaptionDecoder, BlipImageEncoder, join_blip, split_blip
from raycap.models.clip import ClipImageEncoder, ClipTextEncoder, split_clip

LoadedT = TypeVar("LoadedT")


def save_blip(directory: Path, encoder: BlipImageEncoder, decoder: BlipCaptionDecoder) -> None:
    """Write BLIP into a local directory that nobody reads yet (see ``directory.publish``)."""
    transformers_logging.disable_progress_bar()
    join_blip(encoder, decoder).save_pretrained(directory)
    decoder.tokenizer.save_pretrained(directory)
    BlipImageProcessorPil(
        size={"height": encoder.image_size, "width": encoder.image_size},
        image_mean=list(encoder.image_mean),
        image_std=list(encoder.image_std),
    ).save_pretrained(directory)


def load_blip(source: str, field: str = "model") -> tuple[BlipImageEncoder, BlipCaptionDecoder]:
    """Load BLIP as encoder and decoder, on the CPU, in float32 and evaluation mode.

    Args:
        source: a local directory, an s3:// prefix or a hub name.
        field: the setting that names the source, for errors.

    Raises:
        UserError: nothing there, or another model.
    """
    read_pretrained_config(source, field, "blip")
    return _load_pretrained(source, field, _load_blip)


def load_clip(source: str, field: str = "clip") -> tuple[ClipImageEncoder, ClipTextEncoder]:
    """Load CLIP as its two halves; arguments, state and errors as of :func:`load_blip`."""
    read_pretrained_config(source, field, "clip")
    image_encoder, text_encoder = _load_pretrained(source, field, _load_clip)
    num_tokens, vocab_size = len(text_encoder.tokenizer), text_encoder.text_model.config.vocab_size
    # Where the tokenizer's files are missing, transformers makes one of three tokens without a word.
    if num_tokens != vocab_size:
        raise UserError(
            f"{field} = {source}: its tokenizer has {num_tokens} tokens, its model {vocab_size}; save the model's own "
            "CLIPProcessor beside it"
        )
    return image_encoder, text_encoder


def load_resnet(source: str, field: str = "encoder") -> ResNetModel:
    """Load a ResNet, a classifier's too, without its classes; on the CPU, in float32.

    Args:
        source: a local directory, an s3:// prefix or a hub name.
        field: the setting that names the source, for errors.

    Raises:
        UserError: nothing there, or another model.
    """
    transformers_logging.disable_progress_bar()
    if not is_directory(source):
        return _load_resnet(source, source, field)
    read_config(source, field)
    with storage.local_directory(source) as directory:
        return _load_resnet(str(directory), source, field)


def _load_resnet(path: str, source: str, field: str) -> ResNetModel:
    try:
        config = AutoConfig.from_pretrained(path)
        if config.model_type != "resnet":
            raise UserError(
                f"{field} = {source}: holds a {config.model_type}, not a ResNet; give a ResNet of the hub's"
            )
        return ResNetModel.from_pretrained(path, dtype=torch.float32)
    except ValueError as error:
        raise UserError(f"{field} = {source}: holds no ResNet ({str(error).splitlines()[0]})") from None
    except OSError as error:
        raise not_on_hub(source, field, error) from None


# from_pretrained builds models on a meta device that it sets for the whole process: in another thread, which loads
# too, weights would then be missing.
_LOADING = threading.Lock()


def _load_pretrained(source: str, field: str, load: Callable[[str], LoadedT]) -> LoadedT:
    transformers_logging.disable_progress_bar()
    if not is_directory(source):
        try:
            with _LOADING:
                return load(source)
        except OSError as error:
            raise not_on_hub(source, field, error) from None
    with storage.local_directory(source) as directory, _LOADING:
        try:
            return load(str(directory))
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{field} = {source}: not whole ({reason}); save model and processor there") from None


def _load_blip(source: str) -> tuple[BlipImageEncoder, BlipCaptionDecoder]:
    model = BlipForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    processor = BlipImageProcessorPil.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    encoder, decoder = split_blip(model, tokenizer, processor.image_mean, processor.image_std)
    return encoder.eval(), decoder.eval()


def _load_clip(source: str) -> tuple[ClipImageEncoder, ClipTextEncoder]:
    model = CLIPModel.from_pretrained(source, dtype=torch.float32).eval()
    image_encoder, text_encoder = split_clip(
        model, CLIPImageProcessorPil.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    )
    return image_encoder.eval(), text_encoder.eval()
