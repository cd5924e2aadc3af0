"""Captions in validation: who captions what, when, and which model is the best."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
from tiny import CAPTIONS, make_rows

from raycap.data.rows import open_rows
from raycap.metrics.caption import caption_scores
from raycap.train.caption_validation import CaptionValidation, caption_chunks, score
from raycap.train.loop import Worker
from raycap.train.recipe import Validation
from raycap.train.state import Place


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_rows(str(tmp_path_factory.mktemp("data") / "rows"), num_train=4, num_dev=150)


def caption(chunk: Any, some: slice) -> list[str]:
    assert 0 < some.stop - some.start <= 20
    return [f"{CAPTIONS[index % 3]} {chunk.row_group}" for index in range(some.start, some.stop)]


@pytest.mark.parametrize("max_images", [None, 100, 10])
def test_the_workers_caption_the_first_images_whatever_their_number(
    rows: str, max_images: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = open_rows(rows).chunks("dev")
    settings = CaptionValidation(max_images=max_images, batch_size=20)
    alone = caption_chunks(chunks, caption, settings, Validation(1, True, 0, 1, False))
    assert list(alone) == [f"dev-{index}" for index in range(max_images or 150)]
    assert alone["dev-7"].references == [CAPTIONS[3], CAPTIONS[0]]
    shares: list[Any] = []
    monkeypatch.setattr(
        "raycap.train.caption_validation.distributed.all_gather_object", lambda _, share: shares.append(share)
    )
    for rank in range(2):
        caption_chunks(chunks, caption, settings, Validation(1, True, rank, 2, False))

    def gather(everyone: list[Any], _: Any) -> None:
        everyone[:] = shares

    monkeypatch.setattr("raycap.train.caption_validation.distributed.all_gather_object", gather)
    assert caption_chunks(chunks, caption, settings, Validation(1, True, 1, 2, False)) == alone
    assert all(shares) == (max_images != 10)
    texts = {name: captioned.caption for name, captioned in alone.items()}
    expected = caption_scores(texts, {name: captioned.references for name, captioned in alone.items()}, java=False)
    assert score(alone)["validation_cider"] == expected["cider"] > 0


def test_captions_are_due_every_few_epochs_and_at_the_end() -> None:
    settings = CaptionValidation(every_epochs=3)
    due = [epoch for epoch in range(1, 9) if settings.due(Validation(epoch, epoch == 8, 0, 1, False))]
    assert due == [3, 6, 8]


def test_several_captions_an_image_are_refused() -> None:
    with pytest.raises(ValueError, match="decoding.num_captions .2. must be 1"):
        CaptionValidation.model_validate({"decoding": {"num_beams": 2, "num_captions": 2}})


def published(validations: list[dict[str, float]], order: str = "max") -> list[int]:
    """Which of the validations had their model published."""
    worker = Worker.__new__(Worker)
    worker.recipe = MagicMock(score_name="cider", score_order=order, stopping_metric="validation_caption_loss")
    worker.config, worker.strategy, worker.place = MagicMock(output="/nowhere"), MagicMock(), Place()
    for index, metrics in enumerate(validations):
        worker.place.step = index
        worker._publish_if_best(metrics)
    return [call.args[2] for call in worker.strategy.publish.call_args_list]  # type: ignore[attr-defined]


def test_the_model_of_the_highest_cider_is_published_and_between_equals_the_lower_loss_decides() -> None:
    validations = [(0.0, 3.0), (0.0, 2.0), (0.0, 2.5), (0.3, 4.0), (0.2, 1.0), (0.3, 4.0), (0.3, 3.9)]
    metrics = [{"validation_cider": cider, "validation_caption_loss": loss} for cider, loss in validations]
    assert published(metrics) == [0, 1, 3, 6]
    assert published(metrics, "min") == [0, 1]


def test_a_validation_without_captions_publishes_only_until_one_had_them() -> None:
    without = {"validation_caption_loss": 1.0}
    assert published([without, without, {"validation_cider": 0.1, "validation_caption_loss": 2.0}, without]) == [
        0,
        1,
        2,
    ]
