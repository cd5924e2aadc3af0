"""Rows to a feature store: a pool of actors encodes the images on Ray Data, and each writes its own files.

    chunks of rows without a file in {output}     (this process)
    one task per chunk: read, decode, resize      (Ray's workers)
    actors: encode, write {split}-00000-0000.parquet
    counts -> manifest.json                       (this process)

A chunk counts as done when its file is there, and a file is there whole or not at all: a run that
was killed loses only what it had in hand, and the next one does only what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import ray
import torch
from pydantic import Field, model_validator

from raycap import storage
from raycap.batch.extract_plan import Item, done_files, plan
from raycap.batch.extract_stages import EncodeChunk, RegionsView, load_embedder, native_precision
from raycap.batch.pool import PoolConfig, require_room, run_pool
from raycap.batch.reading import read_images
from raycap.checkpoint.directory import absolute_source
from raycap.checkpoint.identity import EncoderId
from raycap.data.features import MANIFEST, claim_store, claimed_precision, finish_store
from raycap.data.rows import Rows, open_rows
from raycap.errors import UserError
from raycap.hardware import Precision
from raycap.models.blip import BlipImageEncoder
from raycap.models.resnet_regions import ResNetRegions
from raycap.progress import Progress, say

# One call encodes, the others write; one thread writes about 300 images/s of BLIP-base's size.
_CALLS_PER_CPU_WORKER = 2
_CALLS_PER_GPU_WORKER = 6


class ExtractConfig(PoolConfig):
    """Images to embeddings; other jobs read them by ``features: {output}``."""

    rows: str
    """Rows of jobs/ingest.py."""

    model: str
    """BLIP directory, s3:// prefix or hub name; its image encoder is used. For regions an LSTM captioner or a
    ResNet."""

    embeddings: Literal["image", "image_text", "regions"] = "image"
    """Every token of each image; or, for an RBM that re-ranks captions, one joint vector for each pair of an image
    and one of its captions, made by encoder and decoder; or, for an LSTM captioner whose encoder is frozen, a ResNet's
    regions of each image."""

    regions: RegionsView | None = None
    """Of embeddings: regions, what the ResNet sees; null has the defaults."""

    splits: tuple[str, ...] | None = None
    """Splits to encode; null is all that the rows have."""

    precision: Precision = Precision.AUTO
    """In which the encoder computes: auto, fp32 or bf16. The store keeps float16."""

    batch_size: int | None = Field(default=None, ge=1)
    """Images that the encoder takes at once; null is 1 on a CPU (fastest there) and 64 on a GPU."""

    @property
    def with_captions(self) -> bool:
        return self.embeddings == "image_text"

    @property
    def view(self) -> RegionsView | None:
        """What a ResNet sees; None without one."""
        return (self.regions or RegionsView()) if self.embeddings == "regions" else None

    @model_validator(mode="after")
    def _regions_fit(self) -> ExtractConfig:
        if self.regions is not None and self.embeddings != "regions":
            raise ValueError(f"regions: of no use with embeddings ({self.embeddings}); set embeddings: regions")
        return self


def extract(config: ExtractConfig) -> dict[str, Any]:
    """Encode the images of rows into a feature store, only those that are missing there."""
    started = time.monotonic()
    rows = open_rows(config.rows)
    wanted = _wanted_splits(config, rows)
    encoder, _, owner = load_embedder(config.model, config.with_captions, config.view)
    output = storage.absolute(config.output)
    precision = _claim(config, output, owner)
    items = plan(rows, config.with_captions)
    done = done_files(output, items)
    missing = [item for item in items if item.file.split in wanted and item.file.name not in done]
    if missing:
        require_room(config)
        storage.delete(storage.join(output, MANIFEST))  # no store is finished while it is worked on
    else:
        say(f"extract: nothing is missing in {output}")
    counts = _encode(config, missing, _worker(config, output, owner, precision), encoder)
    # A split that an earlier run has finished stays in the store.
    partial_splits = {item.file.split for item in items if item.file.name not in done} - set(wanted)
    files = [item.file for item in items if item.file.split not in partial_splits]
    if not storage.exists(storage.join(output, MANIFEST)):
        storage.delete_partials(output)
        finish_store(output, owner.name, owner.fingerprint, precision, files)
    num_images = sum(item.chunk.num_rows for item in items if item.file.split in wanted)
    return {
        "embeddings": config.embeddings,
        "images": num_images,
        "rows_of_store": sum(item.file.num_images for item in items if item.file.split in wanted),
        "images_skipped": num_images - counts["images_done_now"],
        **counts,
        "seconds": round(time.monotonic() - started, 2),
        "splits": sorted({file.split for file in files}),
        "files": len(files),
        "encoder": owner._asdict(),
        "precision": str(precision),
    }


def _wanted_splits(config: ExtractConfig, rows: Rows) -> Sequence[str]:
    if not rows.files:
        raise UserError(f"rows = {rows.uri}: holds no images; give rows with images")
    for split in config.splits or ():
        if split not in rows.splits:
            raise UserError(f"splits = {split!r}: not in {rows.uri}; it has {', '.join(rows.splits)}")
    return rows.splits if config.splits is None else config.splits


def _claim(config: ExtractConfig, output: str, owner: EncoderId) -> Precision:
    """Make the store this encoder's, or see that it is; returns what ``precision: auto`` means there."""
    claimed = claimed_precision(output)
    if claimed is None:
        require_room(config)  # before anything is written
    precision = config.precision
    if precision is Precision.AUTO:
        precision = _native_precision(config) if claimed is None else Precision(claimed)
    try:
        claim_store(output, owner.name, owner.fingerprint, precision)
    except OSError as error:
        raise UserError(f"output = {output}: cannot be written ({error}); choose another output") from None
    return precision


def _native_precision(config: ExtractConfig) -> Precision:
    if not config.use_gpu:
        return native_precision(torch.device("cpu"))
    # Asked of a worker: the driver's machine may have no GPU.
    precision: Precision = ray.get(ray.remote(num_gpus=1)(native_precision).remote(torch.device("cuda")))
    return precision


def _worker(config: ExtractConfig, output: str, owner: EncoderId, precision: Precision) -> dict[str, Any]:
    """Arguments of :class:`EncodeChunk`."""
    return {
        "output": output,
        "model": absolute_source(config.model),
        "fingerprint": owner.fingerprint,
        "precision": precision,
        "batch_size": config.batch_size or (64 if config.use_gpu else 1),
        "with_captions": config.with_captions,
        "regions": config.view,
    }


def _encode(
    config: ExtractConfig, missing: Sequence[Item], worker: dict[str, Any], encoder: BlipImageEncoder | ResNetRegions
) -> dict[str, Any]:
    """Do what is missing, showing progress, and count."""
    if not missing:
        return {"images_done_now": 0, "bytes_written": 0, "images_per_second": None, "torch_threads": None}
    progress = Progress("extract", "images", sum(item.chunk.num_rows for item in missing))
    reports = []
    rows = [item.chunk._asdict() | {"name": item.file.name, "source": item.source} for item in missing]
    read = partial(read_images, image_size=encoder.image_size, with_captions=config.with_captions)
    chunk_bytes = max(item.chunk.num_rows for item in missing) * encoder.image_size**2 * 3
    calls = _CALLS_PER_GPU_WORKER if config.use_gpu else _CALLS_PER_CPU_WORKER
    for report in run_pool(config, rows, read, EncodeChunk, worker, chunk_bytes, calls):
        reports.append(report)
        progress.advance(report["num_images"])
    progress.finish()
    # Ray's start and the loading of the model are not in the rate; they are in the job's seconds.
    seconds = max(report["finished_at"] for report in reports) - min(report["ready_at"] for report in reports)
    return {
        "images_done_now": progress.done,
        "bytes_written": sum(report["num_bytes"] for report in reports),
        "images_per_second": round(progress.done / seconds, 2),
        "torch_threads": reports[0]["torch_threads"],
    }
