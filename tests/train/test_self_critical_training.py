"""Self-critical training through the common loop: from a trained model, resumed to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from lstm_runs import MODEL, KeepingHost, config, run, save_captioner, task

from raycap.train.lstm_captioning import LstmCaptioningTraining


def test_it_records_rewards_and_goes_on_from_a_checkpoint_to_the_bit(tiny_rows: str, tmp_path: Path) -> None:
    model = {"kind": "pretrained", "path": save_captioner(tmp_path / "captioner", 0)}
    learning = task(tiny_rows, model, freeze_encoder=True, self_critical={"samples_per_image": 2, "max_words": 6})
    settings = config(learning, tmp_path / "run", num_workers=1, readers_per_worker=0, checkpoint_every_steps=7)
    recipe = settings.task.prepare(settings.output)
    records, weights = run(settings, recipe, KeepingHost(tmp_path / "checkpoints"))
    trained = [record for record in records if "train_reward" in record]
    assert len(trained) == 20
    assert {"train_self_critical_loss", "train_greedy_reward"} <= trained[0].keys()
    assert any(record["train_reward"] > 0 for record in trained)
    assert [r["validation_caption_loss"] > 0 and "validation_cider" in r for r in records[10:11]] == [True]
    again = run(settings, recipe, KeepingHost(tmp_path / "again", tmp_path / "checkpoints" / "007"))
    assert again[0] == records
    assert all((tensor == again[1][name]).all() for name, tensor in weights.items())


def test_what_does_not_go_with_it_is_refused(tiny_rows: str, tmp_path: Path) -> None:
    trained = {"kind": "pretrained", "path": "somewhere"}
    for model, changes, message in (
        (MODEL, {}, "self_critical: needs a trained model, not model.kind .new."),
        (trained, {"scheduled_sampling": 0.5}, "scheduled_sampling .0.5.: of no use with self_critical"),
        (trained, {"coverage_weight": 0.1}, "coverage_weight .0.1.: of no use with self_critical"),
        (trained, {"captions": None}, "captions .null.: by them the best model is chosen"),
    ):
        with pytest.raises(ValueError, match=message):
            LstmCaptioningTraining.model_validate(task(tiny_rows, model, self_critical={}, **changes))
    with pytest.raises(ValueError, match="early_stopping: looks at the validation loss"):
        config(task(tiny_rows, trained, self_critical={}), tmp_path, early_stopping={})
    with pytest.raises(ValueError, match="task.self_critical: not with strategy.stage .3."):
        strategy = {"kind": "deepspeed", "stage": 3}
        config(task(tiny_rows, trained, self_critical={}), tmp_path, strategy=strategy)
