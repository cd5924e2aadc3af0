"""Raw caption data to rows in Parquet, streamed on Ray Data, resumed where an earlier run stopped.

    source.fill -> catalog (a join on disk) -> shards -> {output}/_index/   (this process)
    one task per shard: read, check, write {split}-00000.parquet            (Ray's workers)
    counts and names of what was left out -> left_out.csv, manifest.json    (this process)

Only names, captions and counts pass through this process and Ray's object store, never an image.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import ray
from pydantic import Field

from raycap import storage
from raycap.batch.ingest_output import IngestOutput, Plan
from raycap.batch.ingest_shard import ShardReport, write_shard
from raycap.cluster import connect
from raycap.data.catalog import Catalog
from raycap.data.images import MAX_PIXELS
from raycap.data.readers import SourceConfig
from raycap.data.rows import write_manifest
from raycap.errors import UserError
from raycap.job import JobConfig
from raycap.progress import Progress, say


class IngestConfig(JobConfig):
    """Raw images and captions to rows that every other job reads (``rows: {output}``)."""

    source: SourceConfig
    """The raw data: ``kind`` chooses the format."""

    max_pixels: int = Field(MAX_PIXELS, ge=1, le=MAX_PIXELS)
    """Width x height above which an image is left out as oversized, before it is decoded."""

    shard_rows: int = Field(1024, ge=1)
    """Most images in one Parquet file."""

    shard_megabytes: int = Field(64, ge=1, le=1024)
    """Most image data in one Parquet file, held in memory while it is written; a larger image is oversized."""

    resize_longest_edge: int | None = Field(None, ge=16)
    """Store larger images as JPEG with this longest edge, in pixels; by default every file is stored as it is."""

    overwrite: bool = False
    """Delete the rows of an earlier run at ``output`` first."""

    @property
    def shard_bytes(self) -> int:
        return self.shard_megabytes * 1024 * 1024


def ingest(config: IngestConfig) -> dict[str, Any]:
    """Turn raw images and captions into Parquet rows; a run that was cut off continues.

    Returns:
        Counts of what was found, kept, mended and left out (by reason, with names), and speed.

    Raises:
        UserError: the raw data are not where ``source`` says, no image is left, or ``output`` holds
            rows of another configuration.
    """
    started = time.monotonic()
    config = config.model_copy(update={"output": storage.absolute(config.output)})
    output = IngestOutput(config.output, config.model_dump(mode="json", exclude={"output", "overwrite"}))
    finished = None if config.overwrite else output.check()
    if finished is not None:
        say(f"ingest: {config.output} is finished, from the same configuration; overwrite=true makes it anew")
        return finished
    progress = Progress("annotations", "files and captions")
    with Catalog(progress.advance) as catalog:
        config.source.fill(catalog)
        catalog.settle(max_file_bytes=config.shard_bytes)
        images_found = catalog.images_found
        progress.finish(f"{images_found:,} images found")
        if config.overwrite:  # only now: raw data that are not there must not cost the old rows
            output.clear()
        output.start()
        plans = list(output.plan(catalog.shards(config.shard_rows, config.shard_bytes)))
        counts = _write_shards(config, output, plans, catalog)
        output.write_left_out(catalog.left_out())
        left_out = catalog.left_out_summary()
        if not counts["images_kept"]:
            output.clear_index()
            raise UserError(_no_images(config, images_found, left_out))
        metrics = {
            "images_found": images_found,
            **{name: counts[name] for name in ("images_kept", "captions", "splits")},
            "left_out": left_out,
            "mended_rows": catalog.num_mended_rows,
            **{name: counts[name] for name in ("images_per_second", "peak_rss_mb")},
            "seconds": round(time.monotonic() - started, 2),
        }
    output.save_metrics(metrics)
    storage.delete_partials(config.output)
    write_manifest(config.output, counts["files"])
    output.clear_index()
    return metrics


def _write_shards(config: IngestConfig, output: IngestOutput, plans: list[Plan], catalog: Catalog) -> dict[str, Any]:
    """Write the shards that are missing; name in the catalog what had to be left out; add up all reports."""
    total = sum(plan.num_images for plan in plans)
    pending = [plan for plan in plans if not plan.done]
    progress = Progress("ingest", "images", total)
    progress.resume_at(total - sum(plan.num_images for plan in pending))
    started = time.monotonic()
    files, splits, num_captions = [], dict[str, int](), 0
    peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    reports = [output.read_report(plan.name) for plan in plans if plan.done]
    for report in _all_reports(reports, config, pending, progress):
        for item in report.left_out:
            catalog.leave_out(*item)
        peak_rss_mb = max(peak_rss_mb, report.peak_rss_mb)
        if report.file is not None:
            files.append(report.file)
            splits[report.file.split] = splits.get(report.file.split, 0) + sum(report.file.row_groups)
            num_captions += report.num_captions
    seconds = time.monotonic() - started
    progress.finish()
    return {
        "files": sorted(files, key=lambda file: file.name),
        "images_kept": sum(splits.values()),
        "captions": num_captions,
        "splits": dict(sorted(splits.items())),
        "images_per_second": round(sum(plan.num_images for plan in pending) / seconds, 1),
        "peak_rss_mb": round(peak_rss_mb, 1),
    }


def _all_reports(
    earlier: list[ShardReport], config: IngestConfig, pending: list[Plan], progress: Progress
) -> Iterator[ShardReport]:
    yield from earlier
    if not pending:
        return
    connect()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    task = partial(
        write_shard,
        source=config.source,
        output=config.output,
        max_pixels=config.max_pixels,
        resize_longest_edge=config.resize_longest_edge,
    )
    items = [{"name": plan.name, "digest": plan.digest} for plan in pending]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(task, num_cpus=1)
    for row in dataset.iter_rows():
        report = ShardReport.model_validate_json(row["report"])
        progress.advance(report.num_images)
        yield report


def _no_images(config: IngestConfig, images_found: int, left_out: dict[str, dict[str, Any]]) -> str:
    source = config.source
    place = f"source.path = {source.path}" if hasattr(source, "path") else "source"
    reasons = ", ".join(f"{reason}: {item['count']} ({item['names'][0]}, ...)" for reason, item in left_out.items())
    found = f"none of the {images_found} images found could be kept" if images_found else "no images found"
    return f"{place}: {found}; left out: {reasons or 'nothing'}; see {config.output}/left_out.csv and check the source"
