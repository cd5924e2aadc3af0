"""The one path from checkpoints to captions: encode, refine, decode.

Each stage also stands alone, so that a server can place it on its own replica.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from raycap.checkpoint import EncoderId, Refiner, encoder_fingerprint, load_blip, load_refiner
from raycap.config import Config
from raycap.data.images import resize_image
from raycap.hardware import Precision, default_device
from raycap.models.blip import BlipCaptionDecoder, BlipImageEncoder, Decoding


class Refinement(Config):
    """How strongly the RBM changes the embeddings."""

    gate: float = Field(default=1.0, ge=0, le=1)
    """Share of the reconstruction in the result; 0 is plain BLIP, bit for bit."""

    passes: int = Field(default=1, ge=1)
    """How often the result is fed back."""


class EncoderStage:
    """Images to embeddings, on the device.

    Args:
        encoder: in float32.
        name: of the model, for errors and manifests.
        precision: the weights are cast to it.
    """

    def __init__(self, encoder: BlipImageEncoder, name: str, precision: Precision = Precision.FP32) -> None:
        self.id = EncoderId(name, encoder_fingerprint(encoder))
        self.device = default_device()
        self.encoder = encoder.to(self.device, precision.dtype(self.device))

    @classmethod
    def from_pretrained(cls, model: str, precision: Precision = Precision.FP32) -> EncoderStage:
        """Load from a BLIP directory, s3:// prefix or hub name."""
        return cls(load_blip(model)[0], model, precision)

    @property
    def image_size(self) -> int:
        return self.encoder.image_size

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> torch.Tensor:
        """(B, H, W, 3) uint8 to (B, N, D) in the weights' type."""
        return self.encoder(torch.from_numpy(images).to(self.device))


class RefinerStage:
    """Embeddings to refined embeddings of the same type.

    Args:
        rbm: refiner directory or s3:// prefix.
        encoder: the encoder whose embeddings come in; one the RBM was not trained on is refused.
    """

    def __init__(self, rbm: str, encoder: EncoderId | None = None) -> None:
        self.refiner: Refiner = load_refiner(rbm, encoder).to(default_device())

    def __call__(self, image_embeds: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        return self.refiner(image_embeds, gate=refinement.gate, passes=refinement.passes)


class DecoderStage:
    """Embeddings to captions, on the device.

    Args:
        decoder: in float32.
        precision: the weights are cast to it.
    """

    def __init__(self, decoder: BlipCaptionDecoder, precision: Precision = Precision.FP32) -> None:
        self.device = default_device()
        self.dtype = precision.dtype(self.device)
        self.decoder = decoder.to(self.device, self.dtype)

    @classmethod
    def from_pretrained(cls, model: str, precision: Precision = Precision.FP32) -> DecoderStage:
        """Load from a BLIP directory, s3:// prefix or hub name."""
        return cls(load_blip(model)[1], precision)

    def __call__(self, image_embeds: torch.Tensor, decoding: Decoding) -> list[str]:
        """(B, N, D) of any float type, on any device, to B captions."""
        return self.decoder.generate(image_embeds.to(self.device, self.dtype), decoding)


class CaptionPredictor:
    """All three stages in one process.

    Args:
        encoder, decoder: of the same BLIP.
        refiner: None for plain BLIP.
    """

    def __init__(self, encoder: EncoderStage, refiner: RefinerStage | None, decoder: DecoderStage) -> None:
        self.encoder, self.refiner, self.decoder = encoder, refiner, decoder

    @classmethod
    def from_pretrained(
        cls, model: str, rbm: str | None = None, precision: Precision = Precision.FP32
    ) -> CaptionPredictor:
        """Load from a BLIP directory (or s3:// prefix, or hub name) and, if given, a refiner's.

        Raises:
            UserError: a directory is missing, or holds another model.
        """
        blip_encoder, blip_decoder = load_blip(model)
        encoder = EncoderStage(blip_encoder, model, precision)
        refiner = RefinerStage(rbm, encoder.id) if rbm is not None else None
        return cls(encoder, refiner, DecoderStage(blip_decoder, precision))

    def preprocess(self, images: Sequence[Image.Image]) -> np.ndarray:
        """RGB images to (B, H, W, 3) uint8 at the encoder's size."""
        return np.stack([resize_image(image, self.encoder.image_size) for image in images])

    def encode(self, images: np.ndarray) -> torch.Tensor:
        """(B, H, W, 3) uint8 to image embeddings (B, N, D)."""
        return self.encoder(images)

    def refine(self, image_embeds: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        """(B, N, D) to the same shape and type; without an RBM, and with gate 0, unchanged."""
        if self.refiner is None:
            return image_embeds
        return self.refiner(image_embeds, refinement)

    def decode(self, image_embeds: torch.Tensor, decoding: Decoding) -> list[str]:
        """(B, N, D) to B captions."""
        return self.decoder(image_embeds, decoding)

    def caption(
        self, images: Sequence[Image.Image], decoding: Decoding | None = None, refinement: Refinement | None = None
    ) -> list[str]:
        """RGB images to captions, in one batch."""
        image_embeds = self.encode(self.preprocess(images))
        return self.decode(self.refine(image_embeds, refinement or Refinement()), decoding or Decoding())
