"""The vocabulary of whole words: which words, which ids, and that a caption is no place for special tokens."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from raycap.data.vocabulary import SPECIAL_TOKENS, count_words, encode_words, make_vocabulary
from raycap.models.lstm_captioner import EOS_ID, PAD_ID, SOS_ID, UNK_ID

CAPTIONS = ["A dog's T-shirt , red .", "a RED dog!", "A red t-shirt \u2013 and a \u00c9clair"]


def test_words_are_lower_cased_without_punctuation() -> None:
    counts = count_words(CAPTIONS)
    assert counts == {"a": 4, "dog's": 1, "t-shirt": 2, "red": 3, "dog": 1, "and": 1, "\u00e9clair": 1}


def test_the_vocabulary_is_the_frequent_words_behind_the_special_tokens() -> None:
    vocabulary = make_vocabulary(count_words(CAPTIONS), min_frequency=2)
    assert vocabulary.get_vocab() == {"<pad>": 0, "<sos>": 1, "<eos>": 2, "<unk>": 3, "a": 4, "red": 5, "t-shirt": 6}
    ids = [vocabulary.pad_token_id, vocabulary.bos_token_id, vocabulary.eos_token_id, vocabulary.unk_token_id]
    assert ids == [PAD_ID, SOS_ID, EOS_ID, UNK_ID] == [SPECIAL_TOKENS.index(t) for t in SPECIAL_TOKENS]


def test_the_order_of_the_captions_does_not_matter() -> None:
    one, other = (make_vocabulary(count_words(order), 1).get_vocab() for order in (CAPTIONS, CAPTIONS[::-1]))
    assert one == other


def test_captions_are_padded_and_cut_to_a_fixed_length() -> None:
    vocabulary = make_vocabulary(count_words(CAPTIONS), 1)
    red, a = (vocabulary.get_vocab()[word] for word in ("red", "a"))
    encoded = encode_words(vocabulary, ["Red, a bird.", "a a a a a a a", ""], 6)
    assert encoded.tolist() == [[1, red, a, 3, 2, 0], [1, a, a, a, a, 2], [1, 2, 0, 0, 0, 0]]


def test_a_special_token_in_a_caption_s_text_is_words_like_any_other() -> None:
    vocabulary = make_vocabulary({"eos": 2, "dog": 2}, 1)
    assert encode_words(vocabulary, ["<eos> dog"], 5).tolist() == [[1, 5, 4, 2, 0]]


def test_a_saved_vocabulary_comes_back_by_transformers_own_hand(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(count_words(CAPTIONS))
    vocabulary.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == vocabulary.get_vocab()
    encoded = encode_words(again, CAPTIONS, 9)
    assert (encoded == encode_words(vocabulary, CAPTIONS, 9)).all()
    assert again.decode(encoded[1], skip_special_tokens=True) == "a red"
