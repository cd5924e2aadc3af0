"""The second stage of a captioning job, in Ray's workers: pixels to one file of captions."""

from __future__ import annotations

import json
import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raycap import storage
from raycap.batch.caption_plan import Shard, ShardReport, captions_file, report_file
from raycap.batch.pool import usable_threads
from raycap.checkpoint.captioner import load_captioner
from raycap.checkpoint.identity import pair_id, refiner_fingerprint
from raycap.data.catalog import LeftOut
from raycap.hardware import Precision
from raycap.models.decoding import Decoding
from raycap.models.refinement import Refinement
from raycap.predictor import CaptionPredictor, DecoderStage, EncoderStage, RefinerStage

SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # or the image's id in rows
        pa.field("rank", pa.int32(), nullable=False),  # 0 is the best caption of the image
        pa.field("caption", pa.string(), nullable=False),
        pa.field("log_probability", pa.float32(), nullable=False),  # in nats, given the image
    ]
)


def load_predictor(model: str, rbm: str | None, precision: Precision) -> tuple[CaptionPredictor, dict[str, str]]:
    """A predictor, and the fingerprints of its captioner and of its RBM.

    Raises:
        UserError: there are no such models, or they do not fit.
    """
    encoder, decoder = load_captioner(model)
    # Before the stages cast the weights: fingerprints know them as they were.
    fingerprints = {"model_fingerprint": pair_id(model, encoder, decoder).fingerprint}
    stage = EncoderStage(encoder, model, precision)
    refiner = None if rbm is None else RefinerStage(rbm, stage.id)
    if refiner is not None:
        fingerprints["rbm_fingerprint"] = refiner_fingerprint(refiner.refiner)
    return CaptionPredictor(stage, refiner, DecoderStage(decoder, precision)), fingerprints


class CaptionShard:
    """Captions shards of images and writes each as one file; an actor of the pool.

    Args:
        output: directory or s3:// prefix.
        model: a captioner's directory, s3:// prefix or hub name.
        rbm: directory or s3:// prefix of a refiner, or None.
        num_captions: of each image.
        batch_size: images captioned at once.
        fingerprints: of captioner and RBM, as the job found them; other weights are refused.
        torch_threads: at most; never more than this machine has cores.
    """

    def __init__(
        self,
        output: str,
        model: str,
        rbm: str | None,
        precision: Precision,
        refinement: Refinement,
        decoding: Decoding,
        num_captions: int,
        batch_size: int,
        fingerprints: dict[str, str],
        torch_threads: int,
    ) -> None:
        torch.set_num_threads(usable_threads(torch_threads))
        self.output, self.batch_size = output, batch_size
        self.refinement, self.decoding, self.num_captions = refinement, decoding, num_captions
        self.predictor, found = load_predictor(model, rbm, precision)
        if found != fingerprints:
            raise ValueError(f"model = {model}: not the models that the job began with; leave them alone meanwhile")
        self.ready_at = time.time()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of :func:`~raycap.batch.reading.read_shard` to counts and times; the captions are in ``output``."""
        shard = Shard.model_validate_json(row["shard"])
        paths = list(row["paths"])
        columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        for start in range(0, len(paths), self.batch_size):
            # Copied, because Ray's memory is read-only, which torch has no notion of.
            images = row["images"][start : start + self.batch_size].copy()
            image_embeds = self.predictor.refine(self.predictor.encode(images), self.refinement)
            written = self.predictor.decoder.write(image_embeds, self.decoding, self.num_captions)
            for path, captions in zip(paths[start : start + self.batch_size], written, strict=True):
                for rank, caption in enumerate(captions):
                    values = (path, rank, caption.text, caption.log_probability)
                    for column, value in zip(columns.values(), values, strict=True):
                        column.append(value)
        if paths:
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table(columns, schema=SCHEMA), sink)
            storage.write_bytes(captions_file(self.output, shard.name), sink.getvalue())
        left_out = tuple(LeftOut(*item) for item in json.loads(row["left_out"]))
        report = ShardReport(
            digest=shard.digest, num_images=len(paths), num_captions=len(columns["path"]), left_out=left_out
        )
        # After the captions: a shard counts as done when its report is there.
        storage.write_bytes(report_file(self.output, shard.name), report.model_dump_json().encode())
        return {
            "name": shard.name,
            "report": report.model_dump_json(),
            "ready_at": self.ready_at,
            "finished_at": time.time(),
            "device": self.predictor.encoder.device.type,
            "precision": str(self.predictor.decoder.dtype).removeprefix("torch."),
            "error": "",
        }
