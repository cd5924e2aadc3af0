"""A CLIP of transformers as the judge of captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from raycap.errors import UserError


class HubClip:
    """A :class:`raycap.metrics.clip_score.Clip`; D is the width of its projections.

    Args:
        source: hub name, such as openai/clip-vit-base-patch32 (the published scores' model), or directory.
        load_image: from an image id to its picture.
        batch_size: pictures or texts at once.
        device: of the model.

    Raises:
        UserError: there is no such CLIP.
    """

    def __init__(
        self, source: str, load_image: Callable[[str], Image.Image], batch_size: int = 64, device: str = "cpu"
    ) -> None:
        try:
            self._model = CLIPModel.from_pretrained(source).to(device).eval()
            self._tokenizer = AutoTokenizer.from_pretrained(source)
            self._processor = AutoImageProcessor.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise UserError(f"source = {source}: no CLIP there ({error}); give a directory or a hub name") from error
        self._load_image, self._batch_size, self._device = load_image, batch_size, device

    def embed_images(self, image_ids: Sequence[str]) -> np.ndarray:
        """(images, D), of the pictures that ``load_image`` gives."""
        return self._embed(image_ids, self._image_features)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, D); a text longer than the model reads is cut."""
        return self._embed(texts, self._text_features)

    def _embed(self, items: Sequence[str], features: Callable[[Sequence[str]], torch.Tensor]) -> np.ndarray:
        starts = range(0, len(items), self._batch_size)
        with torch.inference_mode():
            return np.concatenate([features(items[i : i + self._batch_size]).float().cpu().numpy() for i in starts])

    def _image_features(self, image_ids: Sequence[str]) -> torch.Tensor:
        pictures = [self._load_image(image_id).convert("RGB") for image_id in image_ids]
        inputs = self._processor(images=pictures, return_tensors="pt").to(self._device)
        return _pooled(self._model.get_image_features(**inputs))

    def _text_features(self, texts: Sequence[str]) -> torch.Tensor:
        length = self._model.config.text_config.max_position_embeddings
        inputs = self._tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return _pooled(self._model.get_text_features(**inputs.to(self._device)))


def _pooled(output: Any) -> torch.Tensor:
    features: torch.Tensor = output.pooler_output  # projected
    return features
