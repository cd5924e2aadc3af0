import csv
import io
import json
import subprocess
import sys

import pyarrow as pa
import pytest
from PIL import Image

from raycap.batch import ingest as ingest_module
from raycap.batch.ingest import IngestConfig, ingest
from raycap.batch.ingest_shard import write_shard
from raycap.data.rows import open_rows, read_chunk
from raycap.errors import UserError

NUM_IMAGES = 12


def jpeg(width=40, height=20):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def raw(tmp_path):
    """Flickr8k's format: eight good images to train, two good for dev, one broken and one huge."""
    raw = tmp_path / "raw"
    (raw / "images").mkdir(parents=True)
    names = [f"{index:02d}.jpg" for index in range(NUM_IMAGES)]
    for name in names:
        (raw / "images" / name).write_bytes(jpeg())
    (raw / "images" / names[0]).write_bytes(jpeg()[:200])
    (raw / "images" / names[1]).write_bytes(jpeg(400, 300))
    (raw / "Flickr8k.token.txt").write_text("".join(f"{name}#{n}\tA dog {n} .\n" for name in names for n in range(5)))
    (raw / "Flickr_8k.trainImages.txt").write_text("\n".join(names[:10]))
    (raw / "Flickr_8k.devImages.txt").write_text("\n".join(names[10:]))
    return raw


@pytest.fixture
def config(raw, tmp_path):
    values = {
        "source": {"kind": "flickr8k", "path": str(raw)},
        "output": str(tmp_path / "rows"),
        "shard_rows": 3,
        "max_pixels": 100_000,
    }
    return IngestConfig.model_validate(values)


class InProcess:
    """Stands in for Ray Data: one shard after the other in this process."""

    def __init__(self, items):
        self.items, self.task = items, None

    def map(self, task, num_cpus):
        self.task = task
        return self

    def iter_rows(self):
        return map(self.task, self.items)


@pytest.fixture
def tasks(monkeypatch):
    """Runs the tasks in process; the list says which shards were written."""
    written = []

    def from_items(items, override_num_blocks):
        return InProcess(items)

    def recorded(row, **options):
        report = write_shard(row, **options)
        written.append(row["name"])
        return report

    monkeypatch.setattr(ingest_module, "connect", lambda: None)
    monkeypatch.setattr(ingest_module.ray.data, "from_items", from_items)
    monkeypatch.setattr(ingest_module, "write_shard", recorded)
    return written


def read_all(uri, split):
    rows = open_rows(uri)
    return pa.concat_tables([read_chunk(chunk) for chunk in rows.chunks(split)]).to_pylist()


def check_rows(config, raw, metrics):
    assert metrics["images_found"] == NUM_IMAGES
    assert (metrics["images_kept"], metrics["captions"], metrics["splits"]) == (10, 50, {"dev": 2, "train": 8})
    assert metrics["left_out"] == {
        "oversized": {"count": 1, "names": ["01.jpg"]},
        "undecodable": {"count": 1, "names": ["00.jpg"]},
    }
    rows = {row["image_id"]: row for split in ("train", "dev") for row in read_all(config.output, split)}
    assert sorted(rows) == [f"{index:02d}.jpg" for index in range(2, NUM_IMAGES)]
    for name, row in rows.items():
        assert row["image_bytes"] == (raw / "images" / name).read_bytes()
        assert (row["width"], row["height"]) == (40, 20)
        assert row["captions"] == [f"A dog {n} ." for n in range(5)]
    with open(f"{config.output}/left_out.csv", newline="") as file:
        items = list(csv.DictReader(file))
    assert [(item["reason"], item["name"]) for item in items] == [("oversized", "01.jpg"), ("undecodable", "00.jpg")]


def test_rows_hold_the_files_as_they_were_and_what_is_left_out_is_named(config, raw, tasks):
    check_rows(config, raw, json.loads(json.dumps(ingest(config))))


def test_a_finished_output_gives_the_same_metrics_without_work(config, tasks):
    metrics = ingest(config)
    tasks.clear()
    assert ingest(config) == metrics
    assert tasks == []


def stop_after(monkeypatch, num_shards):
    """The next run is cut off when so many shards are written."""
    whole = ingest_module.write_shard
    done = []

    def cut_off(row, **options):
        if len(done) == num_shards:
            raise KeyboardInterrupt
        done.append(row["name"])
        return whole(row, **options)

    monkeypatch.setattr(ingest_module, "write_shard", cut_off)
    return whole


def run_cut_off(config, monkeypatch, num_shards):
    whole = stop_after(monkeypatch, num_shards)
    with pytest.raises(KeyboardInterrupt):
        ingest(config)
    monkeypatch.setattr(ingest_module, "write_shard", whole)


def test_a_run_that_was_cut_off_continues_where_it_stopped(config, raw, tasks, monkeypatch):
    run_cut_off(config, monkeypatch, num_shards=2)
    with pytest.raises(UserError, match="no finished rows"):
        open_rows(config.output)
    first = list(tasks)
    tasks.clear()
    check_rows(config, raw, ingest(config))
    assert len(first) == 2
    assert len(tasks) == 3
    assert not set(first) & set(tasks)


def test_a_continued_run_writes_what_changed_in_the_raw_data_anew(config, raw, tasks, monkeypatch):
    run_cut_off(config, monkeypatch, num_shards=4)
    for index in range(4, 10):
        (raw / "images" / f"{index:02d}.jpg").unlink()
    metrics = ingest(config)
    assert metrics["splits"] == {"dev": 2, "train": 2}
    assert metrics["left_out"]["missing_image"]["count"] == 6
    names = {row["image_id"] for row in read_all(config.output, "train")}
    assert names == {"02.jpg", "03.jpg"}
    on_disk = {path.name for path in (raw.parent / "rows").glob("*.parquet")}
    assert on_disk == {file.name for file in open_rows(config.output).files}


@pytest.mark.parametrize("num_shards", [2, None])
def test_another_configuration_never_mixes_with_rows_already_there(config, tasks, monkeypatch, num_shards):
    if num_shards is None:
        ingest(config)
    else:
        run_cut_off(config, monkeypatch, num_shards)
    other = config.model_copy(update={"shard_rows": 4})
    with pytest.raises(UserError, match=r"output = .*shard_rows is 3 there, 4 here.*overwrite=true"):
        ingest(other)


def test_overwrite_deletes_the_rows_there_and_nothing_else(config, raw, tasks):
    ingest(config)
    note = raw.parent / "rows" / "my notes.txt"
    note.write_text("keep me")
    metrics = ingest(config.model_copy(update={"shard_rows": 100, "overwrite": True}))
    assert metrics["images_kept"] == 10
    assert {path.name for path in (raw.parent / "rows").iterdir()} == {
        "dev-00000.parquet", "ingest.json", "left_out.csv", "manifest.json", "my notes.txt", "train-00000.parquet"
    }  # fmt: skip


def test_a_wrong_source_can_be_mended_and_run_again(config, raw, tasks):
    wrong = config.model_copy(update={"source": config.source.model_copy(update={"captions": "nothing.txt"})})
    with pytest.raises(UserError, match=r"source\.captions"):
        ingest(wrong)
    check_rows(config, raw, ingest(config))


def test_an_empty_folder_has_no_images(config, raw, tasks):
    for path in (raw / "images").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"source\.path = .*: no images found; left out: missing_image: 12"):
        ingest(config)


def test_only_broken_images_are_no_images_and_mending_them_is_enough(config, raw, tasks):
    whole = {path: path.read_bytes() for path in (raw / "images").iterdir()}
    for path, data in whole.items():
        path.write_bytes(b"x" * len(data))
    with pytest.raises(UserError, match=r"none of the 12 images found could be kept; left out: undecodable: 12"):
        ingest(config)
    assert (raw.parent / "rows" / "left_out.csv").exists()
    for path, data in whole.items():
        path.write_bytes(data)
    check_rows(config, raw, ingest(config))


def test_an_output_that_cannot_be_written_is_refused(config, raw, tasks):
    file = raw / "Flickr8k.token.txt"
    with pytest.raises(UserError, match=r"output = .*choose another output"):
        ingest(config.model_copy(update={"output": f"{file}/rows"}))


def test_larger_images_are_stored_with_the_asked_edge_and_smaller_ones_as_they_are(config, raw, tasks):
    metrics = ingest(config.model_copy(update={"resize_longest_edge": 100, "max_pixels": 1_000_000}))
    assert metrics["images_kept"] == 11
    rows = {row["image_id"]: row for row in read_all(config.output, "train")}
    assert (rows["01.jpg"]["width"], rows["01.jpg"]["height"]) == (100, 75)
    assert Image.open(io.BytesIO(rows["01.jpg"]["image_bytes"])).size == (100, 75)
    assert rows["02.jpg"]["image_bytes"] == jpeg()


@pytest.mark.integration
def test_the_job_runs_on_ray_and_prints_its_metrics_last(config, raw, tmp_path):
    file = tmp_path / "ingest.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json")))
    command = [sys.executable, "jobs/ingest.py", "--config", str(file)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    metrics = json.loads(run.stdout.splitlines()[-1])
    check_rows(config, raw, metrics)
    assert json.loads((tmp_path / "rows" / "metrics.json").read_text()) == metrics
    assert "images/s" in run.stderr

    wrong = subprocess.run(
        [*command, "source.path=/nowhere", f"output={tmp_path}/other"], capture_output=True, text=True, timeout=60
    )
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: source.images = /nowhere/images: no such folder")
