"""Paired bootstrap: how sure a score, and a difference of two systems on the same images, is.

Efron and Tibshirani (1993), "An Introduction to the Bootstrap", percentile intervals; Koehn (2004),
"Statistical significance tests for machine translation evaluation", for the paired use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Score = Callable[[np.ndarray], dict[str, np.ndarray]]

_BLOCK_NUMBERS = 4_000_000  # 32 MB of weights at once


class Interval(NamedTuple):
    """A value measured on all images, and its interval."""

    value: float
    low: float
    high: float


class PairedIntervals(NamedTuple):
    """Results of :func:`paired_bootstrap`, by system and metric."""

    scores: list[dict[str, Interval]]
    differences: list[dict[str, Interval]]
    """Each system minus the first; the first one's own are zero."""


def paired_bootstrap(
    systems: Sequence[np.ndarray], score: Score, num_resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> PairedIntervals:
    """Percentile intervals of the systems' scores and of their differences to the first system.

    Every resample draws the same images for all systems, so that what makes an image easy or hard
    cancels in the difference.

    Args:
        systems: additive statistics of each system, (images, statistics), rows in the same order.
        score: from sums (..., statistics) to scores (...) by name.
        num_resamples: how many times the images are drawn with replacement.
        confidence: share of the resamples inside an interval.
        seed: of the draws.

    Raises:
        ValueError: no system, no image, or systems over different images.
    """
    shapes = {system.shape for system in systems}
    if len(shapes) != 1 or 0 in next(iter(shapes)):
        raise ValueError(f"systems of shapes {sorted(shapes)}: give statistics of the same images, at least one")
    resampled = _resample(systems, score, num_resamples, seed)
    measured = [score(system.sum(0)) for system in systems]
    quantiles = ((1 - confidence) / 2, (1 + confidence) / 2)

    def interval(value: np.ndarray, draws: np.ndarray) -> Interval:
        low, high = np.quantile(draws, quantiles)
        return Interval(float(value), float(low), float(high))

    scores, differences = [], []
    for values, draws in zip(measured, resampled, strict=True):
        scores.append({name: interval(values[name], draws[name]) for name in values})
        differences.append(
            {name: interval(values[name] - measured[0][name], draws[name] - resampled[0][name]) for name in values}
        )
    return PairedIntervals(scores, differences)


def _resample(
    systems: Sequence[np.ndarray], score: Score, num_resamples: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Scores of each system under the same resamples, (num_resamples,) by name."""
    num_images = len(systems[0])
    rng = np.random.default_rng(seed)
    block = max(1, min(num_resamples, _BLOCK_NUMBERS // num_images))
    sums: list[list[np.ndarray]] = [[] for _ in systems]
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        # How often each image is drawn: drawing n of n with replacement is one multinomial draw.
        weights = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=size).astype(np.float64)
        for blocks, system in zip(sums, systems, strict=True):
            blocks.append(weights @ system)  # (size, statistics)
    return [score(np.concatenate(blocks)) for blocks in sums]
