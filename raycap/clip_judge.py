"""A CLIP as the judge of captions, for :func:`raycap.metrics.caption.caption_scores`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from raycap.checkpoint.pretrained import load_clip
from raycap.hardware import default_device


class ClipJudge:
    """A :class:`raycap.metrics.clip_score.Clip`; D is the width of its projections.

    Args:
        source: directory, s3:// prefix or hub name, such as openai/clip-vit-base-patch32 (the published scores' model).
        load_image: from an image id to its picture.
        batch_size: pictures or texts at once.

    Raises:
        UserError: there is no such CLIP.
    """

    def __init__(self, source: str, load_image: Callable[[str], Image.Image], batch_size: int = 64) -> None:
        self._image_encoder, self._text_encoder = (half.to(default_device()) for half in load_clip(source, "source"))
        self._load_image, self._batch_size = load_image, batch_size

    def embed_images(self, image_ids: Sequence[str]) -> np.ndarray:
        """(images, D), of the pictures that ``load_image`` gives."""
        return self._embed(image_ids, self._encode_images)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, D); a text longer than the model reads is cut."""
        return self._embed(texts, self._text_encoder)

    def _encode_images(self, image_ids: Sequence[str]) -> torch.Tensor:
        return self._image_encoder([np.asarray(self._load_image(image_id).convert("RGB")) for image_id in image_ids])

    def _embed(self, items: Sequence[str], encode: Callable[[Sequence[str]], torch.Tensor]) -> np.ndarray:
        starts = range(0, len(items), self._batch_size)
        return np.concatenate([encode(items[i : i + self._batch_size]).cpu().numpy() for i in starts])
