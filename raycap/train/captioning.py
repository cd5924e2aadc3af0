"""Training BLIP to write captions: its settings, and what it adds to the common loop."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import AutoTokenizer

from raycap import storage
from raycap.checkpoint.directory import absolute_source
from raycap.checkpoint.pretrained import load_blip, save_blip
from raycap.config import Config
from raycap.data.rows import Rows, open_rows, read_chunk
from raycap.data.text import count_prompt_tokens, train_wordpiece
from raycap.errors import UserError
from raycap.models.blip import BlipCaptionDecoder, BlipImageEncoder, BlipShape, build_blip
from raycap.progress import say
from raycap.tasks.captioning import CaptioningTask
from raycap.train.captioned_images import CaptionedImages
from raycap.train.recipe import HopelessRunError, Measured, Share, Validation, decay_matrices


class NewBlip(Config):
    """A BLIP from nothing, its vocabulary trained on the training captions."""

    kind: Literal["new"] = "new"
    shape: BlipShape = BlipShape()

    vocab_size: int = Field(default=8000, ge=32)
    """Upper bound of the WordPiece vocabulary."""

    min_frequency: int = Field(default=2, ge=1)
    """Rarer words are spelt in pieces."""


class PretrainedBlip(Config):
    """A BLIP to train further."""

    kind: Literal["pretrained"] = "pretrained"

    path: str
    """Model directory, s3:// prefix or hub name."""

    max_text_tokens: int = Field(default=32, ge=4)
    """Longest caption, prompt and special tokens included."""


class CaptioningTraining(Config):
    """Trains BLIP's LM loss on rows."""

    kind: Literal["captioning"] = "captioning"

    rows: str
    """Directory or s3:// prefix of jobs/ingest.py."""

    train_split: str = "train"
    validation_split: str = "dev"
    model: Annotated[NewBlip | PretrainedBlip, Field(discriminator="kind")] = NewBlip()

    prompt: str = ""
    """Text before every caption, which is given and not learned."""

    freeze_encoder: bool = False
    """Train the decoder alone."""

    def check(self) -> None:
        """See that the data are there, and the model to train further.

        Raises:
            UserError: they are not, or the captions do not fit the model.
        """
        rows = open_rows(self.rows, "task.rows")
        rows.chunks(self.train_split, "task.train_split")
        rows.chunks(self.validation_split, "task.validation_split")
        if isinstance(self.model, PretrainedBlip):
            _, decoder = load_blip(self.model.path, "task.model.path")
            positions = decoder.text_decoder.config.max_position_embeddings
            if self.model.max_text_tokens > positions:
                raise UserError(
                    f"task.model.max_text_tokens = {self.model.max_text_tokens}: the decoder has {positions} "
                    f"positions; set at most {positions}"
                )

    def prepare(self, output: str) -> CaptioningRecipe:
        """Make the vocabulary where the model is new."""
        rows = open_rows(self.rows, "task.rows")
        tokenizer_uri = storage.join(output, "tokenizer")
        if isinstance(self.model, NewBlip):
            if not storage.exists(storage.join(tokenizer_uri, "tokenizer.json")):
                _make_tokenizer(rows, self.train_split, self.model, tokenizer_uri)
            return CaptioningRecipe(self, rows, tokenizer_uri)
        model = self.model.model_copy(update={"path": absolute_source(self.model.path)})
        return CaptioningRecipe(self.model_copy(update={"model": model}), rows, tokenizer_uri)


class CaptioningRecipe:
    """See :class:`raycap.train.recipe.Recipe`."""

    loss_name = "caption_loss"
    score_name: str | None = "caption_loss"
    score_order: Literal["min", "max"] = "min"
    stopping_metric = "validation_caption_loss"
    compares_training = False

    def __init__(self, settings: CaptioningTraining, rows: Rows, tokenizer_uri: str) -> None:
        self.settings, self.rows, self.tokenizer_uri = settings, rows, tokenizer_uri
        self.train_split, self.validation_split = settings.train_split, settings.validation_split

    def build_task(self, seed: int, first_sample: int, share: Share) -> CaptioningTask:  # noqa: ARG002
        encoder, decoder = self._build()
        num_prompt_tokens = count_prompt_tokens(decoder.tokenizer, self.settings.prompt)
        if num_prompt_tokens + 2 > self._max_tokens:
            raise HopelessRunError(
                f"task.prompt = {self.settings.prompt!r}: leaves no room for a caption in {self._max_tokens} tokens; "
                f"shorten it, or set a larger max_text_tokens"
            )
        return CaptioningTask(encoder, decoder, num_prompt_tokens, self.settings.freeze_encoder)

    def source(self, task: CaptioningTask, device: torch.device) -> CaptionedImages:  # noqa: ARG002
        decoder, prompt = task.decoder, self.settings.prompt
        return CaptionedImages(
            self.rows, task.encoder.image_size, decoder.tokenizer, decoder.bos_id, prompt, self._max_tokens
        )

    @property
    def _max_tokens(self) -> int:
        model = self.settings.model
        return model.shape.max_text_tokens if isinstance(model, NewBlip) else model.max_text_tokens

    def parameter_groups(self, task: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        return decay_matrices(task, weight_decay)

    def measure(self, task: CaptioningTask, device: torch.device, validation: Validation) -> Measured:  # noqa: ARG002
        return Measured({})

    def save_model(self, task: CaptioningTask, directory: Path) -> None:
        save_blip(directory, task.encoder, task.decoder)

    def _build(self) -> tuple[BlipImageEncoder, BlipCaptionDecoder]:
        if isinstance(self.settings.model, NewBlip):
            with storage.local_directory(self.tokenizer_uri) as directory:
                tokenizer = AutoTokenizer.from_pretrained(directory)
            return build_blip(self.settings.model.shape, tokenizer)
        return load_blip(self.settings.model.path)


def _make_tokenizer(rows: Rows, split: str, model: NewBlip, uri: str) -> None:
    tokenizer = train_wordpiece(_captions(rows, split), model.vocab_size, model.min_frequency)
    if len(tokenizer) <= 6:
        raise UserError(f"task.rows = {rows.uri}: split {split} has no captions to make a vocabulary of")
    with tempfile.TemporaryDirectory(prefix="raycap-") as folder:
        tokenizer.save_pretrained(folder)
        storage.upload_directory(folder, uri, last="tokenizer.json")
    say(f"vocabulary: {len(tokenizer):,} tokens")


def _captions(rows: Rows, split: str) -> Iterator[str]:
    for chunk in rows.chunks(split):
        for captions in read_chunk(chunk, ["captions"])["captions"].to_pylist():
            yield from captions
