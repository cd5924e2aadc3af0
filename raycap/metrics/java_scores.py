"""METEOR, SPICE and COCO's own tokenizer: pycocoevalcap's classes around Java programs.

Where Java, or a file that a program needs, is not there, the scores are left out and the reason is said.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.spice import spice
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from raycap.errors import UserError

_NAMES = ("meteor", "spice")
NOT_ASKED_FOR = dict.fromkeys(_NAMES, "not asked for; set java to true")
NEEDS_JAVA = "needs Java, and there is no java on PATH; install a Java runtime (Java 8 is what it was made for)"
_NEEDS_MODELS = (
    "needs the models of Stanford CoreNLP 3.6.0 (400 MB), which are not there; get them by "
    "python -m pycocoevalcap.spice.get_stanford_models"
)
_CORENLP = "lib/stanford-corenlp-3.6.0-models.jar"


def java_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, str]]:
    """METEOR (Denkowski and Lavie 2014) and SPICE (Anderson et al. 2016), 0 to 1.

    Args:
        candidates: tokenized captions, one per image.
        references: tokenized references of the same images.

    Returns:
        The scores by name; and of those that could not be had, the reason and its remedy by name.
    """
    if shutil.which("java") is None:
        return {}, dict.fromkeys(_NAMES, NEEDS_JAVA)
    truths = {str(index): list(texts) for index, texts in enumerate(references)}
    hypotheses = {str(index): [text] for index, text in enumerate(candidates)}
    scores: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, compute in zip(_NAMES, (_meteor, _spice), strict=True):
        try:
            scores[name] = compute(truths, hypotheses)
        except _NoScoreError as error:
            left_out[name] = str(error)
    return scores, left_out


def ptb_tokenize(captions: Sequence[str]) -> list[str]:
    """Captions in the words of COCO's evaluation, by the Penn Treebank tokenizer of Stanford CoreNLP 3.4.1.

    A tokenizer for :class:`raycap.metrics.caption.References`. The default one follows it without Java.

    Raises:
        UserError: there is no Java.
    """
    if shutil.which("java") is None:
        raise UserError(f"tokenizer = ptb_tokenize: {NEEDS_JAVA}, or take raycap.metrics.tokens.tokenize_all")
    # Java splits lines wherever it sees one; a caption is one line.
    lines = {str(index): [{"caption": " ".join(caption.split())}] for index, caption in enumerate(captions)}
    found = PTBTokenizer().tokenize(lines)
    return [found[key][0] for key in lines]


class _NoScoreError(Exception):
    """A program that could not be run, or failed; the message says why and what to do."""


def _meteor(truths: Mapping[str, list[str]], hypotheses: Mapping[str, list[str]]) -> float:
    meteor = Meteor()
    process = meteor.meteor_p
    try:
        return float(meteor.compute_score(truths, hypotheses)[0])
    except (ValueError, OSError) as error:  # an answer that is no number, a closed pipe: its Java has ended
        # compute_score left its lock closed, and its destructor would wait for it for ever.
        meteor.lock.release()
        process.kill()
        said = process.stderr.read().decode(errors="replace").strip().splitlines()
        raise _NoScoreError(f"its Java program failed: {said[-1] if said else error}") from error
    finally:  # what its destructor leaves open
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(BrokenPipeError):  # words that a program which has ended never read
                pipe.close()


def _spice(truths: Mapping[str, list[str]], hypotheses: Mapping[str, list[str]]) -> float:
    # Spice() would fetch its models unasked, in the midst of an evaluation.
    if not (Path(spice.__file__).parent / _CORENLP).exists():
        raise _NoScoreError(_NEEDS_MODELS)
    try:
        return float(spice.Spice().compute_score(truths, hypotheses)[0])
    except subprocess.CalledProcessError as error:
        raise _NoScoreError(
            f"its Java program failed with exit code {error.returncode}; it was made for Java 8"
        ) from error
