from __future__ import annotations

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu

from raycap.metrics.set_diversity import set_diversity

SETS = {
    "1": ["a red dog runs on the grass", "a dog runs on grass", "the red dog is running fast"],
    "2": ["two men sit on a bench", "two men sit on a bench", "a man and a woman sit in a park"],
    "3": ["a cat", "a small cat sleeps on a sofa", "a sofa with a cat"],
}


def _tf_idf(captions: list[str], documents: list[list[str]], n: int) -> np.ndarray:
    """Unit rows of one order's tf-idf, counted word by word."""
    grams = [[tuple(text.split()[i : i + n]) for i in range(len(text.split()) - n + 1)] for text in captions]
    known = [{tuple(t.split()[i : i + n]) for t in texts for i in range(len(t.split()) - n + 1)} for texts in documents]
    names = sorted({gram for caption in grams for gram in caption})
    table = np.zeros((len(captions), len(names)))
    for row, caption in zip(table, grams, strict=True):
        for gram in caption:
            row[names.index(gram)] += np.log(len(documents) / max(1, sum(gram in document for document in known)))
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    return np.divide(table, norms, out=np.zeros_like(table), where=norms > 0)


@pytest.mark.parametrize("references", [None, {"a": ["a dog runs"], "b": ["two men", "a cat on a sofa"], "c": ["sit"]}])
def test_self_cider_is_that_of_the_kernels_eigenvalues(references: dict[str, list[str]] | None) -> None:
    documents = list((references or SETS).values())
    expected = []
    for captions in SETS.values():
        rows = [_tf_idf(captions, documents, n) for n in range(1, 5)]
        kernel = sum(table @ table.T for table in rows) / 4  # CIDEr of each pair
        roots = np.sqrt(np.clip(np.linalg.eigvalsh(kernel), 0, None))
        expected.append(-np.log(roots.max() / roots.sum()) / np.log(len(captions)))
    assert set_diversity(SETS, references)["self_cider"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_mutual_bleu_is_pycocoevalcaps_of_each_caption_against_the_others() -> None:
    scores = []
    for place in range(3):
        own = {name: [texts[place]] for name, texts in SETS.items()}
        others = {name: texts[:place] + texts[place + 1 :] for name, texts in SETS.items()}
        scores.append(Bleu(4).compute_score(others, own, verbose=0)[0][3])
    assert set_diversity(SETS)["mbleu_4"] == pytest.approx(np.mean(scores), abs=1e-9)


def test_copies_differ_in_nothing_and_one_caption_is_as_its_copies() -> None:
    references = {"1": ["a red dog runs"], "2": ["a cat sleeps"]}
    copies = {"1": ["a red dog runs"] * 4, "2": ["a black cat sleeps here"] * 4}
    found = set_diversity(copies, references)
    assert found["self_cider"] == pytest.approx(0, abs=1e-6)
    assert found["mbleu_4"] == pytest.approx(1)
    assert set_diversity({name: texts[:1] for name, texts in copies.items()}) == {"self_cider": 0, "mbleu_4": 1}


def test_captions_without_a_common_word_differ_wholly() -> None:
    sets = {"1": ["one two three four", "five six seven eight"], "2": ["nine ten ten nine", "red green blue black"]}
    assert set_diversity(sets) == {"self_cider": pytest.approx(1), "mbleu_4": pytest.approx(0, abs=1e-3)}


def test_captions_without_words_differ_in_nothing() -> None:
    assert set_diversity({"1": ["", "."], "2": ["!", ""]})["self_cider"] == 0


def test_sets_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 2\] captions"):
        set_diversity({"1": ["a", "b"], "2": ["a"]})
    with pytest.raises(ValueError, match="at least 1"):
        set_diversity({})
