"""The one path from checkpoints to captions: encode, refine, decode.

Each stage also stands alone, so that a server can place it on its own replica.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from raycap.checkpoint.captioner import load_captioner
from raycap.checkpoint.identity import CaptionDecoder, EncoderId, ImageEncoder, encoder_fingerprint, pair_id
from raycap.checkpoint.pretrained import load_clip
from raycap.checkpoint.refiner import Refiner, load_refiner
from raycap.data.images import resize_image
from raycap.data.text import encode_captions
from raycap.errors import UserError
from raycap.hardware import Precision, default_device, keep_freed_memory
from raycap.models.blip import BlipCaptionDecoder
from raycap.models.clip import ClipImageEncoder
from raycap.models.decoding import Decoding
from raycap.models.joint import score_captions
from raycap.models.packed_linear import pack_linears
from raycap.models.refinement import Refinement
from raycap.models.written_caption import WrittenCaption
from raycap.rerank import Rerank
from raycap.reranker import Reranker


class EncoderStage:
    """Images to embeddings, on the device.

    Args:
        encoder: in float32.
        name: of the model, for errors and manifests.
        precision: the weights are cast to it.
    """

    def __init__(self, encoder: ImageEncoder, name: str, precision: Precision = Precision.FP32) -> None:
        self.id = EncoderId(name, encoder_fingerprint(encoder))
        self.device = default_device()
        self.encoder = encoder.to(self.device, precision.dtype(self.device))
        pack_linears(self.encoder)

    @classmethod
    def from_pretrained(cls, model: str, precision: Precision = Precision.FP32) -> EncoderStage:
        """Load from a captioner's directory, s3:// prefix or hub name."""
        return cls(load_captioner(model)[0], model, precision)

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
        self.device = default_device()
        self.refiner: Refiner = load_refiner(rbm, encoder).to(self.device)

    def __call__(self, image_embeds: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        return self.refiner(image_embeds, gate=refinement.gate, passes=refinement.passes)


def load_clip_image_encoder(clip: str, field: str = "rerank.clip") -> ClipImageEncoder:
    """What makes, where the pixels are, the image_features that a reranker with this CLIP needs; on the device.

    Raises:
        UserError: there is no such CLIP; ``field`` names the setting.
    """
    return load_clip(clip, field)[0].to(default_device())


class DecoderStage:
    """Embeddings to captions, on the device.

    Args:
        decoder: in float32.
        precision: the weights are cast to it.
    """

    def __init__(self, decoder: CaptionDecoder, precision: Precision = Precision.FP32) -> None:
        self.device = default_device()
        self.dtype = precision.dtype(self.device)
        self.decoder = decoder.to(self.device, self.dtype)
        pack_linears(self.decoder)

    def __call__(
        self,
        image_embeds: torch.Tensor,
        decoding: Decoding,
        reranker: Reranker | None = None,
        image_features: torch.Tensor | None = None,
    ) -> list[str]:
        """(B, N, D) of any float type, on any device, to B captions; a reranker chooses each among several, and one
        with a CLIP needs its (B, E) of the images."""
        image_embeds = image_embeds.to(self.device, self.dtype)
        if reranker is not None:
            return reranker(self._blip, image_embeds, decoding, image_features)
        return self.decoder.generate(image_embeds, decoding)

    def write(
        self, image_embeds: torch.Tensor, decoding: Decoding, num_captions: int = 1, explain: bool = False
    ) -> list[list[WrittenCaption]]:
        """(B, N, D) of any float type, on any device, to captions of each image, the best first; with ``explain`` that
        one's attention."""
        return self.decoder.write(image_embeds.to(self.device, self.dtype), decoding, num_captions, explain)

    def embed(self, image_embeds: torch.Tensor, captions: Sequence[Sequence[str]]) -> torch.Tensor:
        """Images, each with its captions (at least one), to joint embeddings: see :mod:`raycap.models.joint`.

        Args:
            image_embeds: (B, N, D) of any float type, on any device.
            captions: of each image; one longer than the decoder's positions is cut.

        Returns:
            (number of pairs, 2D) float32, image after image.
        """
        decoder, most = self._blip, max(map(len, captions))
        texts = [text for of_image in captions for text in (*of_image, *[""] * (most - len(of_image)))]
        positions = decoder.text_decoder.config.max_position_embeddings
        input_ids = torch.from_numpy(encode_captions(decoder.tokenizer, texts, decoder.bos_id, "", positions))
        longest = int((input_ids != decoder.pad_id).sum(1).max())
        input_ids = input_ids[:, :longest].unflatten(0, (-1, most)).to(self.device)  # (B, C, T)
        joint = score_captions(decoder, image_embeds.to(self.device, self.dtype), input_ids).joint_embeds
        return torch.cat([of_image[: len(texts)] for of_image, texts in zip(joint, captions, strict=True)])

    @property
    def _blip(self) -> BlipCaptionDecoder:
        if not isinstance(self.decoder, BlipCaptionDecoder):
            raise UserError("model: an LSTM captioner has no joint embeddings, and none re-ranks; give a BLIP")
        return self.decoder


class CaptionPredictor:
    """All three stages in one process.

    Args:
        encoder, decoder: of the same captioner.
        refiner: None for its own embeddings.
        reranker: None for the search's own best.
        clip: for a reranker with a CLIP, the half that reads images.
    """

    def __init__(
        self,
        encoder: EncoderStage,
        refiner: RefinerStage | None,
        decoder: DecoderStage,
        reranker: Reranker | None = None,
        clip: ClipImageEncoder | None = None,
    ) -> None:
        keep_freed_memory()
        self.encoder, self.refiner, self.decoder = encoder, refiner, decoder
        self.reranker, self.clip = reranker, clip

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        rbm: str | None = None,
        precision: Precision = Precision.FP32,
        rerank: Rerank | None = None,
    ) -> CaptionPredictor:
        """Load from the directory (or s3:// prefix, or hub name) of a BLIP or an LSTM captioner and, if given, a
        refiner's and a reranker's.

        Raises:
            UserError: a directory is missing, or holds another model.
        """
        image_encoder, caption_decoder = load_captioner(model)
        # Before the stages cast the weights: the RBM knows them as they were.
        reranker = Reranker(rerank, pair_id(model, image_encoder, caption_decoder)) if rerank is not None else None
        encoder = EncoderStage(image_encoder, model, precision)
        refiner = RefinerStage(rbm, encoder.id) if rbm is not None else None
        clip = load_clip_image_encoder(rerank.clip) if rerank is not None and rerank.clip is not None else None
        return cls(encoder, refiner, DecoderStage(caption_decoder, precision), reranker, clip)

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

    def describe(self, images: np.ndarray) -> torch.Tensor | None:
        """(B, H, W, 3) uint8 to CLIP's image_features (B, E), which :meth:`decode` then needs; None without a CLIP."""
        return None if self.clip is None else self.clip(images)

    def decode(
        self, image_embeds: torch.Tensor, decoding: Decoding, image_features: torch.Tensor | None = None
    ) -> list[str]:
        """(B, N, D) to B captions."""
        return self.decoder(image_embeds, decoding, self.reranker, image_features)

    def caption(
        self, images: Sequence[Image.Image], decoding: Decoding | None = None, refinement: Refinement | None = None
    ) -> list[str]:
        """RGB images to captions, in one batch."""
        pixels = self.preprocess(images)
        image_embeds = self.refine(self.encode(pixels), refinement or Refinement())
        return self.decode(image_embeds, decoding or Decoding(), self.describe(pixels))

    def write(
        self,
        images: Sequence[Image.Image],
        decoding: Decoding | None = None,
        refinement: Refinement | None = None,
        num_captions: int = 1,
        explain: bool = False,
    ) -> list[list[WrittenCaption]]:
        """RGB images to several captions of each, in one batch, with all that is known of them; none re-ranked.

        Args:
            num_captions: of each image, the best first; without sampling at most ``decoding.num_beams``.
            explain: whether the attention of the first one's words is wanted too.

        Raises:
            UserError: the model does not search in the way of ``decoding``.
        """
        image_embeds = self.refine(self.encode(self.preprocess(images)), refinement or Refinement())
        return self.decoder.write(image_embeds, decoding or Decoding(), num_captions, explain)
