from __future__ import annotations

import numpy as np
import pytest

from raycap.metrics.bootstrap import paired_bootstrap


def _mean(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {"mean": sums[..., 1] / sums[..., 0]}


def _statistics(values: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(values), values], axis=1)


def test_interval_of_a_mean_covers_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        table = _statistics(rng.normal(3.0, 2.0, size=100))
        interval = paired_bootstrap([table], _mean, num_resamples=400, seed=trial).scores[0]["mean"]
        covered += interval.low <= 3.0 <= interval.high
    assert 0.90 < covered / 300 < 0.98


def test_width_is_that_of_the_normal_theory() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    interval = paired_bootstrap([_statistics(values)], _mean, num_resamples=5000).scores[0]["mean"]
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 1000**0.5, rel=0.05)
    assert interval.value == pytest.approx(values.mean())


def test_identical_systems_differ_by_exactly_nothing() -> None:
    table = _statistics(np.random.default_rng(0).normal(size=237))
    result = paired_bootstrap([table, table.copy()], _mean)
    assert result.differences[1]["mean"] == (0.0, 0.0, 0.0)
    assert result.scores[0] == result.scores[1]


def test_pairing_removes_what_both_systems_share() -> None:
    rng = np.random.default_rng(0)
    shared, small = rng.normal(0, 10, size=500), rng.normal(0.1, 0.1, size=500)
    difference = paired_bootstrap([_statistics(shared), _statistics(shared + small)], _mean).differences[1]["mean"]
    assert 0 < difference.low < 0.1 < difference.high < 0.2


def test_same_seed_gives_the_same_intervals_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    table = _statistics(np.random.default_rng(0).normal(size=50))
    whole = paired_bootstrap([table], _mean, seed=3)
    monkeypatch.setattr("raycap.metrics.bootstrap._BLOCK_NUMBERS", 1700)
    in_blocks = paired_bootstrap([table], _mean, seed=3)
    for name, interval in whole.scores[0].items():
        assert in_blocks.scores[0][name] == pytest.approx(interval)


def test_systems_over_different_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        paired_bootstrap([np.ones((3, 2)), np.ones((4, 2))], _mean)
