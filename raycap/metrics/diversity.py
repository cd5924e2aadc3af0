"""How much captions of different images differ, from each other and from those of the training; and repetition."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from raycap.metrics.tokens import tokenize, tokenize_all


def repeats(words: Sequence[str], n: int = 3) -> bool:
    """Whether any n words in a row stand there twice, as in "a blue shirt and a blue shirt".

    Three words are what decoding with trigram blocking never repeats (Paulus et al. 2018, "A deep
    reinforced model for abstractive summarization", section 2.5); the share of captions that do is
    ``repetition_rate``. Two may well be meant: "a man and a woman in a car".
    """
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(grams)) < len(grams)


def diversity(candidates: Mapping[str, str]) -> dict[str, float]:
    """How much captions of different images differ from each other.

    Returns:
        ``distinct_1`` and ``distinct_2``, the share of different words and word pairs among all
        (Li et al. 2016, "A diversity-promoting objective function"); ``distinct_captions``, the share
        of different captions; ``vocabulary``, the number of different words.
    """
    texts = [text.split() for text in tokenize_all(list(candidates.values()))]
    result: dict[str, float] = {}
    for n in (1, 2):
        grams = [tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1)]
        result[f"distinct_{n}"] = len(set(grams)) / max(len(grams), 1)
    result["distinct_captions"] = len({tuple(words) for words in texts}) / max(len(texts), 1)
    result["vocabulary"] = len({word for words in texts for word in words})
    return result


def novelty(candidates: Collection[str], training_captions: Collection[str]) -> float:
    """Share of captions that no training caption equals, word by word.

    Raises:
        ValueError: there is no candidate.
    """
    if not candidates:
        raise ValueError("0 captions: give at least one")
    known = {tokenize(caption) for caption in training_captions}
    return sum(tokenize(caption) not in known for caption in candidates) / len(candidates)
