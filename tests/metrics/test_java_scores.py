from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
from pycocoevalcap.meteor.meteor import Meteor

from raycap.errors import UserError
from raycap.metrics import java_scores as module
from raycap.metrics.caption import References, caption_scores
from raycap.metrics.java_scores import java_scores, ptb_tokenize
from raycap.metrics.tokens import tokenize_all

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no java on PATH")

CANDIDATES = ["a dog runs in the grass", "two men sit on a bench", ""]
REFERENCES = [["a dog is running on grass"], ["two men are sitting on a bench", "men on a bench"], ["a cat"]]


def _program(folder: Path, script: str) -> str:
    """A stand-in for java, as PATH."""
    java = folder / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_without_java_both_scores_are_left_out_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    scores, left_out = java_scores(CANDIDATES, REFERENCES)
    assert scores == {}
    assert left_out == dict.fromkeys(("meteor", "spice"), module.NEEDS_JAVA)
    with pytest.raises(UserError, match="tokenizer = ptb_tokenize: needs Java.*tokenize_all"):
        ptb_tokenize(["a dog"])


def test_spices_models_are_asked_for_and_never_fetched_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", _program(tmp_path, "exit 3"))
    monkeypatch.setattr(module, "_CORENLP", "lib/not-there.jar")
    monkeypatch.setattr(module.spice, "Spice", lambda: pytest.fail("it fetches its models"))
    _, left_out = java_scores(CANDIDATES, REFERENCES)
    assert "python -m pycocoevalcap.spice.get_stanford_models" in left_out["spice"]


def test_a_java_program_that_fails_is_named_with_what_it_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", _program(tmp_path, "echo 'Error: no heap left' >&2; exit 3"))
    scores, left_out = java_scores(CANDIDATES, REFERENCES)
    assert "meteor" not in scores
    assert left_out["meteor"] == "its Java program failed: Error: no heap left"


def test_spices_exit_code_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", _program(tmp_path, "exit 3"))
    monkeypatch.setattr(module, "_CORENLP", "spice.py")  # a file that is there
    monkeypatch.setattr(module.spice, "get_stanford_models", lambda: None)
    assert "exit code 3" in java_scores(CANDIDATES, REFERENCES)[1]["spice"]


@needs_java
def test_meteor_is_pycocoevalcaps() -> None:
    captions = {str(i): text for i, text in enumerate(CANDIDATES)}
    references = {str(i): texts for i, texts in enumerate(REFERENCES)}
    truths = {i: tokenize_all(texts) for i, texts in references.items()}
    expected = Meteor().compute_score(truths, {i: tokenize_all([text]) for i, text in captions.items()})[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of SPICE, whose models may not be there
        scores = caption_scores(captions, references)
    assert scores["meteor"] == pytest.approx(expected, abs=1e-12)
    assert 0.2 < scores["meteor"] < 0.6
    assert "meteor" not in scores.left_out


@needs_java
def test_cocos_own_tokenizer_gives_the_words_of_raycaps() -> None:
    captions = ["A man's dog, running!", "", "two\nlines of t-shirts", "Don't.", ""]
    assert ptb_tokenize(captions) == tokenize_all(captions)
    known = References({"1": captions}, tokenizer=ptb_tokenize)
    assert known.words[0][0] == ["a", "man", "'s", "dog", "running"]
