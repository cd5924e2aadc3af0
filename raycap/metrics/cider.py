"""CIDEr-D of word ids against document frequencies that are known beforehand: a reward for single batches.

:func:`raycap.metrics.ngrams.match_ngrams` takes the frequencies from the references it is given; in training these are
one batch's, and would change from batch to batch. Shapes: I images, K references of each, T words, C captions.
"""

from __future__ import annotations

import numpy as np

from raycap.metrics.ngrams import MAX_N

_SIGMA = 6.0


class CorpusCider:
    """CIDEr-D (Vedantam et al. 2015, equations 1 to 3 and 7) with the document frequencies of a corpus.

    Args:
        references: (I, K, T) word ids of the corpus; 0 is no word, a caption's words come first, and a caption without
            words is none.
        vocab_size: V; ids are below it.

    Raises:
        ValueError: so many ids that MAX_N of them fit no 64-bit number.
    """

    def __init__(self, references: np.ndarray, vocab_size: int) -> None:
        if vocab_size**MAX_N >= 2**63:
            raise ValueError(f"vocab_size ({vocab_size}) must be below {int(2 ** (63 / MAX_N))}")
        self.vocab_size, self.num_documents = vocab_size, len(references)
        num_references = references.shape[1]
        self._frequencies = []
        for n in range(1, MAX_N + 1):
            caption, ngram = self._ngrams(references.reshape(-1, references.shape[-1]), n)
            ngrams, number = np.unique(ngram, return_inverse=True)
            pairs = np.unique(number * self.num_documents + caption // num_references)
            self._frequencies.append((ngrams, np.bincount(pairs // self.num_documents, minlength=len(ngrams))))

    def __call__(self, candidates: np.ndarray, references: np.ndarray) -> np.ndarray:
        """Scores, (I,), 0 to 10.

        Args:
            candidates: (I, T) word ids, one caption an image.
            references: (I, K, T), at least one for each.
        """
        num_images, num_references, _ = references.shape
        flat = num_images * num_references
        longest = max(candidates.shape[1], references.shape[2])
        captions = np.concatenate([_widen(references.reshape(flat, -1), longest), _widen(candidates, longest)])
        lengths = (captions != 0).sum(1)
        image = np.concatenate([np.repeat(np.arange(num_images), num_references), np.arange(num_images)])
        # As pycocoevalcap has it, a caption's length is its number of word pairs.
        pairs = np.maximum(lengths - 1, 0)
        penalty = np.exp(-((pairs[flat:][image[:flat]] - pairs[:flat]) ** 2) / (2 * _SIGMA**2))
        similarity = np.zeros(flat)
        for n in range(1, MAX_N + 1):
            caption, ngram = self._ngrams(captions, n)
            if not len(ngram):
                continue
            ngrams, number = np.unique(ngram, return_inverse=True)
            # (caption, n-gram) pairs, references' first, and how often each is there.
            entry, times = np.unique(caption * len(ngrams) + number, return_counts=True)
            of_caption, number = entry // len(ngrams), entry % len(ngrams)
            weight = times * self._inverse_frequency(ngrams, n)[number]
            norm = np.sqrt(np.bincount(of_caption, weight**2, minlength=len(captions)))
            first = np.searchsorted(of_caption, flat)
            key = image[of_caption] * len(ngrams) + number
            at = np.searchsorted(key[first:], key[:first])
            shared = np.flatnonzero(np.append(key[first:], -1)[at] == key[:first])
            theirs, own = weight[:first][shared], weight[first:][at[shared]]
            product = np.bincount(of_caption[shared], np.minimum(own, theirs) * theirs, minlength=flat)
            norms = norm[:flat] * norm[flat:][image[:flat]]
            similarity += penalty * np.divide(product, norms, out=np.zeros(flat), where=norms > 0)
        there = (lengths[:flat] > 0).reshape(num_images, num_references).sum(1)
        return 10 * similarity.reshape(num_images, num_references).sum(1) / MAX_N / np.maximum(there, 1)

    def _ngrams(self, captions: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each n-gram in (C, T) ids its caption and, as one number, its words."""
        width = captions.shape[1] - n + 1
        if width < 1:
            return np.zeros(0, int), np.zeros(0, int)
        numbers = np.zeros((len(captions), width), np.int64)
        for place in range(n):
            numbers = numbers * self.vocab_size + captions[:, place : place + width]
        caption, start = np.nonzero(captions[:, n - 1 :])  # where the last word is one, all are
        return caption, numbers[caption, start]

    def _inverse_frequency(self, ngrams: np.ndarray, n: int) -> np.ndarray:
        known, documents = self._frequencies[n - 1]
        if not len(known):
            return np.full(len(ngrams), np.log(self.num_documents))
        at = np.minimum(np.searchsorted(known, ngrams), len(known) - 1)
        found = np.where(known[at] == ngrams, documents[at], 1)
        frequency: np.ndarray = np.log(self.num_documents / found)
        return frequency


def _widen(captions: np.ndarray, width: int) -> np.ndarray:
    return np.pad(captions, ((0, 0), (0, width - captions.shape[1])))
