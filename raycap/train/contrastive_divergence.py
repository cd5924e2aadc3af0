"""Training an RBM on image embeddings: its settings, and what it adds to the common loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from raycap.checkpoint.directory import absolute_source
from raycap.checkpoint.identity import EncoderId
from raycap.checkpoint.refiner import save_refiner
from raycap.config import Config
from raycap.data.features import (
    LEAST_SCALE,
    FeatureStore,
    covariance_images,
    open_store,
    positive_scale,
    token_covariance,
)
from raycap.data.rows import Rows, open_rows
from raycap.models.randomness import KeyedGenerator
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner
from raycap.models.samplers import ContrastiveDivergence, ParallelTempering, PersistentContrastiveDivergence
from raycap.models.sharded_rbm import ShardedGaussianBernoulliRBM, VisibleShard
from raycap.predictor import EncoderStage
from raycap.progress import say
from raycap.tasks.contrastive_divergence import ContrastiveDivergenceTask
from raycap.train.blocks import Source
from raycap.train.embeddings import (
    OnlineEmbeddings,
    OnlineFeatures,
    StoredFeatures,
    measure_statistics,
)
from raycap.train.recipe import HopelessRunError, Measured, Share, Validation, decay_matrices
from raycap.train.stored_embeddings import StoredEmbeddings


class ContrastiveDivergenceTraining(Config):
    """Trains a Gaussian-Bernoulli RBM."""

    kind: Literal["contrastive_divergence"] = "contrastive_divergence"
    features: Annotated[StoredFeatures | OnlineFeatures, Field(discriminator="kind")]
    train_split: str = "train"
    validation_split: str = "dev"

    granularity: Literal["token", "image"] = "token"
    """One RBM for all tokens, with as many visible units as a token has numbers; or one over an image's tokens at
    once (443,136 for BLIP-base), which strategy.shard spreads over the workers."""

    normalisation: Literal["standardise", "whiten"] = "standardise"
    """Give each embedding dimension mean 0 and variance 1; or take out their correlations, too (from a store)."""

    num_hidden: int = Field(default=1024, ge=1)
    """Hidden units."""

    sigma: float = Field(default=0.5, gt=0)
    """Noise of the visible units, in standard deviations of the data; the first value if learned."""

    learn_variance: bool = False
    """Learn sigma of each visible unit."""

    sigma_bounds: tuple[float, float] = (0.05, 5.0)
    """A learned sigma stays between these."""

    negatives: Literal["cd", "pcd", "parallel_tempering"] = "cd"
    """Chains start at the data (cd), go on from step to step (pcd), or also swap among temperatures."""

    gibbs_steps: int = Field(default=1, ge=1)
    """k: sweeps of the chains in each step."""

    num_temperatures: int = Field(default=8, ge=2)
    """Of parallel tempering, from a Gaussian with the data's mean and variance to the RBM."""

    sparsity_target: float = Field(default=0.1, gt=0, lt=1)
    """Share of the data for which a hidden unit should be on, if sparsity_cost is not 0."""

    sparsity_cost: float = Field(default=0.0, ge=0)
    """How strongly hidden units are held to sparsity_target; 0 is not at all."""

    variance_learning_rate_scale: float = Field(default=0.1, gt=0)
    """Share of the learning rate that log_variance gets."""

    @model_validator(mode="after")
    def _sigma_within_bounds(self) -> ContrastiveDivergenceTraining:
        if self.learn_variance and not self.sigma_bounds[0] <= self.sigma <= self.sigma_bounds[1]:
            raise ValueError(f"sigma ({self.sigma}) must lie within sigma_bounds {self.sigma_bounds}")
        return self

    @model_validator(mode="after")
    def _whitens_stored_features(self) -> ContrastiveDivergenceTraining:
        if self.normalisation == "whiten" and not isinstance(self.features, StoredFeatures):
            raise ValueError(f"normalisation (whiten) needs features.kind store, not {self.features.kind}")
        return self

    def check(self) -> None:
        """See that the data are there.

        Raises:
            UserError: they are not, or have no such split.
        """
        data = self._open()
        data.chunks(self.train_split, "task.train_split")
        data.chunks(self.validation_split, "task.validation_split")

    def _open(self) -> FeatureStore | Rows:
        if isinstance(self.features, StoredFeatures):
            return open_store(self.features.path, "task.features.path")
        return open_rows(self.features.rows, "task.features.rows")

    def prepare(self, output: str) -> ContrastiveDivergenceRecipe:  # noqa: ARG002 - recipes share this signature
        """Measure the statistics where no store holds them."""
        if isinstance(self.features, StoredFeatures):
            store = open_store(self.features.path, "task.features.path")
            encoder = EncoderId(store.encoder_name, store.encoder_fingerprint)
            mean, scale = np.array(store.mean), positive_scale(np.array(store.std))
            if self.normalisation == "whiten":
                say(f"measuring the covariance of the embeddings of at most {covariance_images(store):,} images")
                scale = _square_root(token_covariance(store, self.train_split))
            return ContrastiveDivergenceRecipe(self, store, encoder, mean, scale, store.num_tokens)
        rows = open_rows(self.features.rows, "task.features.rows")
        features = self.features.model_copy(update={"model": absolute_source(self.features.model)})
        stage = EncoderStage.from_pretrained(features.model, features.precision)
        say(f"measuring mean and scale of the embeddings of {self.features.statistics_images} images")
        mean, std = measure_statistics(rows, self.train_split, stage, features)
        settings = self.model_copy(update={"features": features})
        scale = positive_scale(std)
        return ContrastiveDivergenceRecipe(settings, rows, stage.id, mean, scale, stage.encoder.num_tokens)


class ContrastiveDivergenceRecipe:
    """See :class:`raycap.train.recipe.Recipe`."""

    loss_name = "contrastive_divergence"
    score_name: str | None = None
    score_order: Literal["min", "max"] = "min"
    stopping_metric = "free_energy_gap"
    compares_training = True  # free energies are known up to log Z only: their difference tells

    def __init__(
        self,
        settings: ContrastiveDivergenceTraining,
        data: FeatureStore | Rows,
        encoder: EncoderId,
        mean: np.ndarray,
        scale: np.ndarray,
        num_tokens: int,
    ) -> None:
        self.settings, self.data, self.encoder = settings, data, encoder
        self.train_split, self.validation_split = settings.train_split, settings.validation_split
        self.mean, self.scale, self.num_tokens = mean, scale, num_tokens

    def build_task(self, seed: int, first_sample: int, share: Share) -> ContrastiveDivergenceTask:
        settings = self.settings
        sees_images = settings.granularity == "image"
        units = settings.num_hidden, settings.sigma, settings.learn_variance, settings.sigma_bounds
        rbm: GaussianBernoulliRBM
        if share.model_rank is not None:
            shard = self._shard(share.model_rank, share.model_workers)
            rbm = ShardedGaussianBernoulliRBM(shard, *units, seed=seed)
        else:
            rbm = GaussianBernoulliRBM(len(self.mean) * (self.num_tokens if sees_images else 1), *units)
        refiner = RbmRefiner(rbm, torch.from_numpy(self.mean), torch.from_numpy(self.scale), sees_images)
        generator = KeyedGenerator(seed, first_sample)
        sampler: ContrastiveDivergence
        if settings.negatives == "parallel_tempering":
            sampler = ParallelTempering(generator, settings.gibbs_steps, settings.num_temperatures)
        elif settings.negatives == "pcd":
            sampler = PersistentContrastiveDivergence(generator, settings.gibbs_steps)
        else:
            sampler = ContrastiveDivergence(generator, settings.gibbs_steps)
        return ContrastiveDivergenceTask(refiner, sampler, settings.sparsity_target, settings.sparsity_cost)

    def _shard(self, rank: int, num_workers: int) -> VisibleShard:
        if num_workers > self.num_tokens:
            raise HopelessRunError(
                f"num_workers = {num_workers}: an image has {self.num_tokens} tokens, of which each worker holds at "
                f"least one; set at most {self.num_tokens}"
            )
        return VisibleShard(rank, num_workers, self.num_tokens, len(self.mean))

    def source(self, task: ContrastiveDivergenceTask, device: torch.device) -> Source:  # noqa: ARG002
        tokens = None
        if self.settings.granularity == "image":
            rbm = task.refiner.rbm
            tokens = rbm.shard.tokens if isinstance(rbm, ShardedGaussianBernoulliRBM) else slice(None)
        if isinstance(self.data, FeatureStore):
            return StoredEmbeddings(self.data, tokens)
        assert isinstance(self.settings.features, OnlineFeatures)
        return OnlineEmbeddings(self.data, self.settings.features, tokens)

    def parameter_groups(self, task: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        assert isinstance(task, ContrastiveDivergenceTask)
        log_variance = task.refiner.rbm.log_variance
        groups = decay_matrices(task, weight_decay)
        if log_variance.requires_grad:
            groups[1]["params"] = [p for p in groups[1]["params"] if p is not log_variance]
            scale = self.settings.variance_learning_rate_scale
            groups.append({"params": [log_variance], "weight_decay": 0.0, "lr_scale": scale})
        return groups

    def measure(self, task: ContrastiveDivergenceTask, device: torch.device, validation: Validation) -> Measured:  # noqa: ARG002
        return Measured({})

    def save_model(self, task: ContrastiveDivergenceTask, directory: Path) -> None:
        save_refiner(directory, task.refiner, self.encoder)


def _square_root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root, with eigenvalues too small to be divided by raised, (D, D)."""
    values, vectors = np.linalg.eigh(covariance)
    root: np.ndarray = (vectors * np.sqrt(np.maximum(values, LEAST_SCALE**2 * values.max()))) @ vectors.T
    return root
