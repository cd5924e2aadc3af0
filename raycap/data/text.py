"""Captions to token ids: BERT's WordPiece, trained on the captions where none is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# The order fixes the ids 0 to 5.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")


def train_wordpiece(captions: Iterable[str], vocab_size: int, min_frequency: int = 2) -> PreTrainedTokenizerBase:
    """Train a lower-casing WordPiece tokenizer with BERT's special tokens and BLIP's ``[DEC]``.

    Args:
        captions: the training captions; read once.
        vocab_size: upper bound, special tokens included.
        min_frequency: rarer words are spelt in pieces.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    sep, cls = ((token, SPECIAL_TOKENS.index(token)) for token in ("[SEP]", "[CLS]"))
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[DEC]",
        eos_token="[SEP]",
    )


def encode_captions(
    tokenizer: PreTrainedTokenizerBase, captions: Sequence[str], bos_id: int, prompt: str, max_tokens: int
) -> np.ndarray:
    """Captions, each behind the prompt, as the decoder reads them: ``bos prompt caption [SEP]``.

    Args:
        bos_id: BLIP's first token, in place of ``[CLS]``.
        max_tokens: T; a longer caption is cut, its ``[SEP]`` kept.

    Returns:
        (B, T) int64, padded with the pad token.
    """
    texts = [f"{prompt} {caption}".strip() for caption in captions]
    encoded = tokenizer(texts, truncation=True, max_length=max_tokens, padding="max_length", return_tensors="np")
    input_ids: np.ndarray = encoded["input_ids"].astype(np.int64)
    input_ids[:, 0] = bos_id
    return input_ids


def count_prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    """How many first tokens of an encoded caption are bos and prompt."""
    return 1 + (len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) if prompt else 0)
