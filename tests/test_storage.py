"""Storage: files whole or not at all, the same door for local paths and s3://."""

from __future__ import annotations

import csv
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycap import storage
from raycap.errors import UserError


@pytest.fixture
def fresh_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """S3 as a process finds it that has not turned to it yet."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    storage._s3.cache_clear()
    yield
    storage._s3.cache_clear()


def test_a_failed_write_leaves_the_old_file_and_no_partial(tmp_path: Path) -> None:
    target = tmp_path / "file"
    storage.write_bytes(str(target), b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(str(target), "text, not bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_table_is_read_back_by_csv_as_it_was_and_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    rows = [['a, "b"', "two\nlines"], ["", "häuser"]]
    storage.write_csv(str(tmp_path / "t.csv"), ["x", "y"], iter(rows))
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["x", "y"], *rows]

    def failing() -> Iterator[list[str]]:
        yield ["1", "2"]
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="gone"):
        storage.write_csv(str(tmp_path / "t.csv"), ["x", "y"], failing())
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 4


def test_listing_leaves_out_partial_files(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a" / "b.txt"), b"123")
    (tmp_path / ".c.txt.0.partial").write_bytes(b"1")
    assert list(storage.list_files(str(tmp_path))) == [storage.FileEntry("a/b.txt", 3)]


def test_listing_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(storage.list_files(str(tmp_path / "none")))


def test_uploading_replaces_a_directory_as_a_whole(tmp_path: Path) -> None:
    old, new, target = tmp_path / "old", tmp_path / "new", str(tmp_path / "target")
    storage.write_bytes(str(old / "config.json"), b"1")
    storage.write_bytes(str(old / "only-old"), b"1")
    storage.write_bytes(str(new / "config.json"), b"2")
    storage.upload_directory(old, target, last="config.json")
    storage.upload_directory(new, target, last="config.json")
    assert list(storage.list_files(target)) == [storage.FileEntry("config.json", 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "target"]


def test_an_unknown_scheme_is_refused() -> None:
    for function in (storage.absolute, storage.resolve):
        with pytest.raises(UserError, match="gs://bucket/x: unknown scheme; give a local path or s3://"):
            function("gs://bucket/x")


def test_an_endpoint_that_refuses_or_is_none_is_told_at_once_for_whatever_is_done(
    monkeypatch: pytest.MonkeyPatch, fresh_s3: None
) -> None:
    monkeypatch.setattr(storage, "_S3_FIRST_ANSWER_SECONDS", 0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        for function in (storage.exists, storage.read_bytes, storage.delete):
            with pytest.raises(
                UserError, match=f"^AWS_ENDPOINT_URL = {endpoint}: no storage answers there .*; start it"
            ):
                function("s3://bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "localhost:9000")
    with pytest.raises(UserError, match="^AWS_ENDPOINT_URL_S3 = localhost:9000: .*; give http://HOST:PORT"):
        storage.exists("s3://bucket/x")


def test_an_endpoint_that_is_a_moment_late_is_waited_for(monkeypatch: pytest.MonkeyPatch, fresh_s3: None) -> None:
    with socket.socket() as late:
        late.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{late.getsockname()[1]}")
        timer = threading.Timer(0.5, late.listen)
        timer.start()
        assert storage.resolve("s3://bucket/x")[1] == "bucket/x"
        timer.join()


def test_deleting_nothing_is_no_error(tmp_path: Path) -> None:
    storage.delete(str(tmp_path / "none"))


def test_what_a_killed_writer_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "below" / "whole.bin"), b"whole")
    (tmp_path / "below" / ".cut.bin.0123.partial").write_bytes(b"cu")
    storage.delete_partials(str(tmp_path))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["whole.bin"]
