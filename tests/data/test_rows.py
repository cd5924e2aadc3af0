import pyarrow as pa
import pytest

from raycap.data import rows as rows_module
from raycap.data.rows import CHUNK_ROWS, SCHEMA, describe_file, open_rows, read_chunk, write_manifest, write_rows
from raycap.errors import UserError


def table(num_rows, split):
    columns = {
        "image_id": [f"{split}-{index}.jpg" for index in range(num_rows)],
        "image_bytes": [bytes([index % 256]) * 10 for index in range(num_rows)],
        "width": [4] * num_rows,
        "height": [3] * num_rows,
        "captions": [["a dog", f"dog {index}"] for index in range(num_rows)],
        "split": [split] * num_rows,
    }
    return pa.table(columns, schema=SCHEMA)


@pytest.fixture
def uri(tmp_path):
    uri = str(tmp_path)
    files = [
        write_rows(uri, f"{split}-00000.parquet", table(num_rows, split))
        for split, num_rows in (("train", CHUNK_ROWS + 6), ("dev", 3))
    ]
    write_manifest(uri, files)
    return uri


def test_rows_come_back_as_they_were_written(uri):
    rows = open_rows(uri)
    read = pa.concat_tables([read_chunk(chunk) for chunk in rows.chunks("train")])
    assert read.equals(table(CHUNK_ROWS + 6, "train"))


def test_chunks_hold_at_most_chunk_rows_and_cover_the_split(uri):
    rows = open_rows(uri)
    assert [chunk.num_rows for chunk in rows.chunks("train")] == [CHUNK_ROWS, 6]
    assert (rows.num_rows("train"), rows.num_rows("dev")) == (CHUNK_ROWS + 6, 3)
    assert rows.splits == ["dev", "train"]


def test_only_the_named_columns_are_read(uri):
    chunk = open_rows(uri).chunks("dev")[0]
    assert read_chunk(chunk, ["image_id", "captions"]).column_names == ["image_id", "captions"]


def test_a_split_that_is_not_there_is_refused_with_those_that_are(uri):
    with pytest.raises(UserError, match=r"split = 'test'.*dev, train"):
        open_rows(uri).chunks("test")


def test_a_directory_without_a_manifest_is_not_rows_and_the_error_names_the_field(tmp_path):
    write_rows(str(tmp_path), "train-00000.parquet", table(2, "train"))
    with pytest.raises(UserError, match=r"train\.rows = .*manifest\.json"):
        open_rows(str(tmp_path), field="train.rows")


def test_a_file_describes_itself_as_the_manifest_does(uri):
    assert describe_file(uri, "train-00000.parquet") == open_rows(uri).files[0]


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def full_disk(file_descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(rows_module.storage.os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_rows(str(tmp_path), "train-00000.parquet", table(2, "train"))
    assert list(tmp_path.iterdir()) == []
