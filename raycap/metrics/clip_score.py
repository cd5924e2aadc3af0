"""CLIPScore: how well a caption fits its image, and its references, in the eyes of a CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from raycap.metrics.similarity import cosine

_WEIGHT = 2.5
_PROMPT = "A photo depicts "


class Clip(Protocol):
    """A model with one space for images and texts; D is its width."""

    def embed_images(self, image_ids: Sequence[str]) -> np.ndarray:
        """(images, D), of the images with these ids."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, D)."""


def clip_scores(
    clip: Clip, candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], image_ids: Sequence[str]
) -> list[np.ndarray]:
    """CLIPScore and RefCLIPScore of each image's caption (Hessel et al. 2021, "CLIPScore", section 3).

    CLIP-S = 2.5 max(cos(caption, image), 0); RefCLIP-S is the harmonic mean of it and of the largest
    max(cos(caption, reference), 0). Texts are given as "A photo depicts ...", as there.

    Args:
        image_ids: the order of the scores.

    Returns:
        Both scores, (images,) each.
    """
    prompted = [_PROMPT + candidates[image_id] for image_id in image_ids]
    others = [_PROMPT + text for image_id in image_ids for text in references[image_id]]
    owner = np.repeat(np.arange(len(image_ids)), [len(references[image_id]) for image_id in image_ids])
    captions = clip.embed_texts(prompted)
    clipscore = _WEIGHT * np.maximum(cosine(captions, clip.embed_images(image_ids)), 0)
    nearest = np.zeros(len(image_ids))
    np.maximum.at(nearest, owner, cosine(captions[owner], clip.embed_texts(others)))
    total = clipscore + nearest
    harmonic = np.divide(2 * clipscore * nearest, total, out=np.zeros_like(total), where=total > 0)
    return [clipscore, harmonic]
