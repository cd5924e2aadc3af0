from __future__ import annotations

from pathlib import Path

import pytest

from raycap.errors import UserError
from raycap.report.curves import draw_curves, read_history

HISTORY = [
    {"epoch": 0, "step": 10, "seconds": 1.0, "learning_rate": 0.1, "data_wait_share": 0.1, "train_caption_loss": 3.0},
    {"epoch": 0, "step": 20, "train_caption_loss": 2.0, "validation_caption_loss": 2.5, "free_energy_gap": -1},
    {"epoch": 1, "step": 30, "train_caption_loss": float("nan"), "val/accuracy": 0.5, "best": True},
    {"epoch": 1, "step": 40, "train": {"caption_loss": 1.5}, "images_per_second": 9.0, "note": "text"},
]


def test_every_loss_and_metric_has_its_drawing_and_bookkeeping_has_none() -> None:
    curves = draw_curves("BLIP", HISTORY)
    assert [curve.title for curve in curves] == ["BLIP: caption loss", "BLIP: free energy gap", "BLIP: accuracy"]


def test_training_and_validation_share_a_drawing() -> None:
    svg = draw_curves("BLIP", HISTORY)[0].svg
    assert ">training<" in svg
    assert ">validation<" in svg
    assert "var(--series-1)" in svg
    assert "var(--series-2)" in svg


def test_drawings_are_inline_and_take_their_colours_from_the_page() -> None:
    for curve in draw_curves("BLIP <&>", HISTORY):
        assert curve.svg.startswith("<svg")
        assert curve.svg.endswith("</svg>")
        assert "http" not in curve.svg
        assert "#0102" not in curve.svg
        assert "#000000" not in curve.svg


def test_a_history_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n\n{"step": 2, "loss": 1.0}\n')
    assert [entry["loss"] for entry in read_history(str(path)) if entry] == [2.0, 1.0]
    assert len(draw_curves("a", read_history(str(path)))) == 1
    assert draw_curves("a", []) == ()


def test_a_missing_or_broken_history_is_named(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with pytest.raises(UserError, match=r"histories = .*history\.jsonl: no such file"):
        read_history(str(path))
    path.write_text('{"step": 1}\n{"step":\n')
    with pytest.raises(UserError, match="line 2 is not a JSON object"):
        read_history(str(path))
