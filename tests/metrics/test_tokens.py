from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pycocoevalcap.tokenizer.ptbtokenizer as ptb
import pytest

from raycap.metrics.tokens import tokenize

CAPTIONS = [
    "A man's dog, it's black-and-white -- running!",
    "Don't can't won't I'm they're we'll he'd",
    'A "stop" sign at 3:30 p.m. near the U.S. flag.',
    "cost $5,000.50 & 20% of 1/2 and/or #3 @ home",
    "a man - in red-shirt , walks . And another one. Yes",
    "two dogs in mid-air;no one cannot see 1990s 3-year-old boys' toys",
    "it \u2019s a \u2018curly\u2019 \u201cquote\u201d caf\u00e9 na\u00efve",
    "",
]


def test_punctuation_and_case_never_count() -> None:
    assert tokenize("A red circle, above: a blue  square!") == "a red circle above a blue square"
    assert tokenize("...") == ""


def test_words_are_those_of_cocos_own_tokenizer() -> None:
    if shutil.which("java") is None:
        pytest.skip("COCO's tokenizer needs Java")
    folder = Path(ptb.__file__).parent
    command = ["java", "-cp", ptb.STANFORD_CORENLP_3_4_1_JAR, "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"],
        cwd=folder, input="\n".join(CAPTIONS), capture_output=True, text=True, check=True,
    )  # fmt: skip
    for caption, line in zip(CAPTIONS, done.stdout.split("\n"), strict=False):
        words = [word for word in line.split() if word not in ptb.PUNCTUATIONS]
        assert tokenize(caption) == " ".join(words)
