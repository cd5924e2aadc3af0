"""CIDEr-D with known document frequencies, against the scores of whole corpora."""

from __future__ import annotations

import numpy as np
import pytest

from raycap.metrics.cider import CorpusCider
from raycap.metrics.ngrams import match_ngrams


def padded(captions: list[list[int]], width: int) -> np.ndarray:
    return np.array([caption + [0] * (width - len(caption)) for caption in captions])


def words(caption: list[int]) -> list[str]:
    return [f"w{word}" for word in caption]


@pytest.mark.parametrize("seed", range(5))
def test_of_its_own_corpus_it_is_corpus_cider(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vocab_size, num_images = 12, 30

    def draw() -> list[int]:
        return rng.integers(3, vocab_size, rng.integers(1, 9)).tolist()

    references = [[draw() for _ in range(rng.integers(1, 4))] for _ in range(num_images)]
    candidates = [draw() if rng.random() < 0.5 else list(group[0][: rng.integers(0, 9)]) for group in references]
    ids = np.array([padded(group + [[]] * (3 - len(group)), 10) for group in references])
    cider = CorpusCider(ids, vocab_size)
    expected = match_ngrams([words(c) for c in candidates], [[words(r) for r in group] for group in references]).cider
    assert expected.max() > 1
    np.testing.assert_allclose(cider(padded(candidates, 8), ids), expected, atol=1e-12)
    # The same of a few images alone: the frequencies stay the corpus's.
    np.testing.assert_allclose(cider(padded(candidates[4:7], 15), ids[4:7]), expected[4:7], atol=1e-12)


def test_a_vocabulary_whose_word_runs_fit_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size .60000. must be below 55108"):
        CorpusCider(np.ones((1, 1, 3), int), 60_000)
