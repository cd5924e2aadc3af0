"""Crops: every place is drawn, mirrored as often as not, the same again by the same generator."""

from __future__ import annotations

import numpy as np

from raycap.data.crops import random_crops


def numbered(count: int, size: int) -> np.ndarray:
    """Pixels that tell their row and column."""
    rows, columns = np.mgrid[:size, :size]
    return np.broadcast_to(np.stack([rows, columns, rows * 0], -1).astype(np.uint8), (count, size, size, 3))


def test_every_window_is_drawn_about_as_often_and_mirrored_half_the_time() -> None:
    crops = random_crops(numbered(4000, 6), 4, np.random.default_rng(0))
    mirrored = crops[:, 0, 0, 1] > crops[:, 0, 1, 1]
    assert abs(mirrored.mean() - 0.5) < 0.03
    corners = np.stack([crops[:, 0, 0, 0], crops[..., 1].min((1, 2))], -1)
    places, counts = np.unique(corners, axis=0, return_counts=True)
    assert len(places) == 9
    assert (abs(counts / 4000 - 1 / 9) < 0.02).all()
    # Whole windows: rows and columns follow on each other.
    assert (np.diff(crops[:, :, 0, 0].astype(int), axis=1) == 1).all()
    assert (abs(np.diff(crops[:, 0, :, 1].astype(int), axis=1)) == 1).all()


def test_the_same_generator_draws_the_same_and_flips_can_be_left_out() -> None:
    one, other = (random_crops(numbered(50, 6), 4, np.random.default_rng(3)) for _ in range(2))
    assert (one == other).all()
    upright = random_crops(numbered(50, 6), 4, np.random.default_rng(3), flip=False)
    assert (upright[:, 0, 0, 1] < upright[:, 0, 1, 1]).all()
    assert (upright[:, 0, 0, 0] == one[:, 0, 0, 0]).all()
