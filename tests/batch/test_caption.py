"""Captioning folders and rows: every image once, what is no image named, and a run that was killed goes on."""

from __future__ import annotations

import csv
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from tiny import make_lstm_captioner, png

from raycap.batch import caption as caption_module
from raycap.batch.caption import CaptionConfig, caption
from raycap.data.images import decode_image
from raycap.data.rows import open_rows, read_chunk
from raycap.errors import UserError
from raycap.job import run_job
from raycap.models.decoding import Decoding
from raycap.models.refinement import Refinement
from raycap.predictor import CaptionPredictor

NUM_IMAGES = 160  # of the run that is killed among them
BEAMS = Decoding(max_new_tokens=6, num_beams=3)


def save_images(folder: Path, count: int) -> str:
    """Images in subfolders, a file that is no image by its name and one by its content."""
    for index in range(count):
        path = folder / f"{index % 3}" / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(index, 24))
    (folder / "notes.txt").write_text("no image")
    (folder / "1" / "broken.JPG").write_bytes(b"no image")
    return str(folder)


@pytest.fixture
def config(tiny_lstm: str, tmp_path: Path) -> CaptionConfig:
    return CaptionConfig(
        images=save_images(tmp_path / "images", 20), model=tiny_lstm, output=str(tmp_path / "out"), decoding=BEAMS,
        num_captions=2, shard_images=8, batch_size=3, precision="fp32",
    )  # fmt: skip


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs both stages in this process; the list says which shards were captioned."""
    made: list[str] = []

    def run_pool(config: Any, items: Any, read: Any, worker: Any, worker_kwargs: Any, item_bytes: int) -> Iterator[Any]:
        actor = worker(**worker_kwargs, torch_threads=1)
        for item in items:
            for row in read(item):
                result = actor(row)
                made.append(result["name"])
                yield result

    monkeypatch.setattr(caption_module, "run_pool", run_pool)
    monkeypatch.setattr(caption_module, "require_room", lambda config: None)
    return made


def read_output(output: str) -> dict[str, list[tuple[str, float]]]:
    """Captions by path, in their ranks."""
    found: dict[str, list[tuple[str, float]]] = {}
    for file in sorted(Path(output).glob("captions-*.parquet")):
        for row in pq.read_table(file).to_pylist():
            captions = found.setdefault(row["path"], [])
            assert row["rank"] == len(captions)
            captions.append((row["caption"], row["log_probability"]))
    return found


def assert_complete(config: CaptionConfig) -> None:
    """Every image once, with the predictor's captions of it alone; the others are named with their reasons."""
    assert config.images is not None
    predictor = CaptionPredictor.from_pretrained(config.model, config.rbm)
    found = read_output(config.output)
    paths = sorted(str(path) for path in Path(config.images).rglob("*.png"))
    assert sorted(found) == paths
    for path in paths:
        image = decode_image(Path(path).read_bytes())
        (expected,) = predictor.write([image], config.decoding, config.refinement, config.num_captions)
        assert [text for text, _ in found[path]] == [of.text for of in expected]
        assert [value for _, value in found[path]] == pytest.approx([of.log_probability for of in expected], abs=1e-4)
    with Path(config.output, "left_out.csv").open() as file:
        left_out = [row[:2] for row in csv.reader(file)][1:]
    folder = Path(config.images)
    assert left_out == [["not_an_image", f"{folder}/notes.txt"], ["undecodable", f"{folder}/1/broken.JPG"]]
    assert not list(Path(config.output).rglob("*.partial"))


def modified(config: CaptionConfig) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(config.output).glob("*.parquet")}


def test_every_image_of_a_folder_is_captioned_once_and_others_are_named(config: CaptionConfig, pool: list[str]) -> None:
    metrics = caption(config)
    assert_complete(config)
    assert (metrics["images"], metrics["captions"], metrics["files"]) == (20, 40, 3)
    assert {reason: of["count"] for reason, of in metrics["left_out"].items()} == {"not_an_image": 1, "undecodable": 1}


def test_blip_with_its_rbm_is_asked_as_by_the_predictor(
    config: CaptionConfig, pool: list[str], tiny_blip: str, tiny_rbm: str, tmp_path: Path
) -> None:
    changes = {"model": tiny_blip, "rbm": tiny_rbm, "refinement": Refinement(gate=0.75)}
    refined = config.model_copy(update=changes)
    caption(refined)
    assert_complete(refined)
    plain = config.model_copy(update={"model": tiny_blip, "output": str(tmp_path / "plain")})
    caption(plain)
    assert read_output(plain.output) != read_output(refined.output), "the case shows nothing"


def test_started_again_it_captions_only_what_is_missing_or_new(config: CaptionConfig, pool: list[str]) -> None:
    caption(config)
    before = modified(config)
    pool.clear()
    assert caption(config)["images_captioned_now"] == 0
    assert pool == []
    assert modified(config) == before
    Path(config.output, "captions-00001.parquet").unlink()
    assert caption(config)["images_captioned_now"] == 7  # the eighth is no image
    assert pool == ["captions-00001"]
    assert_complete(config)
    assert config.images is not None
    Path(config.images, "2", "zz.png").write_bytes(png(99, 24))
    pool.clear()
    assert caption(config)["images"] == 21
    assert pool == ["captions-00002"]
    assert_complete(config)
    shutil.rmtree(Path(config.images, "2"))
    Path(config.images, "2").mkdir()
    # As of a run that was killed between a shard's captions and its report.
    Path(config.output, "_index", "captions-00002.done").unlink()
    assert caption(config)["files"] == 2
    assert_complete(config)


def test_a_file_whose_name_is_no_text_is_named_and_left_out(config: CaptionConfig, pool: list[str]) -> None:
    assert config.images is not None
    for name in (b"caf\xe9.png", b"caf\xe9.txt"):
        Path(config.images, os.fsdecode(name)).write_bytes(png(1, 24))
    metrics = caption(config)
    assert metrics["images"] == 20
    assert metrics["left_out"]["unreadable"]["count"] == 2
    assert "caf\\udce9.png" in Path(config.output, "left_out.csv").read_text()


def test_a_model_that_is_replaced_meanwhile_is_refused(
    config: CaptionConfig, pool: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(caption_module, "_check_model", lambda config: caption_module._Model(32, {"model": "another"}))
    with pytest.raises(ValueError, match="model = .*: not the models that the job began with"):
        caption(config)


def test_the_rows_of_an_ingest_are_captioned_by_their_ids(
    config: CaptionConfig, pool: list[str], tiny_rows: str
) -> None:
    of_rows = config.model_copy(update={"images": None, "rows": tiny_rows, "split": "dev", "num_captions": 1})
    assert caption(of_rows)["images"] == 40
    table = read_chunk(open_rows(tiny_rows).chunks("dev")[0]).to_pylist()
    images = [decode_image(row["image_bytes"]) for row in table]
    written = CaptionPredictor.from_pretrained(config.model).write(images, BEAMS)
    expected = {row["image_id"]: best.text for row, (best,) in zip(table, written, strict=True)}
    assert {path: text for path, ((text, _),) in read_output(of_rows.output).items()} == expected


def test_captions_of_other_settings_or_of_another_model_are_not_mixed(
    config: CaptionConfig, pool: list[str], tmp_path: Path
) -> None:
    caption(config)
    before = modified(config)
    other = make_lstm_captioner(tmp_path / "other", seed=1)
    for changes, message in (
        ({"decoding": BEAMS.model_copy(update={"num_beams": 4})}, "decoding.num_beams is 3 there, 4 here"),
        ({"model": other}, "model_fingerprint is '.*' there, '.*' here"),
    ):
        with pytest.raises(UserError, match=f"output = .*: holds a run with other settings .{message}"):
            caption(config.model_copy(update=changes))
    assert modified(config) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "/nowhere"}, "images = /nowhere: no such folder"),
        ({"images": None, "rows": "/nowhere"}, "rows = /nowhere: no finished rows"),
        ({"model": "/nowhere"}, "model = /nowhere: no such directory"),
        ({"decoding": Decoding(prompt="a")}, "decoding.prompt = 'a': an LSTM captioner continues no text"),
        ({"output": "/proc/captions"}, "output = /proc/captions: cannot be written"),
    ],
)
def test_wrong_input_is_named(config: CaptionConfig, pool: list[str], change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        caption(config.model_copy(update=change))
    assert pool == []


def test_an_output_among_the_images_and_a_folder_without_images_are_refused(
    config: CaptionConfig, pool: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"output = .*: lies within images = .*; choose a place beside it"):
        caption(config.model_copy(update={"output": f"{config.images}/captions"}))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    with pytest.raises(UserError, match=r"images = .*: no image among its 1 files"):
        caption(config.model_copy(update={"images": str(tmp_path / "texts")}))
    assert not Path(config.output).exists() or not modified(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"images .* or rows .*: give one of them"),
        ({"images": "a", "rows": "b"}, r"images .* or rows .*: give one of them"),
        ({"images": "a", "split": "dev"}, "split .* is of rows"),
        ({"images": "a", "num_captions": 2}, "num_captions .* must be at most decoding.num_beams"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptionConfig.model_validate({"model": "m", "output": "o"} | values)


def kill_the_worker(output: Path, killed: list[int]) -> None:
    """SIGKILL to the actor once the first shard is done."""
    while not list(output.glob("_index/*.done")):
        time.sleep(0.005)
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("ray::MapWorker"):
            process.kill()
            killed.append(process.pid)


@pytest.mark.integration
def test_a_run_that_was_killed_goes_on_and_captions_nothing_twice(
    config: CaptionConfig, ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_images(tmp_path / "images", NUM_IMAGES)
    slow = Decoding(max_new_tokens=40, num_beams=8)
    changes = {"decoding": slow, "batch_size": 1, "torch_threads": 1, "max_failures": 0}
    config = config.model_copy(update=changes)
    killed: list[int] = []
    killer = threading.Thread(target=kill_the_worker, args=(Path(config.output), killed), daemon=True)
    killer.start()
    with pytest.raises(UserError, match=r"max_failures = 0: a worker died more often .*run the job again to continue"):
        caption(config)
    killer.join(60)
    assert len(killed) == 1
    done = {f"{path.stem}.parquet" for path in Path(config.output).glob("_index/*.done")}
    before = modified(config)
    assert 0 < len(done) < NUM_IMAGES // 8

    file = tmp_path / "caption.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run_job(CaptionConfig, caption, ["--config", str(file), "max_failures=3"])
    printed = capsys.readouterr()
    metrics = json.loads(printed.out.splitlines()[-1])
    assert metrics == json.loads(Path(config.output, "metrics.json").read_text())
    assert metrics["images"] == NUM_IMAGES
    num_done = sum(len(set(pq.read_table(Path(config.output, name))["path"].to_pylist())) for name in done)
    assert metrics["images_captioned_now"] == NUM_IMAGES - num_done
    assert f"caption: {NUM_IMAGES + 1}/{NUM_IMAGES + 1} images (100%)" in printed.err
    after = modified(config)
    assert {name: after[name] for name in done} == {name: before[name] for name in done}
    assert_complete(config)
