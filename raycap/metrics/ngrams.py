"""N-grams of many captions counted at once: what BLEU, CIDEr and self-CIDEr are made of.

Counting is sorting: an n-gram is the number of its first n - 1 words and its last word, so that numpy
does in a few sorts what dictionaries of tuples do one n-gram at a time.

Shapes: I images, R references of all images, C captions, E different (caption, n-gram) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Words = Sequence[str]

MAX_N = 4
_SIGMA = 6.0


class NgramCounts(NamedTuple):
    """How often each caption contains each n-gram of one order."""

    caption: np.ndarray
    """(E,) the caption's index, ascending."""

    ngram: np.ndarray
    """(E,) the n-gram's number, ascending within a caption."""

    times: np.ndarray
    """(E,) how often it is there."""

    num_ngrams: int
    """Of different n-grams in all captions."""


class NgramMatches(NamedTuple):
    """What candidates share with their references."""

    guess: np.ndarray
    """(I, MAX_N) n-grams of the candidate."""

    correct: np.ndarray
    """(I, MAX_N) of them those in a reference, each as often as in the reference with most of it."""

    cider: np.ndarray
    """(I,) CIDEr-D, 0 to 10."""


def count_ngrams(captions: Sequence[Words]) -> list[NgramCounts]:
    """Count the n-grams of every caption, for n = 1 .. MAX_N."""
    vocabulary: dict[str, int] = {}
    words = np.array([vocabulary.setdefault(word, len(vocabulary)) for caption in captions for word in caption], int)
    lengths = np.array([len(caption) for caption in captions], int)
    owner = np.repeat(np.arange(len(captions)), lengths)
    words_left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # in its caption, itself included
    number = np.zeros(len(words), int)  # of the n-gram that begins at each word; there is one 0-gram
    orders = []
    for n in range(1, MAX_N + 1):
        starts = np.flatnonzero(words_left >= n)
        found, inverse = np.unique(number[starts] * len(vocabulary) + words[starts + n - 1], return_inverse=True)
        number[starts] = inverse
        num_ngrams = max(len(found), 1)
        pairs, times = np.unique(owner[starts] * num_ngrams + inverse, return_counts=True)
        orders.append(NgramCounts(pairs // num_ngrams, pairs % num_ngrams, times, num_ngrams))
    return orders


def inverse_document_frequency(counts: NgramCounts, document: np.ndarray, num_documents: int) -> np.ndarray:
    """log(documents / documents that contain the n-gram), (num_ngrams,); one that is nowhere counts as in one.

    Args:
        document: of the first captions, (R,); the others are in none.
    """
    last = np.searchsorted(counts.caption, len(document))
    pairs = np.unique(document[counts.caption[:last]] * counts.num_ngrams + counts.ngram[:last])
    frequency = np.bincount(pairs % counts.num_ngrams, minlength=counts.num_ngrams)
    return np.log(num_documents / np.maximum(frequency, 1))


def match_ngrams(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> NgramMatches:
    """Compare one candidate per image with that image's references.

    The numbers are pycocoevalcap's: clipped counts of Papineni et al. (2002), "BLEU", section 2.1; CIDEr-D
    of Vedantam et al. (2015), "CIDEr", equations 1 to 3 and 7, whose lengths are pycocoevalcap's counts of
    word pairs and whose document frequencies are those of the references given here.

    Args:
        candidates: I captions in words.
        references: at least one for each candidate.
    """
    num_images, flat = len(candidates), [reference for group in references for reference in group]
    image_of = np.repeat(np.arange(num_images), [len(group) for group in references])  # (R,)
    image = np.concatenate([image_of, np.arange(num_images)])
    lengths = np.array([len(words) for words in (*flat, *candidates)])
    pairs = np.maximum(lengths - 1, 0)
    penalty = np.exp(-((pairs[len(flat) :][image_of] - pairs[: len(flat)]) ** 2) / (2 * _SIGMA**2))
    guess = np.maximum(lengths[len(flat) :, None] - np.arange(MAX_N), 0)
    correct = np.zeros((num_images, MAX_N))
    similarity = np.zeros(len(flat))
    for n, counts in enumerate(count_ngrams([*flat, *candidates])):
        # References are the first captions; an entry of theirs meets the candidate's of the same image and n-gram.
        first = np.searchsorted(counts.caption, len(flat))
        key = image[counts.caption] * counts.num_ngrams + counts.ngram
        theirs, own = key[:first], key[first:]  # own is sorted: one candidate per image
        at = np.searchsorted(own, theirs)
        shared = np.flatnonzero(np.append(own, -1)[at] == theirs)
        at = at[shared]

        most = np.zeros(len(own), int)
        np.maximum.at(most, at, counts.times[shared])
        clipped = np.minimum(most, counts.times[first:])
        correct[:, n] = np.bincount(image[counts.caption[first:]], clipped, minlength=num_images)

        weight = counts.times * inverse_document_frequency(counts, image_of, num_images)[counts.ngram]
        norm = np.sqrt(np.bincount(counts.caption, weight**2, minlength=len(image)))
        products = np.minimum(weight[first:][at], weight[shared]) * weight[shared]
        product = np.bincount(counts.caption[shared], products, minlength=len(flat))
        norms = norm[: len(flat)] * norm[len(flat) :][image_of]
        similarity += penalty * np.divide(product, norms, out=np.zeros(len(flat)), where=norms > 0)
    num_references = np.bincount(image_of, minlength=num_images)
    cider = 10 * np.bincount(image_of, similarity, minlength=num_images) / MAX_N / num_references
    return NgramMatches(guess, correct, cider)
