"""Captions that a model in training writes by itself of validation images, scored by BLEU and CIDEr.

Teacher forcing gives the model each true word before it guesses the next; here it reads its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import distributed

from raycap.config import Config
from raycap.data.rows import Chunk, read_chunk
from raycap.metrics.caption import caption_scores
from raycap.models.lstm_decoding import LstmDecoding
from raycap.progress import Progress
from raycap.train.recipe import Validation

_SCORES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider")


class CaptionValidation(Config):
    """Captions of validation images in training; the model of the highest CIDEr is published."""

    every_epochs: int = Field(default=1, ge=1)
    """Validations after so many epochs, and the last one, have captions."""

    max_images: int | None = Field(default=None, ge=1)
    """Only the first images of the validation split; null takes them all."""

    batch_size: int = Field(default=64, ge=1)
    """Images captioned at once by each worker."""

    decoding: LstmDecoding = LstmDecoding()
    """Greedy by default."""

    @model_validator(mode="after")
    def _one_caption(self) -> CaptionValidation:
        if self.decoding.num_captions != 1:
            raise ValueError(f"decoding.num_captions ({self.decoding.num_captions}) must be 1: one caption is scored")
        return self

    def due(self, validation: Validation) -> bool:
        return validation.last or validation.epoch % self.every_epochs == 0


class Captioned(NamedTuple):
    """An image's caption beside its references."""

    caption: str
    references: list[str]


def caption_chunks(
    chunks: Sequence[Chunk],
    write: Callable[[Chunk, slice], Sequence[str]],
    settings: CaptionValidation,
    validation: Validation,
) -> dict[str, Captioned]:
    """Caption the images, each worker a share of the chunks.

    Args:
        chunks: of all workers' images.
        write: captions of some of a chunk's images.

    Returns:
        The captions of all workers, by image id, in the order of the chunks.
    """
    left = settings.max_images or sum(chunk.num_rows for chunk in chunks)
    mine: list[tuple[int, Chunk, int]] = []
    for index, chunk in enumerate(chunks):
        if left > 0 and index % validation.num_workers == validation.rank:
            mine.append((index, chunk, min(left, chunk.num_rows)))
        left -= chunk.num_rows
    progress = None
    if validation.speaks:
        progress = Progress("captions", "images of this worker", sum(count for _, _, count in mine))
    found: dict[int, dict[str, Captioned]] = {}
    for index, chunk, count in mine:
        table = read_chunk(chunk, ["image_id", "captions"])
        ids, references = table["image_id"].to_pylist(), table["captions"].to_pylist()
        captions: list[str] = []
        for start in range(0, count, settings.batch_size):
            some = slice(start, min(start + settings.batch_size, count))
            captions += write(chunk, some)
            if progress:
                progress.advance(some.stop - some.start)
        found[index] = {name: Captioned(*both) for name, *both in zip(ids, captions, references, strict=False)}
    if progress:
        progress.finish()
    everyone: list[dict[int, dict[str, Captioned]]] = [found] * validation.num_workers
    if validation.num_workers > 1:
        distributed.all_gather_object(everyone, found)
    by_chunk = {index: of_chunk for share in everyone for index, of_chunk in share.items()}
    return {name: captioned for index in sorted(by_chunk) for name, captioned in by_chunk[index].items()}


def score(captioned: dict[str, Captioned]) -> dict[str, float]:
    """``validation_bleu_1`` .. ``validation_bleu_4`` (0 to 1) and ``validation_cider`` (0 to 10)."""
    candidates = {name: of_image.caption for name, of_image in captioned.items()}
    references = {name: of_image.references for name, of_image in captioned.items()}
    scores = caption_scores(candidates, references, java=False)
    return {f"validation_{name}": scores[name] for name in _SCORES}


def broadcast_buffers(module: torch.nn.Module, num_workers: int) -> None:
    """Give every worker the first one's buffers: a ResNet's running statistics are each worker's own."""
    if num_workers > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)
