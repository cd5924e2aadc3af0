"""Which model made what: hashes of weights and settings."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

import torch
from torch import nn

from raycap.models.blip import BlipCaptionDecoder, BlipImageEncoder
from raycap.models.lstm_caption_decoder import LstmCaptionDecoder
from raycap.models.resnet_regions import ResNetRegions

ImageEncoder = BlipImageEncoder | ResNetRegions
CaptionDecoder = BlipCaptionDecoder | LstmCaptionDecoder


class EncoderId(NamedTuple):
    """Which encoder made an embedding: a name for people, a hash of weights and preprocessing for us."""

    name: str
    fingerprint: str


def encoder_fingerprint(encoder: ImageEncoder) -> str:
    """SHA-256 (16 hex digits) over the encoder's weights (as float32), sizes and normalisation."""
    sizes = [encoder.image_size, encoder.num_tokens, encoder.embed_dim]
    return _fingerprint(encoder, [sizes, encoder.image_mean, encoder.image_std])


def pair_id(model: str, encoder: ImageEncoder, decoder: CaptionDecoder) -> EncoderId:
    """Which captioner made captions, or joint embeddings of them: both halves and the vocabulary are in its hash."""
    vocabulary = sorted(decoder.tokenizer.get_vocab().items())
    fingerprint = _fingerprint(decoder, [encoder_fingerprint(encoder), vocabulary])
    return EncoderId(f"{model} (image and caption)", fingerprint)


def refiner_fingerprint(refiner: nn.Module) -> str:
    """SHA-256 (16 hex digits) over a refiner's kind and weights."""
    return _fingerprint(refiner, type(refiner).__name__)


def _fingerprint(module: nn.Module, settings: Any) -> str:
    digest = hashlib.sha256(json.dumps(settings).encode())
    state = module.state_dict()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
