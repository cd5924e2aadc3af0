"""The feature store: what is written comes back, and only a finished store of the right encoder opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raycap.data.features import (
    FeatureFile,
    claim_store,
    feature_file_name,
    finish_store,
    open_store,
    read_features,
    read_image_ids,
    read_summary,
    write_features,
)
from raycap.data.rows import Chunk
from raycap.errors import UserError


def embeddings(num_images: int, seed: int = 0) -> np.ndarray:
    """(num_images, 5, 8) float16 whose dimensions differ in mean and spread."""
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(num_images, 5, 8)) * np.arange(1, 9) + np.arange(8)).astype(np.float16)


def finished_store(uri: Path) -> dict[str, np.ndarray]:
    """A store of two train files and one of test; returns each file's embeddings."""
    arrays = {f"{name}-0000.parquet": embeddings(n, n) for name, n in (("train-0", 4), ("train-1", 3), ("test-0", 2))}
    files = []
    for name, array in arrays.items():
        write_features(str(uri), name, [f"{name}/{i}" for i in range(len(array))], array)
        files.append(FeatureFile(name=name, split=name.partition("-")[0], num_images=len(array)))
    finish_store(str(uri), "blip", "f00d", "fp32", files)
    return arrays


def test_every_bit_of_an_embedding_comes_back(tmp_path):
    arrays = finished_store(tmp_path)
    store = open_store(str(tmp_path))
    chunks = store.chunks("train") + store.chunks("test")
    for chunk, (name, array) in zip(chunks, arrays.items(), strict=True):
        assert chunk.num_rows == len(array)
        assert read_image_ids(chunk) == [f"{name}/{i}" for i in range(len(array))]
        assert read_features(chunk).tobytes() == array.tobytes()
        assert read_features(chunk).shape == array.shape
        assert read_features(chunk).dtype == np.float16


def test_reading_copies_nothing_that_parquet_decoded(tmp_path):
    finished_store(tmp_path)
    assert not read_features(open_store(str(tmp_path)).chunks("test")[0]).flags.owndata


def test_any_parquet_reader_sees_the_tensors_shape(tmp_path):
    finished_store(tmp_path)
    column = pq.read_schema(tmp_path / "test-0-0000.parquet").field("image_embeds")
    assert column.type.extension_name == "arrow.fixed_shape_tensor"
    assert list(column.type.shape) == [5, 8]


def test_mean_and_std_are_those_of_all_train_tokens(tmp_path):
    arrays = finished_store(tmp_path)
    tokens = np.concatenate([arrays["train-0-0000.parquet"], arrays["train-1-0000.parquet"]]).reshape(-1, 8)
    store = open_store(str(tmp_path))
    np.testing.assert_allclose(store.mean, tokens.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(store.std, tokens.astype(np.float64).std(axis=0), rtol=1e-12)


def test_mean_and_std_are_those_of_all_tokens_without_a_train_split(tmp_path):
    array = embeddings(3)
    write_features(str(tmp_path), "test-0.parquet", list("abc"), array)
    file = FeatureFile(name="test-0.parquet", split="test", num_images=3)
    store = finish_store(str(tmp_path), "blip", "f00d", "fp32", [file])
    np.testing.assert_allclose(store.mean, array.astype(np.float64).mean(axis=(0, 1)), rtol=1e-12)


def test_a_dimension_that_never_changes_has_a_std_of_zero(tmp_path):
    array = np.full((3, 5, 8), 0.1, np.float16)
    write_features(str(tmp_path), "train-0.parquet", list("abc"), array)
    file = FeatureFile(name="train-0.parquet", split="train", num_images=3)
    store = finish_store(str(tmp_path), "blip", "f00d", "fp32", [file])
    np.testing.assert_allclose(store.std, 0.0, atol=1e-7)


def test_a_file_knows_what_it_was_made_from(tmp_path):
    write_features(str(tmp_path), "a.parquet", ["a"], embeddings(1), source="rows 7")
    assert read_summary(str(tmp_path / "a.parquet")).source == "rows 7"


def test_chunks_of_one_rows_file_get_different_names():
    names = {feature_file_name(Chunk("/rows/train-00000.parquet", index, 64)) for index in range(3)}
    assert names == {"train-00000-0000.parquet", "train-00000-0001.parquet", "train-00000-0002.parquet"}


def test_splits_and_their_sizes_are_listed(tmp_path):
    finished_store(tmp_path)
    store = open_store(str(tmp_path))
    assert store.splits == ["test", "train"]
    assert store.num_images("train") == 7
    with pytest.raises(UserError, match=r"split = 'val': not in .*; it has test, train"):
        store.chunks("val")


def test_an_unfinished_store_is_refused(tmp_path):
    write_features(str(tmp_path), "train-0.parquet", ["a"], embeddings(1))
    with pytest.raises(UserError, match=r"features = .*no finished feature store .*run jobs/extract\.py"):
        open_store(str(tmp_path))


def test_rows_are_no_feature_store(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": "raycap-rows"}')
    with pytest.raises(UserError, match="holds raycap-rows, not features"):
        open_store(str(tmp_path))


def test_a_store_of_another_encoder_is_refused(tmp_path):
    finished_store(tmp_path)
    assert open_store(str(tmp_path), encoder_fingerprint="f00d").encoder_name == "blip"
    with pytest.raises(UserError, match=r"made by encoder blip \(f00d\), not by the encoder beef"):
        open_store(str(tmp_path), encoder_fingerprint="beef")


def test_an_unfinished_store_belongs_to_the_encoder_that_began_it(tmp_path):
    claim_store(str(tmp_path), "blip", "f00d", "fp32")
    claim_store(str(tmp_path), "blip elsewhere", "f00d", "fp32")
    with pytest.raises(UserError, match=r"output = .* of encoder blip \(f00d\), not of other \(beef\)"):
        claim_store(str(tmp_path), "other", "beef", "fp32")
    with pytest.raises(UserError, match=r"precision = bf16: .* computed in fp32"):
        claim_store(str(tmp_path), "blip", "f00d", "bf16")


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_features(str(tmp_path), "train-0.parquet", ["a"], embeddings(1))
    assert list(tmp_path.iterdir()) == []
