"""What a sweep is: the training that all trials share, what differs among them, and how it is searched."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from raycap.batch.annealing import Annealing
from raycap.config import Config, error_lines
from raycap.data.corruptions import Clean, Corruption
from raycap.job import JobConfig
from raycap.models.decoding import Decoding
from raycap.sweep.space import Domain
from raycap.train.config import InPlace, TrainConfig
from raycap.train.contrastive_divergence import ContrastiveDivergenceTraining
from raycap.train.embeddings import StoredFeatures

# What all trials must have in common to be comparable, or what a trial has no say in.
_SHARED = (
    "output", "epochs", "validate_every_epochs", "checkpoint_every_steps", "num_workers", "cpus_per_worker",
    "torch_threads", "use_gpu", "overwrite", "keep_checkpoints", "max_failures", "readers_per_worker",
    "strategy.kind", "strategy.shard", "task.kind", "task.features", "task.granularity", "task.train_split",
    "task.validation_split",
)  # fmt: skip


class Asha(Config):
    """Stops trials that are behind the others after as many epochs (Li et al. 2020, ASHA)."""

    kind: Literal["asha"] = "asha"

    grace_epochs: int = Field(default=1, ge=1)
    """No trial is stopped before."""

    reduction_factor: float = Field(default=3, gt=1)
    """One in so many goes on at each rung; rungs lie at grace_epochs times its powers."""


class EveryEpoch(Config):
    """Trains every trial to its end."""

    kind: Literal["none"] = "none"


class CaptionObjective(Config):
    """Captions by the refined embeddings of the most likely trials, beside plain BLIP's."""

    rows: str
    """Rows of jobs/ingest.py."""

    model: str
    """The BLIP that made the feature store: directory, s3:// prefix or hub name."""

    split: str = "dev"

    max_images: int | None = Field(default=None, ge=1)
    """The first so many images of the split; null is all."""

    candidates: int = Field(default=4, ge=1)
    """So many of the trials trained to the end, the most likely ones, are captioned."""

    gates: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(0.25, 0.5, 1.0), min_length=1)
    """Shares of the RBM at which each candidate is captioned."""

    corruptions: tuple[Corruption, ...] = Field(default=(Clean(),), min_length=1)
    """Ways to spoil the images; CIDEr on the first of them decides."""

    decoding: Decoding = Decoding()

    num_workers: int = Field(default=1, ge=1)
    """Models that caption at once."""

    cpus_per_worker: float = Field(default=0.5, gt=0)
    """CPUs that each reserves; half a CPU must remain for decoding images."""

    @field_validator("gates")
    @classmethod
    def _distinct(cls, gates: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(gates)) < len(gates):
            raise ValueError(f"a gate stands twice in {list(gates)}; leave one out")
        return gates


class SweepConfig(JobConfig):
    """A search for the RBM of the highest likelihood. ``output`` gets trials.csv, best.yaml (which
    jobs/train.py takes), report.html and, in trials/, each trial's model and history."""

    base: TrainConfig
    """The training of every trial, as jobs/train.py takes it but without ``output``: a task of kind
    contrastive_divergence that reads a feature store, trained in_place (the default here) by one worker."""

    space: dict[str, Domain] = Field(min_length=1)
    """What differs: dotted keys of ``base`` (task.num_hidden), each with a kind (choice with values; uniform,
    log_uniform or integer with low and high)."""

    num_trials: int = Field(default=20, ge=1)

    search: Literal["random", "bayesian"] = "bayesian"
    """bayesian: each trial is drawn where the ones before were good (Bergstra et al. 2011, TPE)."""

    scheduler: Asha | EveryEpoch = Field(default=Asha(), discriminator="kind")

    annealing: Annealing = Annealing()
    """At each validation; the chosen trial is measured anew with four times the betas."""

    max_validation_tokens: int = Field(default=20_000, ge=1)
    """Tokens on which the likelihood is measured: some of each image of the validation split."""

    captions: CaptionObjective | None = None
    """The second objective: of the trials whose likelihoods the measurement does not tell apart, the one with the best
    captions is chosen. null leaves the choice to the likelihood alone."""

    cpus_per_trial: float = Field(default=1.0, gt=0)
    """What each trial reserves in Ray."""

    use_gpu: bool = False
    """One GPU for each trial."""

    max_concurrent_trials: int | None = Field(default=None, ge=1)
    """Trials at once; by default as many as the cluster has room for."""

    seed: int = Field(default=0, ge=0)
    """Of the search and of the annealing; the trainings' own is base.seed."""

    @field_validator("base", mode="before")
    @classmethod
    def _complete_base(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "output" in value:
            raise ValueError("output is set by the sweep; leave it out")
        return {"output": "", "strategy": {"kind": "in_place"}} | value

    @field_validator("base")
    @classmethod
    def _fits_a_trial(cls, base: TrainConfig) -> TrainConfig:
        if not isinstance(base.task, ContrastiveDivergenceTraining):
            raise ValueError(f"task.kind ({base.task.kind}) must be contrastive_divergence; likelihood is an RBM's")
        if not isinstance(base.task.features, StoredFeatures):
            raise ValueError(f"task.features.kind ({base.task.features.kind}) must be store; run jobs/extract.py first")
        if base.task.granularity != "token":
            raise ValueError(f"task.granularity ({base.task.granularity}) must be token; likelihoods are of tokens")
        if not isinstance(base.strategy, InPlace):
            raise ValueError(f"strategy.kind ({base.strategy.kind}) must be in_place")
        if base.num_workers != 1:
            raise ValueError(f"num_workers ({base.num_workers}) must be 1, as a trial has one; leave it out")
        return base

    @model_validator(mode="after")
    def _space_fits_base(self) -> SweepConfig:
        errors = [
            InitErrorDetails(type=PydanticCustomError("space", "{text}", {"text": text}), loc=("space", key), input=v)
            for key, domain in self.space.items()
            for v, text in self._refusals(key, domain)
        ]
        if errors:
            raise ValidationError.from_exception_data(type(self).__name__, errors)
        return self

    def _refusals(self, key: str, domain: Domain) -> list[tuple[Any, str]]:
        """The first value that the training's configuration refuses there, and why."""
        limits = domain.limits()
        if any(key == shared or key.startswith(shared + ".") for shared in _SHARED):
            return [(limits[0], "is the same for all trials; set it under base, or leave it out")]
        for value in limits:
            try:
                self.trial_config({key: value})
            except ValidationError as error:
                detail, line = error.errors()[0], error_lines(TrainConfig, error)[0]
                return [(value, line.partition(": ")[2] if detail["type"] == "extra_forbidden" else detail["msg"])]
            except TypeError:
                return [(value, "its parent is a plain value and has no keys; give a key of base")]
        return []

    @property
    def features(self) -> str:
        """The feature store that all trials read."""
        task = self.base.task
        assert isinstance(task, ContrastiveDivergenceTraining), "see _fits_a_trial"
        assert isinstance(task.features, StoredFeatures), "see _fits_a_trial"
        return task.features.path

    def trial_config(self, settings: dict[str, Any], output: str = "") -> TrainConfig:
        """The training of one trial, by itself.

        Args:
            settings: values by the dotted keys of ``space``.
            output: of the training.

        Raises:
            ValidationError: the settings do not go together.
        """
        values = copy.deepcopy(self.base.model_dump(mode="json"))
        for key, value in settings.items():
            *parents, last = key.split(".")
            node = values
            for part in parents:
                node = node.setdefault(part, {})
            node[last] = value
        shared = {"output": output, "use_gpu": self.use_gpu, "cpus_per_worker": self.cpus_per_trial}
        return TrainConfig.model_validate(values | shared)
