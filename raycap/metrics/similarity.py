"""How alike two vectors are: the measures that embeddings, distributions and sets are compared by.

Each takes arrays (..., D) that broadcast and gives (...), in double precision.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

Measure = Callable[[ArrayLike, ArrayLike], np.ndarray]


def pairwise(measure: Measure, rows: ArrayLike, columns: ArrayLike) -> np.ndarray:
    """The measure of each of (M, D) with each of (N, D), (M, N); row by row, so that no (M, N, D) is made."""
    return np.stack([measure(row, columns) for row in np.asarray(rows)])


def cosine(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """a . b / (|a| |b|), -1 to 1; 0 where a vector is 0."""
    a, b = _vectors(a, b)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return _ratio(np.einsum("...d,...d->...", a, b), norms, 0.0)


def euclidean_distance(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """|a - b|, from 0 on."""
    a, b = _vectors(a, b)
    return np.linalg.norm(a - b, axis=-1)


def euclidean_similarity(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """1 / (1 + |a - b|), 0 to 1."""
    return 1 / (1 + euclidean_distance(a, b))


def kl_divergence(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Kullback-Leibler divergence of b from a, sum a log(a / b) in nats, from 0 to infinity.

    Raises:
        ValueError: for this and the Jensen-Shannon divergence, a vector is no distribution.
    """
    a, b = _distributions(a, b)
    return _relative_entropy(a, b)


def jensen_shannon_divergence(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Mean divergence of the two from their mean, in nats, 0 to log 2 (Lin 1991, equation 4.1; equal weights)."""
    a, b = _distributions(a, b)
    middle = (a + b) / 2
    return (_relative_entropy(a, middle) + _relative_entropy(b, middle)) / 2


def jaccard(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """sum min(a, b) / sum max(a, b), 0 to 1; of indicators of two sets |A n B| / |A u B|; 1 where both are empty.

    Raises:
        ValueError: for this and the overlap coefficient, a number is below 0.
    """
    a, b = _counts(a, b)
    return _ratio(np.minimum(a, b).sum(-1), np.maximum(a, b).sum(-1), 1.0)


def overlap_coefficient(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """sum min(a, b) / min(sum a, sum b), 0 to 1; of indicators |A n B| / min(|A|, |B|); 1 where one is empty."""
    a, b = _counts(a, b)
    return _ratio(np.minimum(a, b).sum(-1), np.minimum(a.sum(-1), b.sum(-1)), 1.0)


def _vectors(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)


def _counts(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = _vectors(a, b)
    least = min(a.min(initial=0), b.min(initial=0))
    if not least >= 0:
        raise ValueError(f"vectors with {least:g}: give sets (0 and 1), counts or other numbers from 0 on")
    return a, b


def _distributions(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = _counts(a, b)
    for sums in (a.sum(-1), b.sum(-1)):
        if not np.allclose(sums, 1, atol=1e-4):  # softmax in half precision sums to 1 no better
            raise ValueError(f"probabilities that sum to {sums.min():g} .. {sums.max():g}: give ones that sum to 1")
    return a, b


def _relative_entropy(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):  # a > 0 = b is infinite, and 0 log 0 is 0
        return np.where(a > 0, a * np.log(a / b), 0.0).sum(-1)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, otherwise: float) -> np.ndarray:
    numerator, denominator = np.asarray(numerator), np.asarray(denominator)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, otherwise), where=denominator > 0)
