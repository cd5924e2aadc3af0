from __future__ import annotations

import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from raycap.data.catalog import Catalog
from raycap.data.readers import Flickr8k
from raycap.metrics.bootstrap import paired_bootstrap
from raycap.metrics.caption import References, caption_scores, caption_statistics, lengths_of_sums, scores_of_sums
from raycap.metrics.tokens import tokenize

WORDS = ["a", "red", "green", "blue", "circle", "square", "is", "above", "below", "the", "dog", "man"]

Captions = tuple[dict[str, str], dict[str, list[str]]]


def _random_captions(num_images: int) -> Captions:
    rng = np.random.default_rng(0)

    def caption() -> str:
        words = list(rng.choice(WORDS, size=rng.integers(1, 12)))
        return " ".join(words + words[:3] if rng.random() < 0.2 else words)

    references = {f"{i}.jpg": [caption() for _ in range(rng.integers(1, 6))] for i in range(num_images)}
    candidates = {image_id: texts[0] if rng.random() < 0.3 else caption() for image_id, texts in references.items()}
    return candidates, references


@st.composite
def _any_captions(draw: st.DrawFn) -> Captions:
    """Few words, so that they meet often; empty captions and punctuation too, and ids in any order."""
    caption = st.lists(st.sampled_from([*WORDS[:5], "Dog,", "man's", "t-shirt", "."]), max_size=12).map(" ".join)
    image_ids = draw(st.lists(st.text("ab1", min_size=1, max_size=3), min_size=1, max_size=8, unique=True))
    references = {image_id: draw(st.lists(caption, min_size=1, max_size=4)) for image_id in image_ids}
    references[image_ids[0]].append("a dog")  # pycocoevalcap scores no corpus without a word
    return {image_id: draw(caption) for image_id in image_ids}, references


def _pycocoevalcap(candidates: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    hypotheses = {image_id: [tokenize(text)] for image_id, text in candidates.items()}
    truths = {image_id: [tokenize(text) for text in texts] for image_id, texts in references.items()}
    bleu, _ = Bleu(4).compute_score(truths, hypotheses, verbose=0)
    scores = {f"bleu_{n}": bleu[n - 1] for n in range(1, 5)}
    return scores | {
        "cider": Cider().compute_score(truths, hypotheses)[0],
        "rouge_l": Rouge().compute_score(truths, hypotheses)[0],
    }


def _assert_equal(captions: Captions) -> None:
    scores = caption_scores(*captions, java=False)
    for name, value in _pycocoevalcap(*captions).items():
        assert scores[name] == pytest.approx(value, abs=1e-9), name


@given(_any_captions())
@settings(max_examples=300, deadline=None)
def test_scores_equal_pycocoevalcaps_whatever_the_captions(captions: Captions) -> None:
    _assert_equal(captions)


def test_scores_equal_pycocoevalcaps_on_many_captions() -> None:
    _assert_equal(_random_captions(200))


@pytest.mark.skipif("RAYCAP_FLICKR8K" not in os.environ, reason="RAYCAP_FLICKR8K, the data's path, is not set")
def test_scores_equal_pycocoevalcaps_on_flickr8k() -> None:
    with Catalog() as catalog:
        Flickr8k(path=os.environ["RAYCAP_FLICKR8K"]).fill(catalog)
        catalog.settle(1 << 26)
        dev = [r for s in catalog.shards(1024, 1 << 26) if s.split == "dev" for r in s.records]
    assert len(dev) == 1000
    # People against people: the first caption of each image against its others, and against another image's.
    _assert_equal(({r.image_id: r.captions[0] for r in dev}, {r.image_id: list(r.captions[1:]) for r in dev}))
    others = [*dev[1:], dev[0]]
    shifted = {r.image_id: o.captions[0] for r, o in zip(dev, others, strict=True)}
    _assert_equal((shifted, {r.image_id: list(r.captions) for r in dev}))


def test_score_of_a_resample_equals_pycocoevalcaps_of_the_repeated_images() -> None:
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
    del expected["cider"]  # a resample keeps the document frequencies of all images
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-12)


def test_interval_of_rouge_and_repetition_is_that_of_their_mean_over_images() -> None:
    candidates, references = _random_captions(300)
    table = caption_statistics(candidates, references)
    found = paired_bootstrap([table], scores_of_sums, num_resamples=3000).scores[0]
    truths = {image_id: [tokenize(text) for text in texts] for image_id, texts in references.items()}
    hypotheses = {image_id: [tokenize(text)] for image_id, text in candidates.items()}
    rouge = Rouge().compute_score(truths, hypotheses)[1]
    for name, values in {"rouge_l": rouge, "repetition_rate": table[:, -1]}.items():
        assert found[name].value == pytest.approx(values.mean())
        width = 2 * 1.96 * values.std() / 300**0.5
        assert found[name].high - found[name].low == pytest.approx(width, rel=0.15)
    assert 0 < found["repetition_rate"].value < 0.5, "the case shows nothing: none repeats"


def test_bleu_and_lengths_of_a_case_worked_by_hand() -> None:
    # 1-grams: 4 of 5; pairs: 2 of 4 (a red, red circle). Length 5 against 6: brevity e^(1 - 6/5).
    captions = {"1": "A red circle below square."}, {"1": ["a red circle above a square", "a circle"]}
    scores = caption_scores(*captions, java=False)
    brevity = math.exp(1 - 6 / 5)
    assert scores["bleu_1"] == pytest.approx(brevity * 4 / 5, abs=1e-8)
    assert scores["bleu_2"] == pytest.approx(brevity * math.sqrt(4 / 5 * 2 / 4), abs=1e-8)
    assert scores["bleu_4"] == pytest.approx(0, abs=1e-3)
    lengths = {name: float(value) for name, value in lengths_of_sums(caption_statistics(*captions).sum(0)).items()}
    assert lengths == {
        "candidate_length": 5,
        "reference_length": 6,
        "length_ratio": pytest.approx(5 / 6),
        "brevity_penalty": pytest.approx(brevity),
    }


def test_captions_longer_than_their_references_pay_no_brevity_penalty() -> None:
    sums = caption_statistics({"1": "a red dog runs", "2": "a"}, {"1": ["a dog"], "2": ["a red dog"]}).sum(0)
    # Of two references as close the shorter one counts; lengths are summed before they are compared.
    assert float(lengths_of_sums(sums)["reference_length"]) == 5
    assert float(lengths_of_sums(sums)["brevity_penalty"]) == pytest.approx(1)


def test_right_captions_score_highest_and_unrelated_ones_lowest() -> None:
    references = {"1": ["a red circle above a square"], "2": ["a man walks two big dogs"]}
    candidates = {"1": "a red circle above a square", "2": "a man walks two big dogs"}
    right = caption_scores(candidates, references, java=False)
    assert right["bleu_4"] == pytest.approx(1)
    assert right["cider"] == pytest.approx(10)
    assert right["exact_match"] == right["rouge_l"] == 1
    wrong = caption_scores({"1": "blue", "2": ""}, references, java=False)
    assert wrong["cider"] == wrong["exact_match"] == wrong["rouge_l"] == 0


def test_exact_match_is_any_reference_whatever_case_and_punctuation() -> None:
    references = {"1": ["a red circle", "there is a red circle"], "2": ["a blue square"]}
    candidates = {"1": "There is a red circle.", "2": "a blue"}
    assert caption_scores(candidates, references, java=False)["exact_match"] == 0.5


def test_references_split_once_score_any_system_as_the_captions_themselves_do() -> None:
    candidates, references = _random_captions(20)
    known = References(references)
    for system in (candidates, {image_id: texts[-1] for image_id, texts in references.items()}):
        assert caption_scores(system, known, java=False) == caption_scores(system, references, java=False)


def test_another_tokenizer_decides_what_a_word_is() -> None:
    captions = {"1": "A DOG"}, {"1": ["a dog"]}
    assert caption_scores(*captions, java=False)["exact_match"] == 1
    as_they_are = References(captions[1], tokenizer=list)
    assert caption_scores(captions[0], as_they_are, java=False)["exact_match"] == 0


def test_what_is_left_out_for_lack_of_java_is_said_thrice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.warns(UserWarning, match="needs Java") as warned:
        scores = caption_scores({"1": "a dog"}, {"1": ["a dog"]})
    assert sorted(str(warning.message).split()[0] for warning in warned) == ["meteor", "spice"]
    assert set(scores.left_out) == {"meteor", "spice"}
    with pytest.raises(KeyError, match="meteor: left out, needs Java.*install a Java runtime"):
        scores["meteor"]
    with pytest.raises(KeyError, match="^'blue_4'$"):
        scores["blue_4"]


def test_different_ids_and_missing_references_are_refused() -> None:
    with pytest.raises(ValueError, match="equal ids"):
        caption_scores({"1": "a"}, {"2": ["a"]})
    with pytest.raises(ValueError, match="1 of 1 images without a reference.*'1'"):
        caption_scores({"1": "a"}, {"1": []})
    with pytest.raises(ValueError, match="0 images"):
        caption_scores({}, {})
