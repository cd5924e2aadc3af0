from __future__ import annotations

import pytest

from raycap.metrics.diversity import diversity, novelty, repeats


def test_diversity_counts_different_words_pairs_and_captions() -> None:
    result = diversity({"1": "a red dog", "2": "a red cat", "3": "A red cat."})
    assert result == {"distinct_1": 4 / 9, "distinct_2": 3 / 6, "distinct_captions": 2 / 3, "vocabulary": 4}


@pytest.mark.parametrize(
    ("caption", "twice"),
    [
        ("a man in a blue shirt and a blue shirt and a blue shirt", True),
        ("a blue shirt and a blue shirt", True),
        ("dog dog dog dog", True),
        ("dog dog dog", False),
        ("a man and a woman in a car", False),
        ("a dog", False),
        ("", False),
    ],
)
def test_three_words_in_a_row_that_stand_twice_are_a_repetition(caption: str, twice: bool) -> None:
    assert repeats(caption.split()) is twice


def test_repetition_of_other_lengths() -> None:
    assert repeats(["a", "man", "and", "a", "man"], n=2)
    assert not repeats(["a", "man", "and", "a", "woman"], n=2)


def test_novelty_is_the_share_unseen_whatever_case_and_punctuation() -> None:
    training = ["A red dog.", "a cat"]
    assert novelty(["a red dog", "a red dog runs", "A CAT!", "dog"], training) == 0.5
    assert novelty(["a"], []) == 1
    with pytest.raises(ValueError, match="0 captions"):
        novelty([], training)
