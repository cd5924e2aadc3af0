"""ROUGE-L: the longest common subsequence of a caption and its references."""

from __future__ import annotations

from collections.abc import Sequence

_BETA = 1.2  # pycocoevalcap's weight of recall


def rouge_l(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """F-measure of the longest common subsequences, 0 to 1, as pycocoevalcap's ``Rouge`` has it.

    The best precision and the best recall may come from different references (Lin 2004, "ROUGE",
    section 3.1; beta = 1.2). Two captions without a word are equal.

    Args:
        candidate: words.
        references: words of at least one reference.
    """
    words = candidate or [""]
    bits: dict[str, int] = {}
    for position, word in enumerate(words):
        bits[word] = bits.get(word, 0) | 1 << position
    precision = recall = 0.0
    for reference in references:
        others = reference or [""]
        common = _common_subsequence(bits, len(words), others)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(others))
    if not precision:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_subsequence(bits: dict[str, int], num_words: int, others: Sequence[str]) -> int:
    """Length of the longest common subsequence by Hyyrö (2004), "Bit-parallel LCS-length computation revisited".

    Args:
        bits: the positions of each word of the first sequence, as the bits of a number.
        num_words: of the first sequence.
    """
    row = full = (1 << num_words) - 1
    for word in others:
        matches = row & bits.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return num_words - row.bit_count()
