from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from raycap.metrics.bootstrap import paired_bootstrap
from raycap.metrics.caption import caption_scores, caption_statistics, scores_of_sums

DIRECTIONS = {"east": (2.0, 0.0), "north": (0.0, 1.0), "west": (-3.0, 0.0), "north east": (1.0, 1.0)}


class _Compass:
    """A CLIP for which a text is a direction, and an image's id is what it shows."""

    def embed_images(self, image_ids: Sequence[str]) -> np.ndarray:
        return np.array([DIRECTIONS[image_id.split("/")[1]] for image_id in image_ids])

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        assert all(text.startswith("A photo depicts ") for text in texts)
        return np.array([DIRECTIONS[text.removeprefix("A photo depicts ")] for text in texts])


REFERENCES = {"2/east": ["west", "north east"], "1/north": ["north"], "3/east": ["east"], "0/east": ["west"]}
CAPTIONS = {"2/east": "east", "1/north": "north", "3/east": "west", "0/east": "east"}


def test_scores_are_those_of_cosines_worked_by_hand() -> None:
    # Cosine to the image 1, 1, -1, 1; largest to a reference sqrt(1/2), 1, -1, -1; none counts below 0.
    scores = caption_scores(CAPTIONS, REFERENCES, clip=_Compass(), java=False)
    assert scores["clipscore"] == pytest.approx(2.5 * 3 / 4)
    half = 0.5**0.5
    expected = [2 * 2.5 * half / (2.5 + half), 2 * 2.5 * 1 / 3.5, 0, 0]
    assert scores["refclipscore"] == pytest.approx(np.mean(expected))


def test_intervals_of_clip_scores_come_with_those_of_the_others() -> None:
    table = caption_statistics(CAPTIONS, REFERENCES, _Compass())
    found = paired_bootstrap([table], scores_of_sums, num_resamples=100).scores[0]
    assert found["clipscore"].low < found["clipscore"].value == pytest.approx(2.5 * 3 / 4)
    assert "clipscore" not in caption_scores(CAPTIONS, REFERENCES, java=False)
