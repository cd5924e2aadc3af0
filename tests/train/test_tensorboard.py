"""TensorBoard's files, read back by TensorBoard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raycap.train.recipe import Sample
from raycap.train.tensorboard import write_events


def record(step: int, **values: float) -> dict[str, float]:
    return {"epoch": 0, "step": step, "seconds": step / 10, "learning_rate": 0.1, **values}


def read(output: Path) -> EventAccumulator:
    return EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()


def test_a_checkpoint_that_is_come_to_again_leaves_each_step_once(tmp_path: Path) -> None:
    first = [record(1, train_caption_loss=3.0), record(2, train_caption_loss=2.0)]
    write_events(str(tmp_path), 2, first, ())
    lost = [record(3, train_caption_loss=1.5), record(4, train_caption_loss=1.0), record(4, validation_cider=0.5)]
    for _ in range(2):  # the second time after a kill
        write_events(str(tmp_path), 4, lost, ())
    scalars = read(tmp_path)
    losses = scalars.Scalars("train/caption_loss")
    assert [(event.step, round(event.value, 6)) for event in losses] == [(1, 3.0), (2, 2.0), (3, 1.5), (4, 1.0)]
    assert [event.step for event in scalars.Scalars("learning_rate")] == [1, 2, 3, 4]
    assert [(event.step, event.value) for event in scalars.Scalars("validation/cider")] == [(4, 0.5)]
    times = [event.wall_time for event in losses[2:]]
    assert abs(times[1] - times[0] - 0.1) < 0.01
    assert sorted(scalars.Tags()["scalars"]) == ["epoch", "learning_rate", "train/caption_loss", "validation/cider"]


def test_a_sample_is_shown_with_its_caption_below(tmp_path: Path) -> None:
    image = np.full((32, 32, 3), 100, np.uint8)
    write_events(str(tmp_path), 7, [record(7)], [Sample("a.jpg", image, "a red circle " * 9)])
    events = read(tmp_path)
    (shown,) = events.Images("captions/a.jpg")
    assert shown.step == 7
    assert shown.width == 320 < shown.height - 3 * 16
    (text,) = events.Tensors("captions/a.jpg/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "a red circle " * 9
