from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.rouge.rouge import my_lcs

from raycap.metrics.rouge import rouge_l

_WORDS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=70)


def test_a_case_worked_by_hand() -> None:
    # Longest common subsequence "a circle above square", 4 of the caption's 5 words and of the reference's 6.
    precision, recall = 4 / 5, 4 / 6
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    candidate, reference = "a circle above blue square", "a red circle above a square"
    assert rouge_l(candidate.split(), [reference.split()]) == pytest.approx(expected)


def test_precision_and_recall_are_the_best_of_any_reference() -> None:
    candidate, short, long = list("abc"), ["a"], list("abxy")
    precision, recall = 2 / 3, 1.0  # by the long one, by the short one
    expected = 2.44 * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(candidate, [short, long]) == pytest.approx(expected)


@given(_WORDS, _WORDS)
def test_common_subsequence_is_as_long_as_the_table_says(candidate: list[str], reference: list[str]) -> None:
    # With one reference and P = L/m, R = L/n the score gives L back.
    common = my_lcs(candidate, reference)
    if not common:
        assert rouge_l(candidate, [reference]) == 0
        return
    precision, recall = common / len(candidate), common / len(reference)
    assert rouge_l(candidate, [reference]) == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision))
