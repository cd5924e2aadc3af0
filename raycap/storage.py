"""One door to local paths and s3:// URIs: every file raycap reads or writes goes through here.

S3 is configured by the environment as every AWS client does it (``AWS_ENDPOINT_URL``,
``AWS_DEFAULT_REGION``, keys). Retries span a storage outage of about a minute; an endpoint at which
nobody answers a process that first turns to it is a user's error after a few seconds.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

import pyarrow as pa
from pyarrow import fs

from raycap.errors import UserError

_S3_MAX_ATTEMPTS = 12  # exponential, up to 20 s between two tries
_S3_FIRST_ANSWER_SECONDS = 10.0
_PORTS = {"http": 80, "https": 443}


class FileEntry(NamedTuple):
    """A file of a listing: its path below the listed directory, and its size in bytes."""

    name: str
    num_bytes: int


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/") or "/", *parts])


def absolute(uri: str) -> str:
    """The same place from any working directory; Ray's workers have another one than the driver.

    Raises:
        UserError: a scheme other than s3.
    """
    if is_s3(uri):
        return uri
    if "://" in uri:
        raise UserError(f"{uri}: unknown scheme; give a local path or s3://bucket/prefix")
    return str(Path(uri).expanduser().absolute())


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow file system of a path or s3:// URI, and the path within it."""
    if is_s3(uri):
        return _s3(), uri.removeprefix("s3://").rstrip("/")
    return fs.LocalFileSystem(), absolute(uri)


@cache
def _s3() -> fs.S3FileSystem:
    variable = "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    options: dict[str, Any] = {}
    if endpoint := os.environ.get(variable):
        parsed = urlsplit(endpoint)
        _await_answer(variable, parsed)
        options = {"endpoint_override": parsed.netloc, "scheme": parsed.scheme}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region:
        options["region"] = region
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=_S3_MAX_ATTEMPTS)
    return fs.S3FileSystem(retry_strategy=retries, connect_timeout=5, request_timeout=30, **options)


def _await_answer(variable: str, endpoint: SplitResult) -> None:
    """See that somebody is there: the retries of a request would keep a wrong address secret for minutes.

    Raises:
        UserError: no address, or nobody answers there.
    """
    setting = f"{variable} = {endpoint.geturl()}"
    if endpoint.scheme not in _PORTS or not endpoint.hostname:
        raise UserError(f"{setting}: not an address of a server; give http://HOST:PORT")
    deadline = time.monotonic() + _S3_FIRST_ANSWER_SECONDS
    while True:
        try:
            socket.create_connection((endpoint.hostname, endpoint.port or _PORTS[endpoint.scheme]), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{setting}: no storage answers there ({error}); start it or give its address"
                ) from None
        time.sleep(1)


def exists(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def is_directory(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return filesystem.get_file_info(path).type == fs.FileType.Directory


def make_directory(uri: str) -> None:
    """Create a local directory with its parents; on S3 prefixes need no creation."""
    if not is_s3(uri):
        Path(absolute(uri)).mkdir(parents=True, exist_ok=True)


def open_input(uri: str) -> pa.NativeFile:
    """A seekable binary file to read.

    Raises:
        FileNotFoundError: there is no such file.
    """
    filesystem, path = resolve(uri)
    return filesystem.open_input_file(path)


def read_bytes(uri: str) -> bytes:
    with open_input(uri) as file:
        return file.read()


def read_json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


def write_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a file whole or not at all: a rename locally, one put on S3."""
    if is_s3(uri):
        filesystem, path = resolve(uri)
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
    with open_output(uri) as file:
        file.write(data)


@contextmanager
def open_output(uri: str) -> Iterator[IO[bytes]]:
    """A file to write piece by piece; it appears whole when the block ends, and not after an error."""
    if is_s3(uri):
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            filesystem, path = resolve(uri)
            with filesystem.open_output_stream(path) as stream:
                shutil.copyfileobj(file, stream, 1 << 20)
        return
    target = Path(absolute(uri))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def delete_partials(uri: str) -> None:
    """Delete what writers that were killed left below a directory; for when nobody writes there any more.

    On S3 a put that was cut off leaves nothing.
    """
    if not is_s3(uri):
        for path in Path(absolute(uri)).rglob(".*.partial"):
            path.unlink(missing_ok=True)


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_csv(uri: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file in UTF-8 with a line of column names, written row by row, whole or not at all."""
    with open_output(uri) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        text.flush()
        text.detach()


def list_files(uri: str) -> Iterator[FileEntry]:
    """Every file below a directory or prefix, a page at a time; partial files are left out.

    Raises:
        FileNotFoundError: there is no such directory.
        OSError: it, or a folder below it, cannot be read.
    """
    if is_s3(uri):
        yield from _list_s3(uri)
        return
    root = absolute(uri)
    if not os.path.isdir(root):
        raise FileNotFoundError(root)
    for folder, _, names in os.walk(root, onerror=_fail):
        for name in names:
            if not name.endswith(".partial"):
                path = os.path.join(folder, name)
                # A link to nowhere is listed, for whoever reads it to report.
                num_bytes = os.path.getsize(path) if os.path.exists(path) else 0
                yield FileEntry(os.path.relpath(path, root), num_bytes)


def _fail(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a folder may go while its parent is listed
        raise error


def _list_s3(uri: str) -> Iterator[FileEntry]:
    # pyarrow lists a prefix in one go; boto3 pages, so that memory does not grow with the data.
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = uri.removeprefix("s3://").rstrip("/").partition("/")
    prefix = prefix + "/" if prefix else ""
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    found = False
    try:
        for page in pages:
            for item in page.get("Contents", ()):
                found = True
                if not item["Key"].endswith("/"):
                    yield FileEntry(item["Key"].removeprefix(prefix), item["Size"])
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") == "NoSuchBucket":
            raise FileNotFoundError(uri) from None
        raise OSError(f"{uri}: {error}") from error
    except BotoCoreError as error:  # no credentials, no route, ...
        raise OSError(f"{uri}: {error}") from error
    if not found:
        raise FileNotFoundError(uri)


def delete(uri: str) -> None:
    """Delete a file, or a directory with all below it; nothing there is no error."""
    filesystem, path = resolve(uri)
    kind = filesystem.get_file_info(path).type
    if kind == fs.FileType.Directory:
        filesystem.delete_dir(path)
    elif kind != fs.FileType.NotFound:
        filesystem.delete_file(path)


def upload_file(local: str | Path, uri: str) -> None:
    """Copy a local file to ``uri``, whole or not at all, piece by piece."""
    with Path(local).open("rb") as source, open_output(uri) as target:
        shutil.copyfileobj(source, target, 1 << 20)


def upload_directory(local: str | Path, uri: str, last: str) -> None:
    """Copy a local directory's files to ``uri``; the file named ``last`` goes last.

    Readers take a directory for complete when ``last`` is there. A local target is swapped by two
    renames, so a reader finds the old directory, for a moment none, then the new one. On S3 ``last``
    is deleted first and files of the old directory that the new one lacks are deleted too.
    """
    source = Path(local)
    if is_s3(uri):
        delete(join(uri, last))
        names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
        with contextlib.suppress(FileNotFoundError):
            for entry in list(list_files(uri)):
                if entry.name not in names:
                    delete(join(uri, entry.name))
        for name in sorted(names, key=lambda name: name == last):
            write_bytes(join(uri, name), (source / name).read_bytes())
        return
    target = Path(absolute(uri))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    shutil.copytree(source, partial)
    if target.exists():
        retired = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
        target.replace(retired)
        partial.replace(target)
        shutil.rmtree(retired)
    else:
        partial.replace(target)


@contextmanager
def local_directory(uri: str) -> Iterator[Path]:
    """A local directory with the files of ``uri``: itself where it is local, else a temporary copy.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    if not is_s3(uri):
        path = Path(absolute(uri))
        if not path.is_dir():
            raise FileNotFoundError(str(path))
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="raycap-") as folder:
        for entry in list_files(uri):
            target = Path(folder, entry.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(read_bytes(join(uri, entry.name)))
        yield Path(folder)
