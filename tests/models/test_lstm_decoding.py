"""Decoding: beam search against every caption there is, and what must never change a caption."""

from __future__ import annotations

import itertools

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from raycap.models.lstm_captioner import EOS_ID, SOS_ID, LstmCaptioner
from raycap.models.lstm_decoding import Caption, LstmDecoding, write_captions

WORDS = ["a", "man", "in", "blue", "shirt", "and"]


def captioner(vocab_size: int, seed: int = 0) -> LstmCaptioner:
    torch.manual_seed(seed)
    model = LstmCaptioner(vocab_size, 6, 8, 10, attention_dim=5, gated=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # decided opinions, which differ by image
        model.output.bias[EOS_ID] += 3  # some captions end soon
    return model


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 10, generator=torch.Generator().manual_seed(1))


def log_probability(model: LstmCaptioner, region_features: torch.Tensor, words: list[int], ends: bool) -> float:
    """Of one image's caption, teacher-forced."""
    with torch.no_grad():
        logits = model(region_features.unsqueeze(0), torch.tensor([[SOS_ID, *words]])).logits[0]
    log_probs = logits.log_softmax(-1)
    return sum(log_probs[t, word].item() for t, word in enumerate([*words, EOS_ID] if ends else words))


def ids(captions: list[list[Caption]]) -> list[list[list[int]]]:
    return [[caption.token_ids for caption in of_image] for of_image in captions]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_wide_beam_search_equals_an_exhaustive_one(length_penalty: float) -> None:
    model, region_features, max_words, vocab = captioner(7), images(3), 3, (4, 5, 6)
    decoding = LstmDecoding(max_words=max_words, num_beams=60, num_captions=60, length_penalty=length_penalty)
    for region, found in zip(region_features, write_captions(model, region_features, decoding), strict=True):
        every: list[tuple[float, list[int], float]] = []
        for length in range(max_words + 1):
            ends = length < max_words
            for words in itertools.product(vocab, repeat=length):
                total = log_probability(model, region, list(words), ends)
                every.append((total / (length + ends) ** length_penalty, list(words), total))
        every.sort(reverse=True)
        assert len(every) == len(found) == 40
        assert [caption.token_ids for caption in found] == [words for _, words, _ in every]
        assert [caption.log_probability for caption in found] == pytest.approx([t for *_, t in every], abs=1e-4)


def test_a_beam_of_width_one_is_greedy() -> None:
    model, region_features = captioner(20), images(8)
    found = write_captions(model, region_features, LstmDecoding(max_words=12))
    for region, (caption,) in zip(region_features, found, strict=True):
        words: list[int] = []
        while len(words) < 12:
            with torch.no_grad():
                scores = model(region.unsqueeze(0), torch.tensor([[SOS_ID, *words]])).logits[0, -1]
            scores[[0, 1, 3]] = -torch.inf
            if (best := int(scores.argmax())) == EOS_ID:
                break
            words.append(best)
        assert caption.token_ids == words
    lengths = {len(caption.token_ids) for (caption,) in found}
    assert min(lengths) < 12, "no caption ends, so the case shows little"


@pytest.mark.parametrize(
    "decoding",
    [
        LstmDecoding(max_words=9),
        LstmDecoding(max_words=9, num_beams=4, num_captions=3, no_repeat_words=2),
        LstmDecoding(max_words=9, do_sample=True, num_captions=3, top_p=0.9, seed=3),
    ],
    ids=["greedy", "beams", "nucleus"],
)
def test_batch_mates_never_change_a_caption(decoding: LstmDecoding) -> None:
    model, region_features = captioner(20), images(7)
    together = ids(write_captions(model, region_features, decoding))
    assert together == [ids(write_captions(model, one.unsqueeze(0), decoding))[0] for one in region_features]
    assert len({str(captions) for captions in together}) > 1, "all captions are the same, so the case shows nothing"


@pytest.mark.parametrize("num_beams", [1, 4])
def test_the_attention_is_that_of_the_caption_read_again_padding_or_not(num_beams: int) -> None:
    model, region_features = captioner(20), images(4)
    decoding = LstmDecoding(max_words=12, num_beams=num_beams, num_captions=num_beams)
    for one, captions in zip(region_features, write_captions(model, region_features, decoding), strict=True):
        for caption in captions:
            padded = torch.tensor([[SOS_ID, *caption.token_ids, EOS_ID, 0, 0, 0]])
            with torch.no_grad():
                attention = model(one.unsqueeze(0), padded).attention[0]
            words = len(caption.token_ids)
            assert caption.attention.shape == (words, 4)
            assert torch.allclose(caption.attention, attention[:words], atol=1e-5)


def test_no_beam_that_ends_is_no_error() -> None:
    model = captioner(20)
    with torch.no_grad():
        model.output.bias[EOS_ID] = -1e4
    for captions in write_captions(model, images(2), LstmDecoding(max_words=6, num_beams=3, num_captions=3)):
        assert [len(caption.token_ids) for caption in captions] == [6, 6, 6]


def test_a_caption_of_no_words_is_no_error() -> None:
    model = captioner(20)
    with torch.no_grad():
        model.output.bias[EOS_ID] = 1e4
    ((caption,),) = write_captions(model, images(1), LstmDecoding())
    assert caption.token_ids == []
    assert caption.attention.shape == (0, 4)


class OneTrack(LstmCaptioner):
    """Knows only which word follows which."""

    def __init__(self, follows: dict[int, list[int]], vocab_size: int) -> None:
        super().__init__(vocab_size, vocab_size, vocab_size, 10)
        self.embedding.weight = nn.Parameter(torch.eye(vocab_size))
        self.table = torch.full((vocab_size, vocab_size), -20.0)
        for word, following in follows.items():
            for rank, after in enumerate(following):
                self.table[word, after] = -float(rank)

    def step(self, regions, state, words):  # type: ignore[no-untyped-def]
        return super().step(regions, state, words)._replace(hidden=words)

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.table


@pytest.mark.parametrize("num_beams", [1, 3])
def test_trigram_blocking_removes_a_blue_shirt_and_a_blue_shirt(num_beams: int) -> None:
    a, man, in_, blue, shirt, and_ = range(4, 10)
    follows = {SOS_ID: [a], a: [blue, man], man: [in_], in_: [a], blue: [shirt], shirt: [and_, EOS_ID], and_: [a]}
    model = OneTrack(follows, 10).eval()

    def words(**settings: int) -> str:
        decoding = LstmDecoding(max_words=11, num_beams=num_beams, length_penalty=0.0, **settings)
        return " ".join(WORDS[word - 4] for word in write_captions(model, images(1), decoding)[0][0].token_ids)

    with torch.no_grad():
        model.table[shirt, EOS_ID] = -6.0  # it never tires
    assert words().startswith("a blue shirt and a blue shirt and a blue shirt")
    blocked = words(no_repeat_words=3).split()
    trigrams = list(zip(blocked, blocked[1:], blocked[2:], strict=False))
    assert len(trigrams) == len(set(trigrams))
    assert blocked[:3] == ["a", "blue", "shirt"]


def test_a_nucleus_of_one_word_is_greedy_and_a_wide_one_follows_the_probabilities() -> None:
    model, region_features = captioner(20), images(4)
    greedy = ids(write_captions(model, region_features, LstmDecoding(max_words=8)))
    narrow = LstmDecoding(max_words=8, do_sample=True, top_p=1e-6)
    assert ids(write_captions(model, region_features, narrow)) == greedy
    # The first word of 4,000 draws, against the scores of the words and the end.
    wide = LstmDecoding(max_words=1, do_sample=True, num_captions=4000)
    drawn = write_captions(model, region_features[:1], wide)[0]
    with torch.no_grad():
        scores = model(region_features[:1], torch.tensor([[SOS_ID]])).logits[0, 0]
    scores[[0, 1, 3]] = -torch.inf
    first = torch.tensor([(caption.token_ids or [EOS_ID])[0] for caption in drawn])
    share = torch.bincount(first, minlength=20) / len(drawn)
    assert torch.allclose(share, scores.softmax(-1), atol=0.03)
    likely = scores.softmax(-1).sort(descending=True)
    top_p = (likely.values[0] + likely.values[1] / 2).item()  # the two most probable
    nucleus = write_captions(model, region_features[:1], wide.model_copy(update={"top_p": top_p}))[0]
    assert {(caption.token_ids or [EOS_ID])[0] for caption in nucleus} == set(likely.indices[:2].tolist())


def test_draws_repeat_by_seed_and_do_not_depend_on_their_number() -> None:
    model, region_features = captioner(20), images(2)
    decoding = LstmDecoding(max_words=8, do_sample=True, num_captions=3, seed=5)
    three = ids(write_captions(model, region_features, decoding))
    two = ids(write_captions(model, region_features, decoding.model_copy(update={"num_captions": 2})))
    assert [captions[:2] for captions in three] == two
    assert ids(write_captions(model, region_features, decoding.model_copy(update={"seed": 6}))) != three


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True, "num_beams": 2}, "num_beams .2. must be 1 with do_sample"),
        ({"num_captions": 2}, "num_captions .2. must be at most num_beams .1."),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LstmDecoding.model_validate(settings)
