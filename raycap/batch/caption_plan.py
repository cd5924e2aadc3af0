"""What a captioning job has to do: images cut into shards, and which of these have no captions yet.

{output}/captions-00000.parquet      path, rank, caption, log_probability; written whole
{output}/_index/captions-00000.done  the shard's report, written after its Parquet file
{output}/_index/config.json          settings that all captions there were made with
{output}/left_out.csv                reason,name,detail
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from raycap import storage
from raycap.batch.extract_plan import plan as plan_rows
from raycap.config import Config
from raycap.data.catalog import IMAGE_SUFFIXES, MAX_NAMES, LeftOut, is_text
from raycap.data.rows import Chunk, open_rows, read_chunk, require_split
from raycap.errors import UserError
from raycap.progress import Progress

INDEX = "_index"
MAX_FILE_BYTES = 64 * 1024 * 1024
_THREADS = 16  # S3 answers each request late


class FilesOfShard(Config):
    """Image files below a folder."""

    kind: Literal["files"] = "files"
    folder: str
    names: tuple[str, ...]

    def read(self) -> Iterator[tuple[str, bytes | LeftOut]]:
        """Each image's path and bytes, in their order, a few read ahead; a :class:`LeftOut` where it cannot be read.

        Raises:
            OSError: the storage fails; a file that is gone or forbidden is left out.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(self.names), _THREADS):
                names = self.names[start : start + _THREADS]
                yield from zip([self.path(name) for name in names], pool.map(self._read_one, names), strict=True)

    def path(self, name: str) -> str:
        return storage.join(self.folder, name)

    def _read_one(self, name: str) -> bytes | LeftOut:
        try:
            return storage.read_bytes(self.path(name))
        except FileNotFoundError:
            return LeftOut("missing_image", self.path(name), "gone since the folder was listed")
        except PermissionError as error:
            return LeftOut("unreadable", self.path(name), str(error))


class RowsOfShard(Config):
    """A chunk of the rows of jobs/ingest.py, whose images go by their ids."""

    kind: Literal["rows"] = "rows"
    chunk: Chunk

    def read(self) -> Iterator[tuple[str, bytes | LeftOut]]:
        for row in read_chunk(self.chunk, ["image_id", "image_bytes"]).to_pylist():
            yield row["image_id"], row["image_bytes"]


class Shard(Config):
    """Images whose captions make one file."""

    name: str
    digest: str
    """Of what tells these images from others."""
    num_images: int
    images: Annotated[FilesOfShard | RowsOfShard, Field(discriminator="kind")]


class ShardReport(Config):
    """What became of a shard."""

    digest: str
    """Of the shard it was made from."""
    num_images: int
    """Images captioned."""
    num_captions: int
    left_out: tuple[LeftOut, ...]


class Found(NamedTuple):
    """The images there are."""

    shards: list[Shard]
    left_out: list[LeftOut]
    """Files that are no images by their names, or too large for one."""


def find_files(folder: str, shard_images: int) -> Found:
    """Every image file below a folder or prefix, subfolders included, in the order of their names.

    A file is known again by its name and size.

    Raises:
        UserError: there is no such folder, it cannot be listed, or no image is in it.
    """
    folder = storage.absolute(folder)
    progress = Progress("listing", "files")
    files: list[storage.FileEntry] = []
    left_out = []
    try:
        for entry in storage.list_files(folder):
            progress.advance(1)
            path = storage.join(folder, entry.name)
            if not is_text(path):
                left_out.append(LeftOut("unreadable", path.encode(errors="backslashreplace").decode(), "not UTF-8"))
            elif not entry.name.lower().endswith(IMAGE_SUFFIXES):
                left_out.append(LeftOut("not_an_image", path, f"not {', '.join(IMAGE_SUFFIXES)}"))
            elif entry.num_bytes > MAX_FILE_BYTES:
                left_out.append(LeftOut("oversized", path, f"{entry.num_bytes} bytes, more than {MAX_FILE_BYTES}"))
            else:
                files.append(entry)
    except FileNotFoundError:
        raise UserError(f"images = {folder}: no such folder; give a folder or s3:// prefix of images") from None
    except OSError as error:
        raise UserError(f"images = {folder}: cannot be listed ({error}); check access to it") from None
    progress.finish(f"{len(files):,} images")
    if not files:
        raise UserError(
            f"images = {folder}: no image among its {len(left_out)} files; give a folder of {', '.join(IMAGE_SUFFIXES)}"
        )
    files.sort()
    shards = []
    for number, start in enumerate(range(0, len(files), shard_images)):
        entries = files[start : start + shard_images]
        digest = _digest(f"{entry.name}\0{entry.num_bytes}" for entry in entries)
        images = FilesOfShard(folder=folder, names=tuple(entry.name for entry in entries))
        shards.append(Shard(name=_name(number), digest=digest, num_images=len(entries), images=images))
    return Found(shards, left_out)


def find_rows(rows: str, split: str | None) -> Found:
    """Every chunk of the rows of jobs/ingest.py, a shard each.

    Args:
        split: the one wanted; None is all.

    Raises:
        UserError: there are no such rows, or no such split in them.
    """
    opened = open_rows(rows)
    if split is not None:
        require_split(split, opened.splits, opened.uri, "split")
    items = [item for item in plan_rows(opened) if split in (None, item.file.split)]
    if not items:
        raise UserError(f"rows = {opened.uri}: holds no images; give rows with images")
    return Found(
        [
            Shard(
                name=_name(number),
                digest=_digest([item.chunk.file, str(item.chunk.row_group), item.source]),
                num_images=item.chunk.num_rows,
                images=RowsOfShard(chunk=item.chunk),
            )
            for number, item in enumerate(items)
        ],
        [],
    )


def _name(number: int) -> str:
    return f"captions-{number:05d}"


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def captions_file(output: str, name: str) -> str:
    return storage.join(output, f"{name}.parquet")


def report_file(output: str, name: str) -> str:
    return storage.join(output, INDEX, f"{name}.done")


def finished_reports(output: str, shards: Sequence[Shard]) -> dict[str, ShardReport]:
    """Reports of the shards that are done, by name; what was made of images that are not there now is deleted."""
    try:
        there = {entry.name for entry in storage.list_files(output)}
    except FileNotFoundError:
        return {}
    digests = {shard.name: shard.digest for shard in shards}
    reported = sorted(name.split("/")[1].removesuffix(".done") for name in there if name.endswith(".done"))
    with ThreadPoolExecutor(_THREADS) as pool:
        reports = list(pool.map(lambda name: _read_report(output, name), reported))
    done = {}
    for name, report in zip(reported, reports, strict=True):
        has_file = f"{name}.parquet" in there or not report.num_images
        if report.digest == digests.get(name) and has_file:
            done[name] = report
        else:
            storage.delete(report_file(output, name))
    for name in sorted(there):
        # Also those of which a run that was killed had written no report, or deleted it.
        if name.startswith("captions-") and name.endswith(".parquet") and name.removesuffix(".parquet") not in done:
            storage.delete(storage.join(output, name))
    return done


def _read_report(output: str, name: str) -> ShardReport:
    return ShardReport.model_validate_json(storage.read_bytes(report_file(output, name)))


def summarise(left_out: Iterable[LeftOut]) -> dict[str, dict[str, object]]:
    """By reason how many images were left out, and the first names."""
    names: dict[str, list[str]] = {}
    for item in left_out:
        names.setdefault(item.reason, []).append(item.name)
    return {reason: {"count": len(of), "names": of[:MAX_NAMES]} for reason, of in sorted(names.items())}
