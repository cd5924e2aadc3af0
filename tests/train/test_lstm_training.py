"""The LSTM captioner through the common loop, on a real Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lstm_runs import MODEL, config, history, task
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import CAPTIONS

from raycap.checkpoint.identity import encoder_fingerprint
from raycap.checkpoint.lstm_captioner import load_lstm_captioner
from raycap.data.rows import decode_images, open_rows, read_chunk
from raycap.data.vocabulary import count_words, make_vocabulary
from raycap.errors import UserError
from raycap.metrics.caption import caption_scores
from raycap.models.lstm_decoding import LstmDecoding, write_captions
from raycap.train.lstm_captioning import LstmCaptioningTraining
from raycap.train.trainer import train
from raycap.train.word_counts import count_split_words

pytestmark = pytest.mark.integration


def learned(output: Path) -> list[float]:
    return [r["validation_caption_loss"] for r in history(output) if "validation_caption_loss" in r]


@pytest.fixture(scope="module")
def ddp_run(tiny_rows: str, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("lstm") / "run"
    settings = {"schedule": {"kind": "stairs", "stair_epochs": 1}, "readers_per_worker": 1}
    train(config(task(tiny_rows, freeze_encoder=True), output, **settings))
    return output


def test_the_words_counted_by_ray_are_those_counted_here(tiny_rows: str, ray_cluster: None) -> None:
    # Each of 200 images has two of the four captions in turn.
    assert count_split_words(open_rows(tiny_rows), "train") == count_words(CAPTIONS * 100)


def test_training_lowers_the_loss_and_writes_a_model_that_writes_captions(ddp_run: Path) -> None:
    losses = learned(ddp_run)
    assert losses[1] < losses[0]
    assert {record["learning_rate"] for record in history(ddp_run)} == {5e-3, 2.5e-3, 1.25e-3}
    model = load_lstm_captioner(str(ddp_run / "model"))
    assert model.vocabulary.get_vocab() == make_vocabulary(count_words(CAPTIONS * 100)).get_vocab()
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        regions = model.encoder(images)
    for (caption,) in write_captions(model.decoder, regions, LstmDecoding(max_words=8)):
        words = model.vocabulary.decode(caption.token_ids).split()
        assert 0 < len(words) == len(caption.attention)
        assert set(words) <= set(" ".join(CAPTIONS).split())


def test_the_scores_of_an_epoch_are_those_of_the_captions_its_published_model_writes(
    ddp_run: Path, tiny_rows: str
) -> None:
    validations = [record for record in history(ddp_run) if "validation_cider" in record]
    assert len(validations) == 2
    best = max(validations, key=lambda r: (r["validation_cider"], -r["validation_caption_loss"]))
    model, candidates, references = load_lstm_captioner(str(ddp_run / "model")), {}, {}
    for chunk in open_rows(tiny_rows).chunks("dev"):
        table = read_chunk(chunk)
        with torch.no_grad():
            regions = model.encoder(torch.from_numpy(decode_images(chunk, table, 32)))
        for image_id, (caption,), texts in zip(
            table["image_id"].to_pylist(),
            write_captions(model.decoder, regions, LstmDecoding()),
            table["captions"].to_pylist(),
            strict=True,
        ):
            candidates[image_id], references[image_id] = model.vocabulary.decode(caption.token_ids), texts
    scores = caption_scores(candidates, references, java=False)
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider"):
        assert best[f"validation_{name}"] == pytest.approx(scores[name], rel=1e-6), name


def test_tensorboard_has_the_whole_history_and_a_caption_of_each_epoch(ddp_run: Path) -> None:
    events = EventAccumulator(str(ddp_run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    for tag, name in (("train/caption_loss", "train_caption_loss"), ("validation/cider", "validation_cider")):
        expected = [(r["step"], pytest.approx(r[name], rel=1e-5)) for r in history(ddp_run) if name in r]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == expected
    assert len(events.Images("captions/dev-0")) == 2


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_follows_the_losses_of_ddp(stage: int, ddp_run: Path, tiny_rows: str, tmp_path: Path) -> None:
    settings = {"schedule": {"kind": "stairs", "stair_epochs": 1}, "strategy": {"kind": "deepspeed", "stage": stage}}
    train(config(task(tiny_rows, freeze_encoder=True), tmp_path / "run", **settings))
    # Dropout draws by itself.
    assert learned(tmp_path / "run") == pytest.approx(learned(ddp_run), rel=5e-2)


def test_the_second_stage_sets_the_first_one_s_encoder_free(
    ddp_run: Path, tiny_rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ddp_run)  # a relative path must reach the workers too
    model = {"kind": "pretrained", "path": "model"}
    settings = {"coverage_weight": 0.1, "scheduled_sampling": 0.25, "encoder_learning_rate_scale": 0.1}
    train(config(task(tiny_rows, model, **settings), tmp_path / "run"))
    before, after = (load_lstm_captioner(str(run / "model")) for run in (ddp_run, tmp_path / "run"))
    assert encoder_fingerprint(before.encoder) != encoder_fingerprint(after.encoder)
    assert learned(tmp_path / "run")[-1] < learned(ddp_run)[-1]
    assert {"train_total_loss", "train_coverage_loss", "train_caption_loss"} <= history(tmp_path / "run")[0].keys()


def test_word_vectors_are_the_first_embeddings(tiny_rows: str, tmp_path: Path, ray_cluster: None) -> None:
    (tmp_path / "glove.txt").write_text("red " + "0.5 " * 8 + "\nzebra " + "9 " * 8 + "\n")
    model = MODEL | {"word_vectors": {"path": str(tmp_path / "glove.txt")}}
    settings = LstmCaptioningTraining.model_validate(task(tiny_rows, model))
    settings.check()
    recipe = settings.prepare(str(tmp_path / "run"))
    built = recipe._build()
    assert built.decoder.embedding.weight[built.vocabulary.get_vocab()["red"]].tolist() == [0.5] * 8
    assert not (built.decoder.embedding.weight == 9).any()
    with pytest.raises(UserError, match="task.model.word_vectors.path = .*have 8 numbers, the words' embeddings 9"):
        LstmCaptioningTraining.model_validate(task(tiny_rows, model | {"embed_dim": 9})).check()


def test_what_the_captioner_begins_with_is_checked_first(tiny_rows: str, tiny_blip: str, tmp_path: Path) -> None:
    for changes, message in (
        ({"model": MODEL | {"encoder": {"kind": "pretrained", "path": tiny_blip}}}, "holds a blip, not a ResNet"),
        ({"model": {"kind": "pretrained", "path": tiny_blip}}, "holds a blip, not an LSTM captioner"),
        ({"model": {"kind": "pretrained", "path": str(tmp_path)}}, "no model there"),
    ):
        with pytest.raises(UserError, match=message):
            LstmCaptioningTraining.model_validate(task(tiny_rows) | changes).check()
    two_stages = task(tiny_rows, unfreeze_encoder_after_epochs=1)
    with pytest.raises(ValueError, match="unfreeze_encoder_after_epochs .1.: freeze_encoder keeps"):
        LstmCaptioningTraining.model_validate(two_stages | {"freeze_encoder": True})
    with pytest.raises(ValueError, match="unfreeze_encoder_after_epochs: strategy.kind .deepspeed.*set it to ddp"):
        config(two_stages, tmp_path, strategy={"kind": "deepspeed"})
    with pytest.raises(ValueError, match="task.unfreeze_encoder_after_epochs .1. must be less than epochs .1."):
        config(two_stages, tmp_path, epochs=1)
    with pytest.raises(ValueError, match="resize = 36: smaller than the model's image_size .40."):
        LstmCaptioningTraining.model_validate(task(tiny_rows, MODEL | {"image_size": 40}))
