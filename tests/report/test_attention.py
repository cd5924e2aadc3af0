from __future__ import annotations

import numpy as np

from raycap.report.attention import draw_figure, overlay_attention


def test_a_map_covers_the_whole_image_and_is_brightest_where_attention_is() -> None:
    pixels = np.full((40, 80, 3), 100, np.uint8)
    attention = np.array([[0.0, 0.0, 0.0, 0.4]])
    overlay = np.asarray(overlay_attention(pixels, attention).convert("L"))
    assert overlay.shape == (40, 80)
    assert overlay[:, -1].min() > 150 > overlay[:, 0].max()


def test_a_figure_has_a_tile_of_the_images_shape_for_the_image_and_for_each_word() -> None:
    pixels = np.full((96, 192, 3), (200, 0, 0), np.uint8)
    words = ["a", "dog", "runs", "on", "the", "grass"]
    overlays = [overlay_attention(pixels, np.eye(2)) for _ in words]
    figure = np.asarray(draw_figure(pixels, words, overlays))
    assert figure.shape == (2 * (96 + 22), 6 * 192, 3)  # seven tiles, six in a row
    assert (figure[22:118, :192] == (200, 0, 0)).all()
    assert (figure[118 + 22 :, :192] == np.asarray(overlays[-1])).all()
    assert (figure[118:, 192:] == 255).all()
