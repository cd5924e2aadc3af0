from __future__ import annotations

import math

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from raycap.metrics.caption import caption_scores, caption_statistics, diversity, scores_of_sums
from raycap.metrics.tokens import tokenize

WORDS = ["a", "red", "green", "blue", "circle", "square", "is", "above", "below", "the", "dog", "man"]


def _random_captions(num_images: int) -> tuple[dict[str, str], dict[str, list[str]]]:
    rng = np.random.default_rng(0)

    def caption() -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(1, 12)))

    references = {f"{i}.jpg": [caption() for _ in range(rng.integers(1, 6))] for i in range(num_images)}
    candidates = {image_id: texts[0] if rng.random() < 0.3 else caption() for image_id, texts in references.items()}
    return candidates, references


def _pycocoevalcap(candidates: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    hypotheses = {image_id: [tokenize(text)] for image_id, text in candidates.items()}
    truths = {image_id: [tokenize(text) for text in texts] for image_id, texts in references.items()}
    bleu, _ = Bleu(4).compute_score(truths, hypotheses, verbose=0)
    return {f"bleu_{n}": bleu[n - 1] for n in range(1, 5)} | {"cider": Cider().compute_score(truths, hypotheses)[0]}


def test_scores_equal_pycocoevalcaps() -> None:
    candidates, references = _random_captions(200)
    scores = caption_scores(candidates, references)
    for name, value in _pycocoevalcap(candidates, references).items():
        assert scores[name] == pytest.approx(value, abs=1e-12)


def test_score_of_a_resample_equals_pycocoevalcaps_bleu_of_the_repeated_images() -> None:
    candidates, references = _random_captions(50)
    weights = np.random.default_rng(1).multinomial(50, np.full(50, 1 / 50))
    repeated = [
        (image_id, copy) for image_id, weight in zip(sorted(candidates), weights, strict=True) for copy in range(weight)
    ]
    scores = scores_of_sums(weights @ caption_statistics(candidates, references))
    expected = _pycocoevalcap(
        {f"{name} {copy}": candidates[name] for name, copy in repeated},
        {f"{name} {copy}": references[name] for name, copy in repeated},
    )
    for n in range(1, 5):
        assert scores[f"bleu_{n}"] == pytest.approx(expected[f"bleu_{n}"], abs=1e-12)


def test_bleu_of_a_case_worked_by_hand() -> None:
    # 1-grams: 4 of 5; pairs: 2 of 4 (a red, red circle). Length 5 against 6: brevity e^(1 - 6/5).
    scores = caption_scores({"1": "A red circle below square."}, {"1": ["a red circle above a square"]})
    brevity = math.exp(1 - 6 / 5)
    assert scores["bleu_1"] == pytest.approx(brevity * 4 / 5, abs=1e-8)
    assert scores["bleu_2"] == pytest.approx(brevity * math.sqrt(4 / 5 * 2 / 4), abs=1e-8)
    assert scores["bleu_4"] == pytest.approx(0, abs=1e-3)


def test_right_captions_score_highest_and_unrelated_ones_lowest() -> None:
    references = {"1": ["a red circle above a square"], "2": ["a man walks two big dogs"]}
    right = caption_scores({"1": "a red circle above a square", "2": "a man walks two big dogs"}, references)
    assert right["bleu_4"] == pytest.approx(1)
    assert right["cider"] == pytest.approx(10)
    assert right["exact_match"] == 1
    wrong = caption_scores({"1": "blue", "2": ""}, references)
    assert wrong["cider"] == wrong["exact_match"] == 0


def test_exact_match_is_any_reference_whatever_case_and_punctuation() -> None:
    references = {"1": ["a red circle", "there is a red circle"], "2": ["a blue square"]}
    assert caption_scores({"1": "There is a red circle.", "2": "a blue"}, references)["exact_match"] == 0.5


def test_different_ids_and_missing_references_are_refused() -> None:
    with pytest.raises(ValueError, match="equal ids"):
        caption_scores({"1": "a"}, {"2": ["a"]})
    with pytest.raises(ValueError, match="without a reference, first 1"):
        caption_scores({"1": "a"}, {"1": []})


def test_diversity_counts_different_words_and_pairs() -> None:
    result = diversity({"1": "a red dog", "2": "a red cat"})
    assert result == {"distinct_1": 4 / 6, "distinct_2": 3 / 4, "distinct_captions": 1.0}
