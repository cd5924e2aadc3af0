from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import distance
from scipy.stats import entropy
from sklearn.metrics import jaccard_score
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances

from raycap.metrics.similarity import (
    cosine,
    euclidean_distance,
    euclidean_similarity,
    jaccard,
    jensen_shannon_divergence,
    kl_divergence,
    overlap_coefficient,
    pairwise,
)

RNG = np.random.default_rng(0)
ROWS, COLUMNS = RNG.normal(size=(4, 7)), RNG.normal(size=(5, 7))
P, Q = RNG.dirichlet(np.ones(6), size=8), RNG.dirichlet(np.ones(6), size=8)


def test_cosine_and_distance_of_all_pairs_are_scikit_learns() -> None:
    np.testing.assert_allclose(pairwise(cosine, ROWS, COLUMNS), cosine_similarity(ROWS, COLUMNS), atol=1e-12)
    distances = euclidean_distances(ROWS, COLUMNS)
    np.testing.assert_allclose(pairwise(euclidean_distance, ROWS, COLUMNS), distances, atol=1e-12)
    np.testing.assert_allclose(pairwise(euclidean_similarity, ROWS, COLUMNS), 1 / (1 + distances), atol=1e-12)


def test_divergences_are_scipys() -> None:
    np.testing.assert_allclose(kl_divergence(P, Q), entropy(P, Q, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(jensen_shannon_divergence(P, Q), distance.jensenshannon(P, Q, axis=-1) ** 2, rtol=1e-9)


def test_divergences_where_a_probability_is_0() -> None:
    assert kl_divergence([0.5, 0.5, 0], [1, 0, 0]) == np.inf
    assert kl_divergence([1, 0, 0], [0.5, 0.5, 0]) == pytest.approx(np.log(2))
    assert jensen_shannon_divergence([1, 0], [0, 1]) == pytest.approx(np.log(2))


def test_jaccard_and_overlap_of_sets() -> None:
    a, b = RNG.random((9, 12)) < 0.4, RNG.random((9, 12)) < 0.6
    np.testing.assert_allclose(jaccard(a, b), [jaccard_score(x, y) for x, y in zip(a, b, strict=True)])
    expected = [(x & y).sum() / min(x.sum(), y.sum()) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(overlap_coefficient(a, b), expected)
    assert overlap_coefficient([1, 1, 0, 0], [1, 1, 1, 1]) == 1, "a subset overlaps wholly"


def test_jaccard_of_counts_worked_by_hand() -> None:
    assert jaccard([2, 0, 1], [1, 1, 1]) == pytest.approx(2 / 4)
    assert overlap_coefficient([2, 0, 1], [1, 1, 1]) == pytest.approx(2 / 3)


def test_what_is_empty_has_a_value() -> None:
    assert cosine([0, 0], [1, 2]) == 0
    assert jaccard([0, 0], [0, 0]) == overlap_coefficient([0, 0], [1, 0]) == 1
    assert euclidean_similarity([1, 2], [1, 2]) == 1


def test_numbers_below_0_and_what_is_no_distribution_are_refused() -> None:
    with pytest.raises(ValueError, match="vectors with -1"):
        jaccard([1, -1], [0, 1])
    with pytest.raises(ValueError, match="vectors with nan"):
        overlap_coefficient([1, np.nan], [0, 1])
    with pytest.raises(ValueError, match=r"sum to 2 .. 2"):
        kl_divergence([1, 1], [0.5, 0.5])
