"""Recall and rank of retrieval, from images to their captions and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def retrieval_scores(
    similarities: np.ndarray, relevant: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """How well similarities find an image's captions among all captions, and a caption's image among all images.

    As in Karpathy and Fei-Fei (2015), "Deep Visual-Semantic Alignments", section 4.1: with several captions
    per image, its best placed one counts. A wrong answer as similar as the right one stands before it, so
    that a model which tells nothing apart finds nothing.

    Args:
        similarities: (I, T) of each image with each caption.
        relevant: (I, T) bool, the captions that are right for an image; captions of equal text may be
            right for several images. ``np.equal.outer(image_ids, image_id_of_each_caption)`` where not.
        ks: depths of recall.

    Returns:
        ``image_to_text_recall_{k}`` and ``text_to_image_recall_{k}``, 0 to 1, and
        ``{direction}_median_rank``, from 1 on.

    Raises:
        ValueError: shapes differ, a similarity is not a number, or an image or a caption has nothing right.
    """
    if similarities.shape != relevant.shape or similarities.ndim != 2 or 0 in similarities.shape:
        raise ValueError(f"similarities {similarities.shape}, relevant {relevant.shape}: give both as (I, T)")
    if np.isnan(similarities).any():
        raise ValueError(f"{np.isnan(similarities).sum()} similarities are NaN; they have no rank")
    lonely = int((~relevant.any(1)).sum()), int((~relevant.any(0)).sum())
    if any(lonely):
        raise ValueError(f"{lonely[0]} images and {lonely[1]} captions have nothing right to find; leave them out")
    scores: dict[str, float] = {}
    for name, table, right in (
        ("image_to_text", similarities, relevant),
        ("text_to_image", similarities.T, relevant.T),
    ):
        best = np.where(right, table, -np.inf).max(1, keepdims=True)
        ranks = 1 + ((table >= best) & ~right).sum(1)
        scores |= {f"{name}_recall_{k}": float((ranks <= k).mean()) for k in ks}
        scores[f"{name}_median_rank"] = float(np.median(ranks))
    return scores
