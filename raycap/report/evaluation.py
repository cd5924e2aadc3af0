"""An evaluation's metrics in words and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raycap.report.html import Cell, Curve, Difference, Report, ScoreGroup, Section, Table

_TO, _MINUS = "\u2013", "\u2212"  # en dash and minus sign, as wide as a plus
_TITLES = {"exact_match": "Right captions", "bleu_4": "BLEU-4", "cider": "CIDEr", "rouge_l": "ROUGE-L"}
_COMPARED = ("exact_match", "bleu_4", "cider")  # the differences that are drawn; metrics.json has all of them
_JAVA_TITLES = {"meteor": "METEOR", "spice": "SPICE"}
_NOTES = (
    "In brackets: 95% intervals by paired bootstrap over the images. A difference whose interval holds 0 "
    "is not shown by these images.",
    "Scores are defined as in pycocoevalcap, and printed times 100. Captions are compared in lower case and without "
    "punctuation.",
    "Length ratio: the captions' words over those of the references closest in length; where it is below 1, BLEU is "
    "multiplied by the brevity penalty. Repetition: captions in which any three words in a row stand twice.",
)
# BLEU without a single match is not 0 but some 1e-11; such values are not to be told apart.
_NOTHING = 1e-6
_GALLERY_NOTE = (
    "Gains and losses are differences of two captions' own CIDEr, whose document frequencies are those of all "
    "references; other images are drawn at random. Attention is the mean over BLIP's heads and layers, or the LSTM's "
    "own; each word's strongest place is brightest."
)
_EXACT_NOTE = "A caption is right when it is one of the image's reference captions, which are all its right captions."


def evaluation_report(
    metrics: Mapping[str, Any],
    gallery: Sequence[Section] = (),
    curves: Sequence[Curve] = (),
    title: str = "Evaluation",
) -> Report:
    """Build the page of an evaluation.

    Args:
        metrics: what ``jobs/evaluate.py`` writes into metrics.json.
        gallery: images to show.
        curves: of trainings, see :func:`raycap.report.curves.draw_curves`.
    """
    names = [name for name in _TITLES if name != "exact_match" or metrics["exact_match"]]
    scores: dict[str, dict[str, Any]] = metrics["scores"]
    judged: dict[str, dict[str, Any]] = metrics["java_scores"]
    java_names = [
        name for name in _JAVA_TITLES if any(name in of for group in judged.values() for of in group.values())
    ]
    variants = " and ".join(metrics["variants"])
    spoiled = [name for name in scores if name != "clean"]
    lead = f"Captions by {variants} for the same {metrics['num_images']:,} images of the {metrics['split']} split"
    lead += f", also spoiled ({', '.join(map(corruption_words, spoiled))})." if spoiled else "."
    return Report(
        title=title,
        lead=lead,
        facts=_facts(metrics),
        metric_names=tuple((_TITLES | _JAVA_TITLES)[name] for name in (*names, *java_names)),
        scores=tuple(
            ScoreGroup(_heading(corruption), tuple(
                (variant, (
                    *(_cell(name, values[name]) for name in names),
                    *(_plain_cell(judged[corruption][variant].get(name)) for name in java_names),
                ))
                for variant, values in group.items()
            ))
            for corruption, group in scores.items()
        ),
        baseline=metrics["baseline"],
        differences=_differences(metrics["differences"], [name for name in names if name in _COMPARED]),
        sections=(_words(metrics), *gallery),
        curves=tuple(curves),
        notes=(
            *_NOTES,
            *_left_out(metrics["left_out"]),
            *([_EXACT_NOTE] if metrics["exact_match"] else []),
            *([_GALLERY_NOTE] if gallery else []),
        ),
    )  # fmt: skip


def _facts(metrics: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    decoding = metrics["decoding"]
    search = "sampling" if decoding["do_sample"] else "greedy"
    if decoding["num_beams"] > 1:
        search = f"{decoding['num_beams']} beams"
    models = list(dict.fromkeys(variant.get("model", metrics["model"]) for variant in metrics["variants"].values()))
    facts = {
        "Images": f"{metrics['num_images']:,} ({metrics['split']})",
        "Model" if len(models) == 1 else "Models": ", ".join(models),
        "RBM": metrics["rbm"] or "none",
        "Decoding": f"{search}, up to {decoding['max_new_tokens']} tokens",
        "Time": f"{metrics['seconds']:,.0f} s, {metrics['images_per_second']:,.1f} images/s",
    }
    return tuple(facts.items())


def _words(metrics: Mapping[str, Any]) -> Section:
    """How long the captions are, and how much they vary and repeat."""
    columns = ("Words per caption", "Length ratio", "Brevity penalty", "Vocabulary", "Distinct captions", "Repetition")
    rows = []
    for corruption, group in metrics["lengths"].items():
        for variant, lengths in group.items():
            spread = metrics["diversity"][corruption][variant]
            cells = (
                Cell(f"{lengths['candidate_length'] / metrics['num_images']:.1f}"),
                Cell(f"{lengths['length_ratio']:.2f}"),
                Cell(f"{lengths['brevity_penalty']:.2f}"),
                Cell(f"{spread['vocabulary']:,}"),
                Cell(f"{100 * spread['distinct_captions']:.1f}%"),
                _cell("repetition_rate", metrics["scores"][corruption][variant]["repetition_rate"]),
            )
            rows.append((f"{variant}, {corruption_words(corruption)}", cells))
    return Section("Words", table=Table(columns, tuple(rows)))


def _left_out(reasons: Mapping[str, str]) -> list[str]:
    """A note for each reason, with all the scores that it concerns."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(_JAVA_TITLES[name])
    return [f"Left out: {' and '.join(names)}. Reason: {reason}." for reason, names in by_reason.items()]


def _plain_cell(score: float | None) -> Cell:
    return Cell(_TO if score is None else f"{100 * score:.1f}")


def _cell(name: str, score: Mapping[str, float]) -> Cell:
    value, low, high = (f"{100 * score[key]:.1f}" for key in ("value", "low", "high"))
    unit = "%" if name in ("exact_match", "repetition_rate") else ""
    return Cell(value + unit, f"{low} {_TO} {high}")


def _differences(differences: Mapping[str, Any], names: Sequence[str]) -> tuple[Difference, ...]:
    found = []
    for name in names:
        rows = [
            (f"{variant}, {corruption_words(corruption)}", values[name])
            for corruption, group in differences.items()
            for variant, values in group.items()
        ]
        # One scale per metric, so that the bars of a metric can be compared.
        scale = max((max(abs(score["low"]), abs(score["high"]), abs(score["value"])) for _, score in rows), default=0)
        for what, score in rows:
            low, value, high = (score[key] / scale if scale else 0.0 for key in ("low", "value", "high"))
            found.append(Difference(what, _TITLES[name], _signed(score), verdict(score), low, value, high))
    return tuple(found)


def _signed(score: Mapping[str, float]) -> str:
    value, low, high = (f"{100 * score[key]:+.1f}".replace("-", _MINUS) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _heading(corruption: str) -> str:
    return "Clean images" if corruption == "clean" else f"Images with {corruption_words(corruption)}"


def verdict(difference: Mapping[str, float]) -> str:
    """``better``, ``worse``, or ``no difference shown`` where the interval holds 0."""
    if difference["low"] > _NOTHING:
        return "better"
    return "worse" if difference["high"] < -_NOTHING else "no difference shown"


def corruption_words(corruption: str) -> str:
    """A corruption's name as people read it."""
    return corruption.replace("_", " ")
