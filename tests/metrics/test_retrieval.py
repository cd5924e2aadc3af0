from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.metrics.retrieval import retrieval_scores


def test_a_case_worked_by_hand() -> None:
    # Images A, B; captions A1, A2, B1. A's best caption is second (behind B1), B's first.
    similarities = np.array([[0.5, 0.1, 0.9], [0.6, 0.0, 0.8]])
    relevant = np.array([[True, True, False], [False, False, True]])
    # A1 prefers B, A2 prefers A, B1 prefers A.
    assert retrieval_scores(similarities, relevant, ks=(1, 2)) == {
        "image_to_text_recall_1": 0.5,
        "image_to_text_recall_2": 1.0,
        "image_to_text_median_rank": 1.5,
        "text_to_image_recall_1": pytest.approx(1 / 3),
        "text_to_image_recall_2": 1.0,
        "text_to_image_median_rank": 2.0,
    }


@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_recall_and_rank_are_those_of_sorted_lists(num_images: int, num_captions: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.repeat(np.arange(num_images), num_captions))
    similarities = rng.permutation(num_images * len(owner)).reshape(num_images, len(owner)).astype(float)  # no ties
    relevant = np.equal.outer(np.arange(num_images), owner)
    found = retrieval_scores(similarities, relevant)
    for name, table, right in (
        ("image_to_text", similarities, relevant),
        ("text_to_image", similarities.T, relevant.T),
    ):
        hits = [list(mine[np.argsort(-row)]).index(True) + 1 for row, mine in zip(table, right, strict=True)]
        # In a list an image's other captions may stand before a wrong one, never before its first.
        assert found[f"{name}_median_rank"] == np.median(hits)
        for k in (1, 5, 10):
            assert found[f"{name}_recall_{k}"] == pytest.approx(np.mean(np.array(hits) <= k))


def test_a_model_that_tells_nothing_apart_finds_nothing() -> None:
    found = retrieval_scores(np.zeros((20, 20)), np.eye(20, dtype=bool))
    assert found["image_to_text_recall_10"] == found["text_to_image_recall_10"] == 0
    assert found["image_to_text_median_rank"] == 20


def test_captions_of_equal_text_are_right_for_both_images() -> None:
    similarities = np.array([[0.1, 0.9], [0.9, 0.1]])
    assert retrieval_scores(similarities, np.eye(2, dtype=bool))["text_to_image_recall_1"] == 0
    assert retrieval_scores(similarities, np.ones((2, 2), bool))["text_to_image_recall_1"] == 1


def test_what_has_no_rank_is_refused() -> None:
    with pytest.raises(ValueError, match=r"give both as \(I, T\)"):
        retrieval_scores(np.zeros((2, 3)), np.ones((3, 2), bool))
    with pytest.raises(ValueError, match="1 similarities are NaN"):
        retrieval_scores(np.array([[np.nan]]), np.ones((1, 1), bool))
    with pytest.raises(ValueError, match="1 images and 0 captions have nothing right"):
        retrieval_scores(np.zeros((2, 1)), np.array([[True], [False]]))
