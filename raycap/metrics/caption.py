"""Scores of captions against references, kept as sums so that a resample's score is one product.

Corpus BLEU is a function of counts summed over the images; CIDEr, ROUGE-L, exact match and the rest
are means over them. So one row of additive statistics per image is enough to score any resample.
METEOR and SPICE are not made of sums, and need Java: see :mod:`raycap.metrics.java_scores`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from raycap.metrics.bleu import bleu, closest_length, length_statistics
from raycap.metrics.clip_score import Clip, clip_scores
from raycap.metrics.diversity import repeats
from raycap.metrics.java_scores import NOT_ASKED_FOR, java_scores
from raycap.metrics.ngrams import MAX_N, match_ngrams
from raycap.metrics.rouge import rouge_l
from raycap.metrics.tokens import Tokenizer, tokenize_all

# Columns of a statistics row: counts, then what is a mean over images. Those of a CLIP are there only with one.
_IMAGES, _LENGTH, _REFERENCE_LENGTH = range(3)
_GUESS = slice(3, 3 + MAX_N)
_CORRECT = slice(3 + MAX_N, 3 + 2 * MAX_N)
_FIRST_MEAN = 3 + 2 * MAX_N
_MEANS = ("rouge_l", "cider", "exact_match", "repetition_rate", "clipscore", "refclipscore")


class CaptionScores(dict[str, float]):
    """Scores by name, and ``left_out``: the scores that could not be had, with the reason and its remedy."""

    def __init__(self, scores: Mapping[str, float], left_out: Mapping[str, str]) -> None:
        super().__init__(scores)
        self.left_out = dict(left_out)

    def __missing__(self, name: str) -> float:
        raise KeyError(f"{name}: left out, {self.left_out[name]}" if name in self.left_out else name)


class References:
    """The references of some images, split into words once for all the systems that are held against them.

    Args:
        captions: at least one for each image id.
        tokenizer: splits these and the candidates into words.

    Raises:
        ValueError: there are none, or an image has no reference.
    """

    def __init__(self, captions: Mapping[str, Sequence[str]], tokenizer: Tokenizer = tokenize_all) -> None:
        bare = [image_id for image_id, texts in captions.items() if not texts]
        if bare or not captions:
            raise ValueError(f"{len(bare)} of {len(captions)} images without a reference, first {bare[:1]}; give one")
        self.captions, self.tokenizer, self.image_ids = captions, tokenizer, sorted(captions)
        texts = iter(tokenizer([text for image_id in self.image_ids for text in captions[image_id]]))
        self.texts = [[next(texts) for _ in captions[image_id]] for image_id in self.image_ids]
        self.words = [[text.split() for text in group] for group in self.texts]

    def tokenize(self, candidates: Mapping[str, str]) -> list[str]:
        """The candidates in the order of ``image_ids``, words separated by single spaces.

        Raises:
            ValueError: they are of other images.
        """
        if candidates.keys() != self.captions.keys():
            count = len(self.captions)
            raise ValueError(f"captions of {len(candidates)} images, references of {count}: give equal ids")
        return self.tokenizer([candidates[image_id] for image_id in self.image_ids])


def caption_scores(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]] | References,
    clip: Clip | None = None,
    java: bool = True,
) -> CaptionScores:
    """Scores of captions against references.

    Args:
        candidates: one caption for each image id.
        references: at least one reference for each of the same image ids.
        clip: judges captions by the images.
        java: also METEOR and SPICE, which take seconds to minutes.

    Returns:
        ``bleu_1`` .. ``bleu_4``, ``rouge_l`` (0 to 1), ``cider`` (0 to 10; papers print it times 100),
        ``exact_match``, the share of captions that are one of their references, ``repetition_rate`` (see
        :func:`raycap.metrics.diversity.repeats`), ``meteor`` and ``spice`` (0 to 1), and with a CLIP
        ``clipscore`` (0 to 2.5) and ``refclipscore``. What could not be had is in ``left_out``.

    Warns:
        UserWarning: a score was asked for that could not be had, such as METEOR without Java.

    Raises:
        ValueError: the image ids differ, there are none, or an image has no reference.
    """
    references = references if isinstance(references, References) else References(references)
    sums = caption_statistics(candidates, references, clip).sum(0)
    scores = {name: float(score) for name, score in scores_of_sums(sums).items()}
    if not java:
        return CaptionScores(scores, NOT_ASKED_FOR)
    found, left_out = java_scores(references.tokenize(candidates), references.texts)
    for name, reason in left_out.items():
        warnings.warn(f"{name} is left out: {reason}", stacklevel=2)
    return CaptionScores(scores | found, left_out)


def caption_statistics(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]] | References, clip: Clip | None = None
) -> np.ndarray:
    """One row of additive statistics per image, in the order of the sorted image ids.

    CIDEr's document frequencies are those of all the references given here; a resample keeps them.

    Returns:
        (images, statistics) float64, for :func:`scores_of_sums` and :func:`lengths_of_sums`.

    Raises:
        ValueError: as for :func:`caption_scores`.
    """
    references = references if isinstance(references, References) else References(references)
    texts = references.tokenize(candidates)
    words = [text.split() for text in texts]
    matches = match_ngrams(words, references.words)
    means = [
        np.array([rouge_l(*pair) for pair in zip(words, references.words, strict=True)]),
        matches.cider,
        np.array([text in group for text, group in zip(texts, references.texts, strict=True)]),
        np.array([repeats(caption) for caption in words]),
    ]
    if clip is not None:
        means += clip_scores(clip, candidates, references.captions, references.image_ids)
    closest = [closest_length(*pair) for pair in zip(words, references.words, strict=True)]
    lengths = np.array([len(caption) for caption in words])
    columns = [np.ones(len(words)), lengths, closest, *matches.guess.T, *matches.correct.T, *means]
    return np.stack(columns, axis=1, dtype=np.float64, casting="unsafe")


def scores_of_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Corpus scores of summed statistics.

    Args:
        sums: (..., statistics), each summed over the images of one corpus or resample.

    Returns:
        Scores of shape (...), named as in :func:`caption_scores`.
    """
    scores = bleu(sums[..., _GUESS], sums[..., _CORRECT], lengths_of_sums(sums)["brevity_penalty"])
    means = sums[..., _FIRST_MEAN:] / sums[..., _IMAGES, None]
    return scores | {name: means[..., index] for index, name in enumerate(_MEANS[: means.shape[-1]])}


def lengths_of_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    """:func:`raycap.metrics.bleu.length_statistics` of summed statistics, (...) each."""
    return length_statistics(sums[..., _LENGTH], sums[..., _REFERENCE_LENGTH])
