"""CLIP in two modules: pixels here, texts there, and the cosine between them says how well they fit.

The weights and layers are transformers' own (Radford et al. 2021, "Learning Transferable Visual Models From Natural
Language Supervision"). Both modules give directions, vectors of length 1, so that the cosine is their product: the
reference-free part of CLIPScore (Hessel et al. 2021, equation 1) without its factor 2.5, its clipping at 0 and its
prompt "A photo depicts". Shapes: B images, n texts, T text tokens, E projection_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPModel, PreTrainedTokenizerBase
from transformers.image_utils import ChannelDimension
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPVisionModel


class ClipImageEncoder(nn.Module):
    """Pixels to directions.

    Args:
        vision_model, projection: of a CLIPModel.
        processor: resizes, crops and normalises, as CLIPProcessor does.
    """

    def __init__(self, vision_model: CLIPVisionModel, projection: nn.Linear, processor: CLIPImageProcessorPil) -> None:
        super().__init__()
        self.vision_model, self.projection, self.processor = vision_model, projection, processor

    @torch.inference_mode()
    def forward(self, images: np.ndarray | Sequence[np.ndarray]) -> torch.Tensor:
        """Args:
            images: B of (H, W, 3) uint8 of any size. At BLIP's size CLIP sees what BLIP does: the whole image squeezed
                into a square and resized once more, where CLIP alone would crop the middle of it, unsqueezed.

        Returns:
            image_features (B, E), of length 1 each.
        """
        pixels = self.processor(list(images), input_data_format=ChannelDimension.LAST, return_tensors="pt").pixel_values
        pooled = self.vision_model(pixel_values=pixels.to(self.projection.weight.device)).pooler_output
        return functional.normalize(self.projection(pooled), dim=-1)


class ClipTextEncoder(nn.Module):
    """Texts to directions.

    Args:
        text_model, projection: of a CLIPModel.
        tokenizer: CLIP's own.
    """

    def __init__(self, text_model: CLIPTextModel, projection: nn.Linear, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.text_model, self.projection, self.tokenizer = text_model, projection, tokenizer

    @torch.inference_mode()
    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """Args:
            texts: n; of one longer than CLIP's positions (77 tokens) the end is cut off.

        Returns:
            text_features (n, E), of length 1 each.
        """
        positions = self.text_model.config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=positions, return_tensors="pt")
        pooled = self.text_model(**tokens.to(self.projection.weight.device)).pooler_output  # input_ids (n, T)
        return functional.normalize(self.projection(pooled), dim=-1)


def split_clip(
    model: CLIPModel, processor: CLIPImageProcessorPil, tokenizer: PreTrainedTokenizerBase
) -> tuple[ClipImageEncoder, ClipTextEncoder]:
    """Both halves of a CLIP; they share its weights."""
    image_encoder = ClipImageEncoder(model.vision_model, model.visual_projection, processor)
    return image_encoder, ClipTextEncoder(model.text_model, model.text_projection, tokenizer)
