"""Square windows out of square images: drawn, and mirrored half the time, for training."""

from __future__ import annotations

import numpy as np


def random_crops(images: np.ndarray, crop_size: int, rng: np.random.Generator, flip: bool = True) -> np.ndarray:
    """A window of each image, anywhere in it.

    Args:
        images: (n, S, S, 3).
        crop_size: C, at most S.
        flip: mirror every other window, on average.

    Returns:
        (n, C, C, 3).
    """
    room = images.shape[1] - crop_size + 1
    corners = rng.integers(room, size=(len(images), 2))
    mirrored = rng.random(len(images)) < 0.5
    crops = np.empty((len(images), crop_size, crop_size, 3), images.dtype)
    for crop, image, (top, left), mirror in zip(crops, images, corners, mirrored, strict=True):
        window = image[top : top + crop_size, left : left + crop_size]
        crop[:] = window[:, ::-1] if mirror and flip else window
    return crops
