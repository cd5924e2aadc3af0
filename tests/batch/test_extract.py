"""Extraction: the store holds what the encoder gives, a run does only what is missing, a kill loses nothing."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image

from raycap.batch import extract as extract_module
from raycap.batch.extract import ExtractConfig, extract
from raycap.checkpoint.identity import pair_id
from raycap.checkpoint.pretrained import load_blip, save_blip
from raycap.data.features import open_store, read_features, read_image_ids
from raycap.data.images import decode_image, resize_image
from raycap.data.rows import SCHEMA, open_rows, read_chunk, write_manifest, write_rows
from raycap.data.text import train_wordpiece
from raycap.errors import UserError
from raycap.hardware import Precision
from raycap.models.blip import BlipShape, build_blip
from raycap.predictor import DecoderStage, EncoderStage

SHAPE = BlipShape(image_size=32, embed_dim=32, num_heads=2, num_vision_layers=2, num_text_layers=1)


def save_model(directory: Path, seed: int, shape: BlipShape = SHAPE) -> str:
    torch.manual_seed(seed)
    save_blip(directory, *build_blip(shape, train_wordpiece(["a dog runs", "a cat sits"] * 5, 100)))
    return str(directory)


def save_rows(directory: Path, files: dict[str, int], seed: int = 0) -> str:
    """Rows of noise: ``files`` gives the images of each file, whose split stands before the dash."""
    generator = np.random.default_rng(seed)
    written = []
    for name, count in files.items():
        table: dict[str, list] = {field: [] for field in SCHEMA.names}
        for index in range(count):
            buffer = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (20, 30, 3), np.uint8)).save(buffer, "JPEG")
            captions = ["a dog runs", "a cat sits on a dog"][: 1 + index % 2]
            row = (f"{name}/{index}", buffer.getvalue(), 30, 20, captions, name.partition("-")[0])
            for column, value in zip(table.values(), row, strict=True):
                column.append(value)
        written.append(write_rows(str(directory), f"{name}.parquet", pa.table(table, schema=SCHEMA)))
    write_manifest(str(directory), written)
    return str(directory)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "blip", 0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> str:
    """Two chunks and a small one to train, one chunk for each of the others."""
    return save_rows(tmp_path_factory.mktemp("data") / "rows", {"train-0": 70, "train-1": 5, "dev-0": 6, "test-0": 3})


@pytest.fixture
def config(rows, model, tmp_path) -> ExtractConfig:
    return ExtractConfig(rows=rows, model=model, output=str(tmp_path / "store"), precision=Precision.FP32)


@pytest.fixture
def pool(monkeypatch) -> list[str]:
    """Runs both stages in this process; the list says which files were made."""
    made: list[str] = []

    def run_pool(config, items, read, worker, worker_kwargs, item_bytes, concurrent_calls) -> Iterator[dict]:
        actor = worker(**worker_kwargs, torch_threads=1)
        for item in items:
            made.append(item["name"])
            for row in read(item):
                report = actor(row)
                if report["error"]:
                    raise UserError(report["error"])
                yield report

    monkeypatch.setattr(extract_module, "run_pool", run_pool)
    monkeypatch.setattr(extract_module, "require_room", lambda config: None)
    return made


def assert_complete(config: ExtractConfig) -> None:
    """The store holds every image once, in the rows' order, as the encoder itself gives it; nothing else is there."""
    store, rows = open_store(config.output), open_rows(config.rows)
    stage = EncoderStage.from_pretrained(config.model, config.precision)
    assert store.encoder_fingerprint == stage.id.fingerprint
    for split in store.splits:
        for chunk, embedded in zip(rows.chunks(split), store.chunks(split), strict=True):
            table = read_chunk(chunk)
            assert read_image_ids(embedded) == table["image_id"].to_pylist()
            pixels = [resize_image(decode_image(data.as_py()), stage.image_size) for data in table["image_bytes"]]
            expected = stage(np.stack(pixels)).half().numpy()
            np.testing.assert_allclose(read_features(embedded), expected, rtol=2e-3, atol=1e-3)
    names = {file.name for file in store.files} | {"_encoder.json", "manifest.json"}
    assert set(os.listdir(config.output)) == names


def modified(config: ExtractConfig) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(config.output).glob("*.parquet")}


def test_the_store_holds_what_the_encoder_gives(config, pool):
    metrics = extract(config)
    assert (metrics["images"], metrics["images_done_now"], metrics["images_skipped"]) == (84, 84, 0)
    assert metrics["files"] == 5
    assert_complete(config)


def test_bf16_embeddings_are_kept_as_float16(config, pool):
    config = config.model_copy(update={"precision": Precision.BF16, "batch_size": 64})
    extract(config)
    assert open_store(config.output).precision == "bf16"
    assert_complete(config)


def test_mean_and_std_are_numpys_over_the_train_split(config, pool):
    extract(config)
    store = open_store(config.output)
    tokens = np.concatenate([read_features(chunk) for chunk in store.chunks("train")]).reshape(-1, store.embed_dim)
    np.testing.assert_allclose(store.mean, tokens.mean(axis=0, dtype=np.float64), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(store.std, tokens.std(axis=0, dtype=np.float64), rtol=1e-9)


def test_a_second_run_does_nothing(config, pool):
    extract(config)
    pool.clear()
    before = modified(config)
    metrics = extract(config)
    assert pool == []
    assert (metrics["images"], metrics["images_done_now"], metrics["images_skipped"]) == (84, 0, 84)
    assert modified(config) == before


def test_a_lost_file_alone_is_made_again(config, pool):
    extract(config)
    pool.clear()
    manifest = Path(config.output, "manifest.json").read_text()
    before = modified(config)
    Path(config.output, "train-0-0001.parquet").unlink()
    extract(config)
    assert pool == ["train-0-0001.parquet"]
    after = modified(config)
    assert {name for name in after if after[name] != before[name]} == {"train-0-0001.parquet"}
    assert Path(config.output, "manifest.json").read_text() == manifest
    assert_complete(config)


def test_splits_are_added_to_a_store_and_never_taken_away(config, pool):
    dev = config.model_copy(update={"splits": ("dev",)})
    assert extract(dev)["images"] == 6
    assert open_store(config.output).splits == ["dev"]
    test = config.model_copy(update={"splits": ("test",)})
    assert extract(test)["splits"] == ["dev", "test"]
    assert pool == ["dev-0-0000.parquet", "test-0-0000.parquet"]
    assert_complete(config)


def test_files_made_from_rows_that_have_changed_are_made_again(config, pool, tmp_path):
    config = config.model_copy(update={"rows": save_rows(tmp_path / "rows", {"train-0": 4, "train-1": 3})})
    extract(config)
    save_rows(tmp_path / "rows", {"train-0": 4, "train-1": 3}, seed=1)
    assert extract(config)["images_done_now"] == 7
    assert_complete(config)


def test_another_encoder_is_refused_by_a_finished_and_by_an_unfinished_store(config, pool, tmp_path):
    extract(config)
    other = config.model_copy(update={"model": save_model(tmp_path / "other", 1)})
    before = modified(config)
    for _ in ("finished", "unfinished"):
        with pytest.raises(UserError, match=r"output = .*: holds embeddings of encoder .*blip .*, not of .*other"):
            extract(other)
        Path(config.output, "manifest.json").unlink(missing_ok=True)
    assert modified(config) == before


def test_auto_precision_continues_in_the_stores_own(config, pool):
    extract(config)
    Path(config.output, "dev-0-0000.parquet").unlink()
    assert extract(config.model_copy(update={"precision": Precision.AUTO}))["precision"] == "fp32"
    with pytest.raises(UserError, match=r"precision = bf16: .* computed in fp32"):
        extract(config.model_copy(update={"precision": Precision.BF16}))


def test_an_embedding_beyond_float16_is_an_error_and_not_infinite(config, pool, tmp_path):
    encoder, decoder = build_blip(SHAPE, train_wordpiece(["a dog runs"] * 5, 100))
    torch.nn.init.constant_(encoder.vision_model.post_layernorm.bias, 70_000.0)
    save_blip(tmp_path / "loud", encoder, decoder)
    with pytest.raises(UserError, match=r"embedding of image dev-0/0 is no number or above 65504"):
        extract(config.model_copy(update={"model": str(tmp_path / "loud")}))
    assert modified(config) == {}


def assert_complete_pairs(config: ExtractConfig) -> None:
    """A row for each caption of each image, in the rows' order, as the predictor's stages give it one by one."""
    store, rows = open_store(config.output), open_rows(config.rows)
    encoder, decoder = load_blip(config.model)
    assert store.encoder_fingerprint == pair_id("", encoder, decoder).fingerprint
    assert (store.num_tokens, store.embed_dim) == (1, 64)
    stage, decoder_stage = EncoderStage(encoder, config.model), DecoderStage(decoder)
    for split in store.splits:
        for chunk, embedded in zip(rows.chunks(split), store.chunks(split), strict=True):
            image_ids, expected = [], []
            for row in read_chunk(chunk).to_pylist():
                pixels = resize_image(decode_image(row["image_bytes"]), stage.image_size)
                for caption in row["captions"]:
                    image_ids.append(row["image_id"])
                    expected.append(decoder_stage.embed(stage(pixels[None].copy()), [[caption]]).half().numpy())
            assert read_image_ids(embedded) == image_ids
            np.testing.assert_allclose(read_features(embedded), np.stack(expected), rtol=2e-3, atol=2e-3)


def test_pairs_are_extracted_counted_and_resumed(config, pool):
    pairs = config.model_copy(update={"embeddings": "image_text", "batch_size": 4})
    metrics = extract(pairs)
    assert (metrics["images"], metrics["images_done_now"], metrics["rows_of_store"]) == (84, 84, 84 + 35 + 2 + 3 + 1)
    assert_complete_pairs(pairs)
    pool.clear()
    Path(config.output, "train-0-0001.parquet").unlink()
    metrics = extract(pairs)
    assert pool == ["train-0-0001.parquet"]
    assert (metrics["images_done_now"], metrics["images_skipped"]) == (6, 78)
    assert_complete_pairs(pairs)
    with pytest.raises(UserError, match=r"holds embeddings of encoder .*image and caption.*, not of"):
        extract(config)


def test_captions_that_have_changed_make_their_pairs_anew_but_no_image(config, pool, tmp_path):
    files = {"train-0": 4, "train-1": 3}
    images = config.model_copy(update={"rows": save_rows(tmp_path / "rows", files)})
    pairs = images.model_copy(update={"embeddings": "image_text", "output": str(tmp_path / "pairs")})
    extract(images)
    extract(pairs)
    table = pq.read_table(tmp_path / "rows/train-1.parquet")
    column = pa.array([["a cat sits"]] * 3, SCHEMA.field("captions").type)
    changed = table.set_column(table.schema.get_field_index("captions"), SCHEMA.field("captions"), column)
    write_rows(pairs.rows, "train-1.parquet", changed)
    assert extract(images)["images_done_now"] == 0
    assert extract(pairs)["images_done_now"] == 3
    assert_complete_pairs(pairs)


def test_an_image_without_captions_gives_no_pair_and_is_named(config, pool, tmp_path):
    table = read_chunk(open_rows(config.rows).chunks("dev")[0])
    column = pa.array([["a"], [], ["a"], ["a"], ["a"], ["a"]], SCHEMA.field("captions").type)
    table = table.set_column(table.schema.get_field_index("captions"), SCHEMA.field("captions"), column)
    write_manifest(str(tmp_path / "rows"), [write_rows(str(tmp_path / "rows"), "dev-0.parquet", table)])
    pairs = config.model_copy(update={"embeddings": "image_text", "rows": str(tmp_path / "rows")})
    with pytest.raises(UserError, match=r"image dev-0/1 has no caption; set embeddings: image"):
        extract(pairs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": "/nowhere"}, r"rows = /nowhere: no finished rows"),
        ({"model": "/nowhere"}, r"model = /nowhere: no such directory"),
        ({"splits": ("val",)}, r"splits = 'val': not in .*; it has dev, test, train"),
        ({"output": "/proc/store"}, r"output = /proc/store: cannot be written"),
    ],
)
def test_wrong_input_is_named(config, pool, change, message):
    with pytest.raises(UserError, match=message):
        extract(config.model_copy(update=change))


def test_rows_without_images_are_refused(config, pool, tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        extract(config.model_copy(update={"rows": save_rows(tmp_path / "empty", {})}))


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> ExtractConfig:
    """Enough chunks that a worker can be killed among them."""
    folder = tmp_path_factory.mktemp("big")
    shape = BlipShape(image_size=64, embed_dim=64, num_heads=2, num_vision_layers=6, num_text_layers=1)
    rows = save_rows(folder / "rows", {f"train-{index}": 20 for index in range(12)})
    return ExtractConfig(rows=rows, model=save_model(folder / "blip", 0, shape), output="", precision=Precision.FP32)


def kill_the_worker(output: Path) -> list[int]:
    """SIGKILL to the actor once the first file is there; returns how many there were then."""
    while not list(output.glob("*.parquet")):
        time.sleep(0.005)
    mine = psutil.Process().children(recursive=True)
    actors = [process for process in mine if process.name().startswith("ray::MapWorker")]
    for actor in actors:
        os.kill(actor.pid, signal.SIGKILL)
    return [len(actors), len(list(output.glob("*.parquet")))]


def extract_and_kill(config: ExtractConfig) -> tuple[dict | UserError, list[int]]:
    killed: list[int] = []
    killer = threading.Thread(target=lambda: killed.extend(kill_the_worker(Path(config.output))), daemon=True)
    killer.start()
    try:
        result: dict | UserError = extract(config)
    except UserError as error:
        result = error
    killer.join(60)
    assert killed[0] == 1
    assert killed[1] < 12
    return result, killed


@pytest.mark.integration
def test_a_killed_worker_is_started_again_and_nothing_is_lost(big, ray_cluster, tmp_path):
    config = big.model_copy(update={"output": str(tmp_path / "store")})
    metrics, _ = extract_and_kill(config)
    assert isinstance(metrics, dict)
    assert metrics["images_done_now"] == 240
    assert_complete(config)


@pytest.mark.integration
def test_a_run_continues_where_one_that_failed_has_stopped(big, ray_cluster, tmp_path):
    config = big.model_copy(update={"output": str(tmp_path / "store"), "max_failures": 0})
    error, _ = extract_and_kill(config)
    assert isinstance(error, UserError)
    assert "max_failures = 0: a worker died more often" in str(error)
    with pytest.raises(UserError, match="no finished feature store"):
        open_store(config.output)
    before = modified(config)
    metrics = extract(config)
    assert metrics["images_skipped"] == 20 * len(before) > 0
    after = modified(config)
    assert {name: after[name] for name in before} == before
    assert_complete(config)


@pytest.mark.integration
def test_too_many_workers_and_a_missing_gpu_are_refused_and_nothing_is_written(config, ray_cluster):
    with pytest.raises(UserError, match=r"num_workers = 999: .* CPUs of one node"):
        extract(config.model_copy(update={"num_workers": 999}))
    if not ray.cluster_resources().get("GPU"):
        with pytest.raises(UserError, match=r"use_gpu = true: the cluster has no GPU"):
            extract(config.model_copy(update={"use_gpu": True}))
    assert not Path(config.output).exists()


@pytest.mark.integration
def test_the_job_prints_its_metrics_last(config, tmp_path):
    file = tmp_path / "extract.yaml"
    file.write_text(config.model_dump_json())
    command = [sys.executable, "jobs/extract.py", "--config", str(file), "num_workers=2"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    metrics = json.loads(run.stdout.splitlines()[-1])
    assert metrics == json.loads(Path(config.output, "metrics.json").read_text())
    assert metrics["images_done_now"] == 84
    assert "extract: 84/84 images (100%)" in run.stderr
    Path(config.output, "metrics.json").unlink()
    assert_complete(config)
