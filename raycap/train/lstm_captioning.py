"""Training the LSTM captioner: its settings, and what it adds to the common loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import PreTrainedTokenizerBase, ResNetModel

from raycap import storage
from raycap.checkpoint.identity import encoder_fingerprint
from raycap.checkpoint.lstm_captioner import CaptioningLstm, load_lstm_captioner, save_lstm_captioner
from raycap.config import Config
from raycap.data.features import open_store
from raycap.data.rows import Chunk, Rows, open_rows, read_chunk
from raycap.data.vocabulary import encode_references
from raycap.data.word_vectors import read_word_vectors
from raycap.errors import UserError
from raycap.metrics.cider import CorpusCider
from raycap.models.lstm_captioner import LstmCaptioner
from raycap.models.lstm_decoding import write_captions
from raycap.models.resnet_regions import ResNetRegions
from raycap.progress import say
from raycap.tasks.lstm_captioning import LstmCaptioningTask, Reward, regions_of
from raycap.train.blocks import to_tensors
from raycap.train.caption_validation import Captioned, CaptionValidation, broadcast_buffers, caption_chunks, score
from raycap.train.cropped_images import CroppedImages
from raycap.train.lstm_model import NewLstmCaptioner, PretrainedLstmCaptioner, PretrainedResNet, load_vocabulary
from raycap.train.recipe import Measured, Sample, Share, Validation, decay_matrices
from raycap.train.stored_regions import StoredRegions, pair_chunks

_SAMPLES = 8


class OnlineRegions(Config):
    """Regions that the encoder makes of the images in each epoch, of drawn windows in training."""

    kind: Literal["online"] = "online"


class RegionStore(Config):
    """Regions that a frozen encoder made once: one view of each image, the whole, in half precision."""

    kind: Literal["store"] = "store"

    path: str
    """Directory or s3:// prefix of jobs/extract.py with embeddings: regions."""


class SelfCritical(Config):
    """Train by the CIDEr of drawn captions less that of the greedy one (Rennie et al. 2017). CIDEr's document
    frequencies are those of the training references; words that are not in the vocabulary count as one."""

    samples_per_image: int = Field(default=1, ge=1)
    """Captions drawn of each image of a batch."""

    max_words: int = Field(default=20, ge=1)
    """Longest drawn caption."""


class LstmCaptioningTraining(Config):
    """Trains a ResNet and an LSTM with attention on rows."""

    kind: Literal["lstm_captioning"] = "lstm_captioning"

    rows: str
    """Directory or s3:// prefix of jobs/ingest.py."""

    train_split: str = "train"
    validation_split: str = "dev"

    model: Annotated[NewLstmCaptioner | PretrainedLstmCaptioner, Field(discriminator="kind")] = NewLstmCaptioner()

    regions: Annotated[OnlineRegions | RegionStore, Field(discriminator="kind")] = OnlineRegions()
    """Where the regions come from; a store needs freeze_encoder."""

    freeze_encoder: bool = False
    """Train the decoder alone; the encoder's running statistics stay, too."""

    unfreeze_encoder_after_epochs: int | None = Field(default=None, ge=1)
    """Fine-tune in two stages: so many epochs as with freeze_encoder, then both; null keeps to freeze_encoder."""

    encoder_learning_rate_scale: float = Field(default=1.0, gt=0)
    """Of the encoder's learning rate, beside the decoder's."""

    resize: int = Field(default=256, ge=32)
    """Edge to which training images are resized before a window of the model's image_size is drawn from each, mirrored
    half the time. All other images are seen whole, at image_size."""

    max_tokens: int = Field(default=30, ge=3)
    """Longest caption, its start and end included; longer ones are cut."""

    coverage_weight: float = Field(default=0.0, ge=0)
    """Of the loss that has every region attended to once (doubly stochastic attention)."""

    scheduled_sampling: float = Field(default=0.0, ge=0, le=1)
    """Probability of reading, in training, the model's own word in place of the caption's."""

    self_critical: SelfCritical | None = None
    """Learn from a reward, beginning with a trained model (model: {kind: pretrained}); null learns from the captions'
    own words."""

    captions: CaptionValidation | None = CaptionValidation()
    """Captions of validation images after each epoch, by which the best model is chosen; null chooses it by the lowest
    validation loss."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> LstmCaptioningTraining:
        if self.freeze_encoder and self.unfreeze_encoder_after_epochs is not None:
            raise ValueError(
                f"unfreeze_encoder_after_epochs ({self.unfreeze_encoder_after_epochs}): freeze_encoder keeps the "
                "encoder frozen for good; leave one of them out"
            )
        if self.self_critical is not None:
            self._require_trained()
        if isinstance(self.regions, RegionStore) and not self.freeze_encoder:
            raise ValueError("regions.kind (store): the regions of a trained encoder change; set freeze_encoder: true")
        if isinstance(self.model, NewLstmCaptioner):
            _require_room(self.resize, self.model.image_size)
        return self

    def _require_trained(self) -> None:
        if not isinstance(self.model, PretrainedLstmCaptioner):
            raise ValueError(
                f"self_critical: needs a trained model, not model.kind ({self.model.kind}); set pretrained"
            )
        if self.captions is None:
            raise ValueError("captions (null): by them the best model is chosen with self_critical; leave it out")
        for name in ("coverage_weight", "scheduled_sampling"):
            if value := getattr(self, name):
                raise ValueError(f"{name} ({value}): of no use with self_critical, which draws captions; leave it out")

    def check(self) -> None:
        """See that the data are there, and whatever the model begins with.

        Raises:
            UserError: they are not, or do not fit.
        """
        rows = open_rows(self.rows, "task.rows")
        rows.chunks(self.train_split, "task.train_split")
        rows.chunks(self.validation_split, "task.validation_split")
        if isinstance(self.model, PretrainedLstmCaptioner):
            encoder = load_lstm_captioner(self.model.path, "task.model.path").encoder
            try:
                _require_room(self.resize, encoder.image_size)
            except ValueError as error:
                raise UserError(f"task.{error}") from None
            self._check_store(rows, encoder)
            return
        if isinstance(self.model.encoder, PretrainedResNet):
            resnet = self.model.encoder.build()
            encoder = ResNetRegions(resnet, self.model.image_size, self.model.grid)
            self._check_store(rows, encoder)
        elif isinstance(self.regions, RegionStore):
            raise UserError(
                "task.regions.kind = store: task.model.encoder is a new one, which made no store; "
                "give task.model.encoder {kind: pretrained, path: ...}"
            )
        if self.model.word_vectors is not None:
            read_word_vectors(self.model.word_vectors, (), self.model.embed_dim, "task.model.word_vectors")

    def _check_store(self, rows: Rows, encoder: ResNetRegions) -> None:
        if isinstance(self.regions, RegionStore):
            store = open_store(self.regions.path, "task.regions.path", encoder_fingerprint(encoder))
            pair_chunks(rows, store, (self.train_split, self.validation_split))

    def prepare(self, output: str) -> LstmCaptioningRecipe:
        """Make the vocabulary, and read its words' vectors, where the model is new."""
        rows = open_rows(self.rows, "task.rows")
        regions = self.regions
        if isinstance(regions, RegionStore):
            regions = regions.model_copy(update={"path": storage.absolute(regions.path)})
        settings = self.model_copy(update={"model": self.model.absolute(), "regions": regions})
        if isinstance(settings.model, PretrainedLstmCaptioner):
            recipe = LstmCaptioningRecipe(settings, rows, settings.model.path)
            if self.self_critical is not None:
                recipe.learn_from_reward(self.self_critical)
            return recipe
        vocabulary_uri = storage.join(output, "tokenizer")
        settings.model.make_vocabulary(rows, self.train_split, vocabulary_uri)
        first_embeddings = settings.model.first_embeddings(vocabulary_uri)
        return LstmCaptioningRecipe(settings, rows, vocabulary_uri, first_embeddings)


class LstmCaptioningRecipe:
    """See :class:`raycap.train.recipe.Recipe`.

    Args:
        vocabulary_uri: where the vocabulary of a new model lies.
        first_embeddings: of a new model, vectors by word id.
    """

    score_order: Literal["min", "max"]
    stopping_metric = "validation_caption_loss"
    compares_training = False

    def __init__(
        self,
        settings: LstmCaptioningTraining,
        rows: Rows,
        vocabulary_uri: str,
        first_embeddings: dict[int, np.ndarray] | None = None,
    ) -> None:
        self.settings, self.rows, self.vocabulary_uri = settings, rows, vocabulary_uri
        self.first_embeddings = first_embeddings or {}
        self.train_split, self.validation_split = settings.train_split, settings.validation_split
        self.loss_name = "total_loss" if settings.coverage_weight else "caption_loss"
        self.reward: Reward | None = None
        self.num_references = 0
        self.score_name: str | None = "cider" if settings.captions else "caption_loss"
        self.score_order = "max" if settings.captions else "min"

    def learn_from_reward(self, settings: SelfCritical) -> None:
        """Count the n-grams of the training references.

        Raises:
            UserError: the vocabulary is too large for that.
        """
        chunks = self.rows.chunks(self.train_split)
        captions = [texts for chunk in chunks for texts in read_chunk(chunk, ["captions"])["captions"].to_pylist()]
        self.num_references, vocabulary = max(map(len, captions)), self._vocabulary()
        references = encode_references(vocabulary, captions, self.num_references, self.settings.max_tokens)
        try:
            cider = CorpusCider(references, len(vocabulary))
        except ValueError as error:
            raise UserError(f"task.model.path = {self.vocabulary_uri}: {error}; raise min_frequency") from None
        self.reward = Reward(cider, settings.samples_per_image, settings.max_words)
        self.loss_name = "self_critical_loss"
        say(f"self-critical: document frequencies of {len(captions):,} training images")

    def build_task(self, seed: int, first_sample: int, share: Share) -> LstmCaptioningTask:  # noqa: ARG002
        settings, model = self.settings, self._build()
        return LstmCaptioningTask(
            model.encoder,
            model.decoder,
            settings.freeze_encoder,
            settings.coverage_weight,
            settings.scheduled_sampling,
            settings.unfreeze_encoder_after_epochs,
            self.reward,
        )

    def source(self, task: LstmCaptioningTask, device: torch.device) -> CroppedImages | StoredRegions:  # noqa: ARG002
        settings = self.settings
        if isinstance(settings.regions, OnlineRegions):
            return self._images(task)
        store = open_store(settings.regions.path, "task.regions.path")
        splits = (settings.train_split, settings.validation_split)
        return StoredRegions(self.rows, store, splits, self._vocabulary(), settings.max_tokens, self.num_references)

    def _images(self, task: LstmCaptioningTask) -> CroppedImages:
        settings = self.settings
        return CroppedImages(
            self.rows,
            self._vocabulary(),
            augmented_split=settings.train_split,
            resize=settings.resize,
            image_size=task.encoder.image_size,
            max_tokens=settings.max_tokens,
            num_references=self.num_references,
        )

    def parameter_groups(self, task: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        assert isinstance(task, LstmCaptioningTask)
        scale = self.settings.encoder_learning_rate_scale
        of_encoder = [group | {"lr_scale": scale} for group in decay_matrices(task.encoder, weight_decay)]
        return decay_matrices(task.decoder, weight_decay) + of_encoder

    def measure(self, task: LstmCaptioningTask, device: torch.device, validation: Validation) -> Measured:
        """Captions of validation images and their scores, by the very model that would be published now."""
        settings = self.settings.captions
        if settings is None or not settings.due(validation):
            return Measured({})
        encoder, decoder = _copy(task, device, validation.num_workers)
        source = self.source(task, device)

        @torch.inference_mode()
        def write(chunk: Chunk, some: slice) -> list[str]:
            views = {name: tensor.to(device) for name, tensor in to_tensors(source.views(chunk, some)).items()}
            captions = write_captions(decoder, regions_of(encoder, views), settings.decoding)
            return [source.vocabulary.decode(best[0].token_ids) if best else "" for best in captions]

        chunks = self.rows.chunks(self.validation_split)
        captioned = caption_chunks(chunks, write, settings, validation)
        return Measured(score(captioned), self._samples(captioned, task) if validation.rank == 0 else ())

    def _samples(self, captioned: dict[str, Captioned], task: LstmCaptioningTask) -> tuple[Sample, ...]:
        chunk = self.rows.chunks(self.validation_split)[0]
        some = slice(0, min(_SAMPLES, len(captioned), chunk.num_rows))
        images = self._images(task).views(chunk, some)["images"]
        shown = zip(images, captioned.items(), strict=False)
        return tuple(Sample(name, image, of_image.caption) for image, (name, of_image) in shown)

    def save_model(self, task: LstmCaptioningTask, directory: Path) -> None:
        save_lstm_captioner(directory, CaptioningLstm(task.encoder, task.decoder, self._vocabulary()))

    def _vocabulary(self) -> PreTrainedTokenizerBase:
        return load_vocabulary(self.vocabulary_uri)

    def _build(self) -> CaptioningLstm:
        model = self.settings.model
        if isinstance(model, PretrainedLstmCaptioner):
            return load_lstm_captioner(model.path)
        return model.build(self._vocabulary(), self.first_embeddings)


def _copy(task: LstmCaptioningTask, device: torch.device, num_workers: int) -> tuple[ResNetRegions, LstmCaptioner]:
    """The model as the first worker has it, apart from whatever a strategy has tied to the one in training."""
    trained = task.encoder
    encoder = ResNetRegions(
        ResNetModel(trained.resnet.config), trained.image_size, trained.grid, trained.image_mean, trained.image_std
    )
    decoder = LstmCaptioner(**task.decoder.settings)
    encoder.load_state_dict(trained.state_dict())
    decoder.load_state_dict(task.decoder.state_dict())
    encoder.to(device)
    broadcast_buffers(encoder, num_workers)
    return encoder.eval(), decoder.to(device).eval()


def _require_room(resize: int, image_size: int) -> None:
    if resize < image_size:
        raise ValueError(f"resize = {resize}: smaller than the model's image_size ({image_size}); set at least that")
