"""Captions to the ids of whole words, lower-cased and without punctuation.

The vocabulary is a tokenizer of transformers, saved and read as any other; the ids 0 to 3 are SPECIAL_TOKENS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<sos>", "<eos>", "<unk>")

# Letters and digits; hyphens and apostrophes within a word belong to it: t-shirt, man's.
_WORD = r"[\p{L}\p{N}]+(?:[-'][\p{L}\p{N}]+)*"


def count_words(captions: Iterable[str]) -> Counter[str]:
    """How often each word occurs."""
    normalizer, pre_tokenizer = normalizers.Lowercase(), _split_words()
    return Counter(
        word for caption in captions for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(caption))
    )


def make_vocabulary(counts: Mapping[str, int], min_frequency: int = 2) -> PreTrainedTokenizerBase:
    """A tokenizer of the words that are frequent enough; any other is ``<unk>``.

    Args:
        counts: of :func:`count_words`.
        min_frequency: least count of a word.
    """
    frequent = [word for word, count in counts.items() if count >= min_frequency]
    words = sorted(frequent, key=lambda word: (-counts[word], word))
    ids = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = _split_words()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<sos> $A <eos>", special_tokens=[(token, ids[token]) for token in ("<sos>", "<eos>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<sos>", eos_token="<eos>", unk_token="<unk>"
    )


def encode_words(vocabulary: PreTrainedTokenizerBase, captions: Sequence[str], max_tokens: int) -> np.ndarray:
    """Captions as the decoder reads them: ``<sos> words <eos>``.

    Args:
        max_tokens: T; a longer caption is cut, its ``<eos>`` kept.

    Returns:
        (B, T) int64, padded with ``<pad>``.
    """
    # Split: else a caption that has "<eos>" in its text would end there.
    encoded = vocabulary(
        list(captions),
        truncation=True,
        max_length=max_tokens,
        padding="max_length",
        return_tensors="np",
        split_special_tokens=True,
    )
    input_ids: np.ndarray = encoded["input_ids"].astype(np.int64)
    return input_ids


def encode_references(
    vocabulary: PreTrainedTokenizerBase, captions: Sequence[Sequence[str]], num_references: int, max_tokens: int
) -> np.ndarray:
    """Several captions an image as their words alone, without start and end.

    Args:
        captions: of each image; more than ``num_references`` are left out.
        max_tokens: a caption is cut as by :func:`encode_words`.

    Returns:
        (n, num_references, max_tokens) int64, padded with ``<pad>``; all unknown words are ``<unk>``.
    """
    filled = [[*texts[:num_references], *[""] * (num_references - len(texts))] for texts in captions]
    input_ids = encode_words(vocabulary, [text for texts in filled for text in texts], max_tokens)
    words = np.pad(input_ids[:, 1:], ((0, 0), (0, 1)))
    words[words == vocabulary.eos_token_id] = vocabulary.pad_token_id
    return words.reshape(len(captions), num_references, max_tokens)


def _split_words() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
