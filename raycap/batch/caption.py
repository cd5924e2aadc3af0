"""Captions of a folder, of an s3:// prefix or of rows, however many images: shards of Parquet on Ray Data.

    names -> shards without captions in {output}            (this process)
    one task per shard: read, decode, resize                (Ray's workers)
    actors: encode, refine, decode, write captions-00000.parquet
    reports -> left_out.csv, metrics.json                   (this process)

Only names and counts pass through this process. A shard's file appears whole, then its report: a run that was killed
loses only what it had in hand, and the next one does only what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from raycap import storage
from raycap.batch.caption_plan import (
    INDEX,
    Found,
    Shard,
    ShardReport,
    find_files,
    find_rows,
    finished_reports,
    summarise,
)
from raycap.batch.caption_stages import CaptionShard, load_predictor
from raycap.batch.pool import PoolConfig, require_room, run_pool
from raycap.batch.reading import read_shard
from raycap.checkpoint.directory import absolute_source
from raycap.claim import claim, is_claimed
from raycap.data.catalog import LeftOut
from raycap.errors import UserError
from raycap.hardware import Precision
from raycap.models.decoding import Decoding
from raycap.models.refinement import Refinement
from raycap.progress import Progress, say

_SETTINGS = f"{INDEX}/config.json"


class CaptionConfig(PoolConfig):
    """Images to captions: ``output`` gets captions-*.parquet (path, rank, caption, log_probability), left_out.csv."""

    images: str | None = None
    """Folder or s3:// prefix of image files, subfolders included; or give ``rows``."""

    rows: str | None = None
    """Rows of jobs/ingest.py, instead of ``images``; their image ids stand for the paths."""

    split: str | None = None
    """Of ``rows``; null is all that they have."""

    model: str
    """Directory, s3:// prefix or hub name of a BLIP, or directory or prefix of an LSTM captioner."""

    rbm: str | None = None
    """RBM directory or s3:// prefix, trained on this model's embeddings; null is none."""

    refinement: Refinement = Refinement()
    """``gate`` and ``passes`` of the RBM."""

    decoding: Decoding = Decoding()

    num_captions: int = Field(default=1, ge=1)
    """Of each image: the best of the beams (at most ``decoding.num_beams``), or with sampling as many draws."""

    precision: Precision = Precision.AUTO

    batch_size: int | None = Field(default=None, ge=1)
    """Images captioned at once; null is 16 on a CPU and 64 on a GPU."""

    shard_images: int = Field(default=256, ge=1)
    """Most images of ``images`` in one Parquet file, held in memory as pixels; a chunk of ``rows`` is one file."""

    @model_validator(mode="after")
    def _one_source(self) -> CaptionConfig:
        if (self.images is None) == (self.rows is None):
            raise ValueError(f"images ({self.images}) or rows ({self.rows}): give one of them")
        if self.split is not None and self.rows is None:
            raise ValueError(f"split ({self.split}) is of rows; leave it out with images")
        if not self.decoding.do_sample and self.num_captions > self.decoding.num_beams:
            raise ValueError(
                f"num_captions ({self.num_captions}) must be at most decoding.num_beams ({self.decoding.num_beams}); "
                "raise that"
            )
        return self


class _Model(NamedTuple):
    image_size: int
    fingerprints: dict[str, str]
    """Of the captioner and of the RBM."""


def caption(config: CaptionConfig) -> dict[str, Any]:
    """Caption every image of a folder, an s3:// prefix or rows; a run that was cut off goes on."""
    started = time.monotonic()
    output = storage.absolute(config.output)
    _require_apart(config, output)
    model = _check_model(config)
    settings = _settings(config, model)
    resumed = is_claimed(output, _SETTINGS, settings, what="run")
    if config.images is not None:
        found = find_files(config.images, config.shard_images)
    else:
        found = find_rows(config.rows or "", config.split)
    require_room(config)  # before anything is written
    if not resumed:
        claim(output, _SETTINGS, settings)
    reports = finished_reports(output, found.shards)
    missing = [shard for shard in found.shards if shard.name not in reports]
    counts = _caption(config, output, missing, reports, found, model)
    storage.delete_partials(output)
    ordered = [reports[shard.name] for shard in found.shards]
    left_out = [*found.left_out, *(item for report in ordered for item in report.left_out)]
    storage.write_csv(storage.join(output, "left_out.csv"), LeftOut._fields, left_out)
    num_images = sum(report.num_images for report in ordered)
    if not num_images:
        raise UserError(f"{_source(config)}: no image among {len(left_out)} files; see {output}/left_out.csv")
    return {
        "images": num_images,
        "captions": sum(report.num_captions for report in ordered),
        "left_out": summarise(left_out),
        **counts,
        "files": sum(report.num_images > 0 for report in ordered),
        "model": config.model,
        "rbm": config.rbm,
        **model.fingerprints,
        "seconds": round(time.monotonic() - started, 2),
    }


def _source(config: CaptionConfig) -> str:
    return f"rows = {config.rows}" if config.images is None else f"images = {config.images}"


def _require_apart(config: CaptionConfig, output: str) -> None:
    """
    Raises:
        UserError: captions would be written among the images.
    """
    if config.images is not None and storage.join(output, "").startswith(
        storage.join(storage.absolute(config.images), "")
    ):
        raise UserError(f"output = {config.output}: lies within images = {config.images}; choose a place beside it")


def _check_model(config: CaptionConfig) -> _Model:
    """Load the models here once, so that what is wrong with them is told before any work."""
    predictor, fingerprints = load_predictor(config.model, config.rbm, config.precision)
    predictor.decoder.decoder.require_room(config.decoding)
    return _Model(predictor.encoder.image_size, fingerprints)


def _settings(config: CaptionConfig, model: _Model) -> dict[str, Any]:
    """All that the captions depend on, and how they are dealt to files."""
    names = {"split", "refinement", "decoding", "num_captions", "precision", "shard_images"}
    places = {"images": config.images, "rows": config.rows}
    sources = {name: None if place is None else storage.absolute(place) for name, place in places.items()}
    if config.precision is Precision.AUTO:
        names.add("use_gpu")  # it decides
    return config.model_dump(mode="json", include=names) | sources | model.fingerprints


def _caption(
    config: CaptionConfig,
    output: str,
    missing: Sequence[Shard],
    reports: dict[str, ShardReport],
    found: Found,
    model: _Model,
) -> dict[str, Any]:
    """Do what is missing, showing progress; add its reports to ``reports``."""
    if not missing:
        say(f"caption: nothing is missing in {output}")
        return {"images_captioned_now": 0, "images_per_second": None}
    storage.delete(storage.join(output, "metrics.json"))  # no output is finished while it is worked on
    total = sum(shard.num_images for shard in found.shards)
    progress = Progress("caption", "images", total)
    progress.resume_at(total - sum(shard.num_images for shard in missing))
    rows = [{"shard": shard.model_dump_json()} for shard in missing]
    shard_bytes = max(shard.num_images for shard in missing) * model.image_size**2 * 3
    results: list[Mapping[str, Any]] = []
    read = partial(read_shard, image_size=model.image_size)
    worker = _worker(config, output, model.fingerprints)
    for result in run_pool(config, rows, read, CaptionShard, worker, shard_bytes):
        report = reports[result["name"]] = ShardReport.model_validate_json(result["report"])
        progress.advance(report.num_images + len(report.left_out))
        results.append(result)
    progress.finish()
    # Ray's start and the loading of the model are not in the rate; they are in the job's seconds.
    seconds = max(result["finished_at"] for result in results) - min(result["ready_at"] for result in results)
    num_images = sum(reports[shard.name].num_images for shard in missing)
    return {
        "images_captioned_now": num_images,
        "images_per_second": round(num_images / seconds, 2),
        "device": results[0]["device"],
        "precision": results[0]["precision"],
    }


def _worker(config: CaptionConfig, output: str, fingerprints: dict[str, str]) -> dict[str, Any]:
    """Arguments of :class:`CaptionShard`."""
    return {
        "output": output,
        "model": absolute_source(config.model),
        "rbm": None if config.rbm is None else storage.absolute(config.rbm),
        "precision": config.precision,
        "refinement": config.refinement,
        "decoding": config.decoding,
        "num_captions": config.num_captions,
        "batch_size": config.batch_size or (64 if config.use_gpu else 16),
        "fingerprints": fingerprints,
    }
