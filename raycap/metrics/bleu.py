"""Corpus BLEU of counts summed over images, and the lengths that its brevity penalty comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raycap.metrics.ngrams import MAX_N, Words

# pycocoevalcap's, which keep a score without any match finite.
_SMALL, _TINY = 1e-9, 1e-15


def closest_length(candidate: Words, references: Sequence[Words]) -> int:
    """Words of the reference closest in length to the candidate, the shorter of two as close."""
    return min((len(words) for words in references), key=lambda length: (abs(length - len(candidate)), length))


def length_statistics(candidate: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
    """What Moses' ``multi-bleu.perl`` prints beside BLEU.

    Args:
        candidate: words of the candidates, summed over the images, (...).
        reference: words of the references closest in length, summed likewise, (...).

    Returns:
        ``candidate_length``, ``reference_length``, ``length_ratio`` of the two, and ``brevity_penalty``,
        by which BLEU is multiplied: exp(1 - 1 / ratio), at most 1 (Papineni et al. 2002, section 2.2); (...) each.
    """
    ratio = (candidate + _TINY) / (reference + _SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return {
        "candidate_length": candidate,
        "reference_length": reference,
        "length_ratio": ratio,
        "brevity_penalty": brevity,
    }


def bleu(guess: np.ndarray, correct: np.ndarray, brevity_penalty: np.ndarray) -> dict[str, np.ndarray]:
    """``bleu_1`` .. ``bleu_4``, 0 to 1 and (...) each, as pycocoevalcap computes them (Papineni et al. 2002).

    Args:
        guess: n-grams of the candidates by n, (..., MAX_N), summed over the images.
        correct: of them those in a reference, summed likewise, (..., MAX_N).
        brevity_penalty: (...).
    """
    product = np.cumprod((correct + _TINY) / (guess + _SMALL), axis=-1)
    return {f"bleu_{n}": product[..., n - 1] ** (1 / n) * brevity_penalty for n in range(1, MAX_N + 1)}
