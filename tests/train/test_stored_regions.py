"""Decoder-only training from regions that jobs/extract.py made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lstm_runs import MODEL, config, history, save_captioner, task
from tiny import make_rows

from raycap.batch.extract import ExtractConfig, extract
from raycap.checkpoint.identity import encoder_fingerprint
from raycap.checkpoint.lstm_captioner import load_lstm_captioner
from raycap.data.features import open_store, read_features
from raycap.data.rows import decode_images, open_rows, read_chunk
from raycap.errors import UserError
from raycap.train.lstm_captioning import LstmCaptioningTraining
from raycap.train.trainer import train

pytestmark = pytest.mark.integration


def extraction(rows: str, model: str, output: Path, **regions: int) -> ExtractConfig:
    settings = {"rows": rows, "model": model, "output": str(output), "embeddings": "regions", "precision": "fp32"}
    return ExtractConfig.model_validate(settings | {"regions": regions, "cpus_per_worker": 0.5})


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_captioner(tmp_path_factory.mktemp("models") / "captioner", 0)


@pytest.fixture(scope="module")
def store(tiny_rows: str, captioner: str, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("regions") / "store"
    extract(extraction(tiny_rows, captioner, output))
    return str(output)


def test_a_store_holds_the_regions_of_whole_images(tiny_rows: str, captioner: str, store: str) -> None:
    encoder = load_lstm_captioner(captioner).encoder
    for of_rows, of_store in zip(open_rows(tiny_rows).chunks("train"), open_store(store).chunks("train"), strict=True):
        images = decode_images(of_rows, read_chunk(of_rows), 32)
        with torch.no_grad():
            expected = encoder(torch.from_numpy(images))
        assert np.allclose(read_features(of_store), expected, rtol=2e-3, atol=1e-3)


def test_a_decoder_trains_from_a_store_and_its_encoder_stays(
    tiny_rows: str, captioner: str, store: str, tmp_path: Path
) -> None:
    stored = {"regions": {"kind": "store", "path": store}, "freeze_encoder": True}
    of_model = {"kind": "pretrained", "path": captioner}
    train(config(task(tiny_rows, of_model, **stored), tmp_path / "run", num_workers=1))
    losses = [r["validation_caption_loss"] for r in history(tmp_path / "run") if "validation_caption_loss" in r]
    assert losses[1] < losses[0]
    assert all("validation_cider" in r for r in history(tmp_path / "run") if "validation_caption_loss" in r)
    before, after = (load_lstm_captioner(path) for path in (captioner, str(tmp_path / "run" / "model")))
    assert encoder_fingerprint(before.encoder) == encoder_fingerprint(after.encoder)
    assert not torch.equal(before.decoder.output.weight, after.decoder.output.weight)


def test_stores_of_other_encoders_and_rows_are_refused(
    tiny_rows: str, captioner: str, store: str, tmp_path: Path
) -> None:
    stored = {"regions": {"kind": "store", "path": store}, "freeze_encoder": True}
    of_model = {"kind": "pretrained", "path": captioner}
    fine = task(tiny_rows, of_model, **stored)
    LstmCaptioningTraining.model_validate(fine).check()
    other = save_captioner(tmp_path / "other", 1)
    few = make_rows(str(tmp_path / "few"), num_train=60, num_dev=40)
    for changes, message in (
        ({"model": of_model | {"path": other}}, "task.regions.path = .*: made by encoder"),
        ({"rows": few}, "task.regions.path = .*: not made of the rows .*split train has other chunks"),
        ({"model": MODEL}, "task.regions.kind = store: task.model.encoder is a new one"),
    ):
        with pytest.raises(UserError, match=message):
            LstmCaptioningTraining.model_validate(fine | changes).check()
    with pytest.raises(ValueError, match="regions.kind .store.: .*set freeze_encoder: true"):
        LstmCaptioningTraining.model_validate(fine | {"freeze_encoder": False})


def test_an_extraction_of_regions_says_what_does_not_fit(
    tiny_rows: str, tiny_blip: str, captioner: str, tmp_path: Path
) -> None:
    for settings, message in (
        ({"model": tiny_blip}, "model = .*holds a blip, not a ResNet"),
        ({"model": captioner, "grid": 3}, "regions.grid = 3: .*an LSTM captioner, which has its own"),
    ):
        model = str(settings.pop("model"))
        with pytest.raises(UserError, match=message):
            extract(extraction(tiny_rows, model, tmp_path / "out", **settings))
    with pytest.raises(ValueError, match="regions: of no use with embeddings .image."):
        ExtractConfig.model_validate({"rows": "r", "model": "m", "output": "o", "regions": {}})
