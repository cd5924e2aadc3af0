"""What an evaluation makes of captions: scores with intervals, and files in COCO's forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from raycap import storage
from raycap.metrics.bootstrap import Interval, paired_bootstrap
from raycap.metrics.caption import References, caption_statistics, lengths_of_sums, scores_of_sums
from raycap.metrics.diversity import diversity
from raycap.metrics.java_scores import NOT_ASKED_FOR, java_scores

_CONFIDENCE = 0.95
_SCORES = "scores.csv"

Captions = Mapping[str, Mapping[str, Mapping[str, str]]]
"""By corruption, variant and image id."""

ImageScores = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
"""By corruption, variant and score: of each image, in the order of their sorted ids, (images,)."""


class Scored(NamedTuple):
    """What the scores of captions are."""

    metrics: dict[str, dict[str, Any]]
    """``scores``, ``differences`` (each variant minus the first, on the same images), ``diversity``, ``lengths`` and
    ``java_scores``, each by corruption, variant and metric; an interval is value, low and high. ``left_out`` has the
    scores that could not be had, each with the reason."""

    of_images: ImageScores
    """Each caption's own, as if its image were all there are; CIDEr's document frequencies are those of all."""


def score(
    captions: Captions, references: Mapping[str, Sequence[str]], num_resamples: int, seed: int, java: bool = False
) -> Scored:
    """Score every variant on every corruption.

    Args:
        java: also METEOR and SPICE. Neither is a sum over images, so they have no interval.
    """
    known = References(references)
    parts: dict[str, Any] = {name: {} for name in ("scores", "differences", "diversity", "lengths", "java_scores")}
    of_images: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    left_out: dict[str, str] = {} if java else dict(NOT_ASKED_FOR)
    for corruption, group in captions.items():
        tables = [caption_statistics(texts, known) for texts in group.values()]
        found = paired_bootstrap(tables, scores_of_sums, num_resamples, _CONFIDENCE, seed)
        parts["scores"][corruption] = dict(zip(group, map(_plain, found.scores), strict=True))
        parts["differences"][corruption] = dict(list(zip(group, map(_plain, found.differences), strict=True))[1:])
        parts["diversity"][corruption] = {name: diversity(texts) for name, texts in group.items()}
        of_images[corruption] = dict(zip(group, map(scores_of_sums, tables), strict=True))
        lengths = [lengths_of_sums(table.sum(0)) for table in tables]
        parts["lengths"][corruption] = {
            name: {key: float(value) for key, value in of.items()} for name, of in zip(group, lengths, strict=True)
        }
        judged: dict[str, dict[str, float]] = {}
        for name, texts in group.items() if java else ():
            judged[name], missed = java_scores(known.tokenize(texts), known.texts)
            left_out |= missed
        parts["java_scores"][corruption] = judged
    bootstrap = {"num_resamples": num_resamples, "confidence": _CONFIDENCE, "seed": seed}
    return Scored(parts | {"left_out": left_out, "bootstrap": bootstrap}, of_images)


def _plain(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {metric: interval._asdict() for metric, interval in intervals.items()}


def write_captions(
    output: str, captions: Captions, references: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, str]]:
    """Write captions in COCO's result form and references in its annotation form.

    Image ids are the rows' own, strings; with both files COCO's own tools score any data set
    (https://cocodataset.org/#format-results).

    Returns:
        For each file of captions its variant and corruption.
    """
    files: dict[str, dict[str, str]] = {}
    for corruption, group in captions.items():
        for variant, texts in group.items():
            results = [{"image_id": image_id, "caption": text} for image_id, text in texts.items()]
            first = [] if files else ["captions.json"]
            for name in [*first, f"captions/{variant}-{corruption}.json"]:
                storage.write_json(storage.join(output, name), results)
                files[name] = {"variant": variant, "corruption": corruption}
    pairs = [(image_id, text) for image_id in sorted(references) for text in references[image_id]]
    annotations = [
        {"id": number, "image_id": image_id, "caption": text} for number, (image_id, text) in enumerate(pairs, 1)
    ]
    images = [{"id": image_id} for image_id in sorted(references)]
    storage.write_json(storage.join(output, "references.json"), {"images": images, "annotations": annotations})
    return files


def write_scores(output: str, captions: Captions, of_images: ImageScores) -> str:
    """Write scores.csv, a line for each caption with its own scores; gives the file's name."""
    names = list(next(iter(next(iter(of_images.values())).values())))
    rows = (
        [image_id, corruption, variant, texts[image_id], *(f"{values[name][index]:.6g}" for name in names)]
        for corruption, group in captions.items()
        for variant, texts in group.items()
        for values in [of_images[corruption][variant]]
        for index, image_id in enumerate(sorted(texts))
    )
    storage.write_csv(storage.join(output, _SCORES), ["image_id", "corruption", "variant", "caption", *names], rows)
    return _SCORES
