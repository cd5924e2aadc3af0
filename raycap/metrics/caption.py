"""BLEU, CIDEr and exact match of captions, kept as sums so that a resample's score is one product.

The n-gram counts and the CIDEr of each image are pycocoevalcap's. Corpus BLEU is a function of
counts summed over the images, CIDEr and exact match are means over them; so one row of additive
statistics per image is enough to score any resample of the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider

from raycap.metrics.tokens import tokenize

_MAX_N = 4
# Columns of a statistics row; guess and correct are counts of 1- to 4-grams.
_IMAGES, _CIDER, _EXACT, _LENGTH, _REFERENCE_LENGTH = range(5)
_GUESS = slice(5, 5 + _MAX_N)
_CORRECT = slice(5 + _MAX_N, 5 + 2 * _MAX_N)
NUM_STATISTICS = 5 + 2 * _MAX_N
# pycocoevalcap's, which keep a score without any match finite.
_SMALL, _TINY = 1e-9, 1e-15


def caption_scores(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Scores of captions against references.

    Args:
        candidates: one caption for each image id.
        references: at least one reference for each of the same image ids.

    Returns:
        ``bleu_1`` .. ``bleu_4`` (0 to 1), ``cider`` (0 to 10; papers print it times 100) and
        ``exact_match``, the share of captions that are one of their references.

    Raises:
        ValueError: the image ids differ, there are none, or an image has no reference.
    """
    sums = caption_statistics(candidates, references).sum(0)
    return {name: float(score) for name, score in scores_of_sums(sums).items()}


def caption_statistics(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> np.ndarray:
    """One row of additive statistics per image, in the order of the sorted image ids.

    CIDEr's document frequencies are those of all the references given here; a resample keeps them.

    Returns:
        (images, NUM_STATISTICS) float64, for :func:`scores_of_sums`.

    Raises:
        ValueError: as for :func:`caption_scores`.
    """
    if not candidates or candidates.keys() != references.keys():
        raise ValueError(f"captions of {len(candidates)} images, references of {len(references)}: give equal ids")
    image_ids = sorted(candidates)
    bare = [image_id for image_id in image_ids if not references[image_id]]
    if bare:
        raise ValueError(f"{len(bare)} images without a reference, first {bare[0]}; leave them out")
    hypotheses = {image_id: [tokenize(candidates[image_id])] for image_id in image_ids}
    truths = {image_id: [tokenize(text) for text in references[image_id]] for image_id in image_ids}
    table = np.zeros((len(image_ids), NUM_STATISTICS))
    table[:, _IMAGES] = 1
    table[:, _CIDER] = Cider().compute_score(truths, hypotheses)[1]
    for row, image_id in zip(table, image_ids, strict=True):
        hypothesis, texts = hypotheses[image_id][0], truths[image_id]
        row[_EXACT] = hypothesis in texts
        counts = BleuScorer(hypothesis, texts).ctest[0]
        row[_LENGTH] = counts["testlen"]
        # "closest": the reference length that brevity is measured by, the shorter of two as close.
        row[_REFERENCE_LENGTH] = min(counts["reflen"], key=lambda length: (abs(length - row[_LENGTH]), length))
        row[_GUESS], row[_CORRECT] = counts["guess"], counts["correct"]
    return table


def scores_of_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Corpus scores of summed statistics; BLEU as pycocoevalcap computes it (Papineni et al. 2002).

    Args:
        sums: (..., NUM_STATISTICS), each summed over the images of one corpus or resample.

    Returns:
        Scores of shape (...), named as in :func:`caption_scores`.
    """
    precisions = (sums[..., _CORRECT] + _TINY) / (sums[..., _GUESS] + _SMALL)  # (..., 4)
    ratio = (sums[..., _LENGTH] + _TINY) / (sums[..., _REFERENCE_LENGTH] + _SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    product = np.cumprod(precisions, axis=-1)
    scores = {f"bleu_{n}": product[..., n - 1] ** (1 / n) * brevity for n in range(1, _MAX_N + 1)}
    scores["cider"] = sums[..., _CIDER] / sums[..., _IMAGES]
    scores["exact_match"] = sums[..., _EXACT] / sums[..., _IMAGES]
    return scores


def diversity(candidates: Mapping[str, str]) -> dict[str, float]:
    """How much captions differ from each other.

    Returns:
        ``distinct_1`` and ``distinct_2``, the share of different words and word pairs among all
        (Li et al. 2016, "A diversity-promoting objective function"), and ``distinct_captions``.
    """
    texts = [tokenize(caption).split() for caption in candidates.values()]
    result = {}
    for n in (1, 2):
        grams = [tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1)]
        result[f"distinct_{n}"] = len(set(grams)) / max(len(grams), 1)
    result["distinct_captions"] = len({tuple(words) for words in texts}) / max(len(texts), 1)
    return result
