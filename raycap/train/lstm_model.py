"""What the LSTM captioner begins with: a new model and its vocabulary, or one to train further."""

from __future__ import annotations

import tempfile
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, ResNetModel

from raycap import storage
from raycap.checkpoint.directory import absolute_source
from raycap.checkpoint.lstm_captioner import CaptioningLstm
from raycap.checkpoint.pretrained import load_resnet
from raycap.config import Config
from raycap.data.rows import Rows
from raycap.data.vocabulary import SPECIAL_TOKENS, make_vocabulary
from raycap.data.word_vectors import WordVectors, read_word_vectors
from raycap.errors import UserError
from raycap.models.lstm_captioner import LstmCaptioner
from raycap.models.resnet_regions import ResNetRegions, ResNetShape
from raycap.progress import say
from raycap.train.word_counts import count_split_words


class NewResNet(Config):
    """A ResNet from nothing."""

    kind: Literal["new"] = "new"
    shape: ResNetShape = ResNetShape()

    def build(self) -> ResNetModel:
        return self.shape.build()


class PretrainedResNet(Config):
    """A ResNet to begin with, or to keep as it is."""

    kind: Literal["pretrained"] = "pretrained"
    path: str
    """Model directory, s3:// prefix or hub name (microsoft/resnet-50)."""

    def build(self) -> ResNetModel:
        return load_resnet(self.path, "task.model.encoder.path")


class NewLstmCaptioner(Config):
    """A decoder from nothing, its vocabulary the words of the training captions."""

    kind: Literal["new"] = "new"
    encoder: Annotated[NewResNet | PretrainedResNet, Field(discriminator="kind")] = NewResNet()

    image_size: int = Field(default=224, ge=32)
    """Edge of the images that the ResNet sees, in pixels."""

    grid: int = Field(default=7, ge=1)
    """Its features are averaged to grid x grid regions."""

    min_frequency: int = Field(default=2, ge=1)
    """Rarer words are ``<unk>``."""

    embed_dim: int = Field(default=256, ge=1)
    """Of the words."""

    word_vectors: WordVectors | None = None
    """Of embed_dim numbers, to begin with; words that are not among them begin with random ones."""

    hidden_dim: int = Field(default=256, ge=1)
    """Of the LSTM."""

    attention_dim: int | None = Field(default=None, ge=1)
    """Of Show, Attend and Tell's attention; null scores a region by one linear map, as the published study does."""

    gated: bool = False
    """Show, Attend and Tell's gate, which weighs what is seen against what is already said."""

    dropout: float = Field(default=0.5, ge=0, lt=1)

    def absolute(self) -> NewLstmCaptioner:
        """The same, for workers of whatever working directory."""
        if isinstance(self.encoder, NewResNet):
            return self
        encoder = self.encoder.model_copy(update={"path": absolute_source(self.encoder.path)})
        return self.model_copy(update={"encoder": encoder})

    def make_vocabulary(self, rows: Rows, split: str, uri: str) -> None:
        """Write that of a split's captions, unless one lies there.

        Raises:
            UserError: no word is frequent enough.
        """
        if storage.exists(storage.join(uri, "tokenizer.json")):
            return
        counts = count_split_words(rows, split)
        vocabulary = make_vocabulary(counts, self.min_frequency)
        if len(vocabulary) == len(SPECIAL_TOKENS):
            raise UserError(
                f"task.rows = {rows.uri}: no word of split {split} occurs {self.min_frequency} times "
                "(model.min_frequency)"
            )
        with tempfile.TemporaryDirectory(prefix="raycap-") as folder:
            vocabulary.save_pretrained(folder)
            storage.upload_directory(folder, uri, last="tokenizer.json")
        known = len(vocabulary) - len(SPECIAL_TOKENS)
        say(f"vocabulary: {known:,} of {len(counts):,} words, and {len(SPECIAL_TOKENS)} special tokens")

    def first_embeddings(self, vocabulary_uri: str) -> dict[int, np.ndarray]:
        """The word vectors of the vocabulary's words, (embed_dim,) each, by word id."""
        if self.word_vectors is None:
            return {}
        ids = load_vocabulary(vocabulary_uri).get_vocab()
        words = [word for word in ids if word not in SPECIAL_TOKENS]
        vectors = read_word_vectors(self.word_vectors, words, self.embed_dim, "task.model.word_vectors")
        say(f"word vectors: of {len(vectors):,} of the vocabulary's {len(words):,} words; the others begin at random")
        return {ids[word]: vector for word, vector in vectors.items()}

    def build(self, vocabulary: PreTrainedTokenizerBase, first_embeddings: dict[int, np.ndarray]) -> CaptioningLstm:
        """With random weights but for the encoder's, if it is a trained one, and the embeddings given."""
        encoder = ResNetRegions(self.encoder.build(), self.image_size, self.grid)
        decoder = LstmCaptioner(
            len(vocabulary),
            self.embed_dim,
            self.hidden_dim,
            encoder.embed_dim,
            attention_dim=self.attention_dim,
            gated=self.gated,
            dropout=self.dropout,
        )
        with torch.no_grad():
            for word, vector in first_embeddings.items():
                decoder.embedding.weight[word] = torch.from_numpy(vector)
        return CaptioningLstm(encoder, decoder, vocabulary)


class PretrainedLstmCaptioner(Config):
    """A captioner to train further: the second stage of a fine-tuning, say, with its encoder set free."""

    kind: Literal["pretrained"] = "pretrained"
    path: str
    """Model directory or s3:// prefix."""

    def absolute(self) -> PretrainedLstmCaptioner:
        """The same, for workers of whatever working directory."""
        return self.model_copy(update={"path": absolute_source(self.path)})


def load_vocabulary(uri: str) -> PreTrainedTokenizerBase:
    """What lies there."""
    with storage.local_directory(uri) as directory:
        return PreTrainedTokenizerFast.from_pretrained(directory)
