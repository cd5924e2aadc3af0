"""Captions to the words that BLEU and CIDEr count, as COCO's evaluation does it but without Java."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Tokenizer = Callable[[Sequence[str]], list[str]]
"""From captions to the same captions in lower-case words separated by single spaces, without punctuation."""

_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2026": " "})
_TOKEN = re.compile(
    r"""
    (?:[^\W\d_]\.){2,}                                # u.s., p.m.
    | \.?\d+(?:[.,:/-]\d+)*(?:-?[^\W\d]+(?:-\w+)*)?   # 3:30, 1,234, 3.5, 2nd, 3-year-old
    | \w+(?:[-./']\w+)*                               # t-shirts, black-and-white, and/or, don't
    | '(?:s|m|re|ve|ll|d)\b                           # set apart by a WordPiece decoder: it 's
    | [$%&\#@+*=<>/]
    """,
    re.VERBOSE,
)
_CLITIC = re.compile(r"(.)(n't|'(?:s|m|re|ve|ll|d))$")
_CONTRACTED = {"cannot": "can not", "gonna": "gon na", "wanna": "wan na"}


def tokenize(caption: str) -> str:
    """Lower-case words separated by single spaces, punctuation left out.

    Follows the Penn Treebank tokenizer and the list of punctuation that pycocoevalcap's
    ``PTBTokenizer`` uses (Chen et al. 2015, "Microsoft COCO Captions", section 3.3): hyphenated
    words stay whole, clitics are split off (``man 's``, ``do n't``). It differs where captions
    hardly ever go: brackets are dropped (COCO keeps ``-lrb-``), abbreviations lose their last dot.
    """
    text = caption.lower().translate(_QUOTES)
    words = [_CONTRACTED.get(word, word) for word in _TOKEN.findall(text)]
    if "'" in text:  # seldom so; looking for clitics in every word costs as much as finding the words
        words = [_CLITIC.sub(r"\1 \2", word) for word in words]
    return " ".join(words)


def tokenize_all(captions: Sequence[str]) -> list[str]:
    """:func:`tokenize` each caption."""
    return [tokenize(caption) for caption in captions]
