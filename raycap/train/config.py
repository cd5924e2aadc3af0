"""What a training run is: task, optimiser, workers, checkpoints."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raycap.config import Config
from raycap.hardware import Precision
from raycap.job import JobConfig
from raycap.train.captioning import CaptioningTraining
from raycap.train.contrastive_divergence import ContrastiveDivergenceTraining
from raycap.train.lstm_captioning import LstmCaptioningTraining
from raycap.train.mlflow_tracking import MlflowTracking


class AdamW(Config):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    """Of matrices; biases and norms have none."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)


class Sgd(Config):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: float = Field(default=1e-2, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    """Of matrices; biases and norms have none."""
    momentum: float = Field(default=0.9, ge=0, lt=1)


class Schedule(Config):
    """Learning rate over steps: linear warm-up, then a decay to zero, by stairs, or none."""

    kind: Literal["constant", "linear", "cosine", "stairs"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)

    stair_epochs: int = Field(default=10, ge=1)
    """Of kind stairs: epochs (from the first on) between two steps down."""

    stair_factor: float = Field(default=0.5, gt=0, le=1)
    """Of kind stairs: what the learning rate is multiplied by at each."""

    def factor(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """Share of the learning rate at a step (0-based)."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.kind == "stairs":
            return self.stair_factor ** (step // (self.stair_epochs * steps_per_epoch))
        progress = min((step - self.warmup_steps) / max(total_steps - self.warmup_steps, 1), 1.0)
        if self.kind == "constant":
            return 1.0
        return 1.0 - progress if self.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


class Ddp(Config):
    """Every worker holds the whole model; gradients are averaged (torch DistributedDataParallel)."""

    kind: Literal["ddp"] = "ddp"


class DeepSpeed(Config):
    """DeepSpeed ZeRO (Rajbhandari et al. 2020)."""

    kind: Literal["deepspeed"] = "deepspeed"
    stage: Literal[0, 1, 2, 3] = 2
    """1 shards the optimiser's state over the workers, 2 also gradients, 3 also parameters."""


class InPlace(Config):
    """For an RBM: gradients without autograd, added up by one all-reduce; the fastest way."""

    kind: Literal["in_place"] = "in_place"
    centred: bool = False
    """Use the centred gradient (Melchior, Fischer and Wiskott 2016)."""
    shard: Literal["data", "visible_units"] = "data"
    """What the workers share out: the samples of a step, each worker holding the whole RBM; or, with task.granularity
    image, the RBM's visible units, each worker seeing all samples."""


class EarlyStopping(Config):
    """Ends a run that has ceased to gain: in validation loss, or for an RBM in the gap between the free
    energies of validation and training data, which widens as the RBM learns the training data by heart."""

    patience: int = Field(default=3, ge=1)
    """Validations without gain after which training stops."""
    min_delta: float = Field(default=0.0, ge=0)
    """Least gain that counts; for an RBM the widening, in nats, that is borne."""


class TrainConfig(JobConfig):
    """A training run. ``output`` gets checkpoints, history.jsonl and, in model/, the model of the lowest
    validation loss (of an LSTM captioner that captions validation images the one of the highest CIDEr; of an RBM, whose
    loss is no measure, the newest)."""

    task: Annotated[
        CaptioningTraining | LstmCaptioningTraining | ContrastiveDivergenceTraining, Field(discriminator="kind")
    ]
    """What is trained, on what."""

    epochs: int = Field(default=1, ge=1)

    batch_size_per_worker: int = Field(default=32, ge=1)
    """Samples of a step on one worker: images for captioning, embeddings (tokens) for an RBM."""

    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches added up before the optimiser steps."""

    optimizer: Annotated[AdamW | Sgd, Field(discriminator="kind")] = AdamW()
    schedule: Schedule = Schedule()

    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest gradient norm; null for none."""

    strategy: Annotated[Ddp | DeepSpeed | InPlace, Field(discriminator="kind")] = Ddp()

    precision: Precision = Precision.AUTO
    """Of the matrix products; parameters and optimiser stay in fp32."""

    seed: int = Field(default=0, ge=0)

    num_workers: int = Field(default=1, ge=0)
    """Training processes; 0 trains in the job's own process."""

    cpus_per_worker: float = Field(default=1.0, gt=0)
    """What each worker reserves in Ray."""

    torch_threads: int | None = Field(default=None, ge=1)
    """Threads of each worker; by default the machine's cores shared among its workers."""

    use_gpu: bool = False
    """One GPU for each worker."""

    readers_per_worker: int = Field(default=1, ge=0)
    """Ray Data tasks that read and decode ahead of each worker; with 0 it reads by itself, between its steps."""

    data_parts: int | None = Field(default=None, ge=1)
    """Parts into which the samples are dealt; by default one for each worker. With a number that several numbers of
    workers divide, each of these sees the same samples in the same steps, if the batches are as large together."""

    shuffle_chunks: int = Field(default=8, ge=1)
    """Chunks (of 64 images) that are read together and mixed; more mixes better and takes memory."""

    early_stopping: EarlyStopping | None = None
    """null trains for all epochs."""

    validate_every_epochs: int = Field(default=1, ge=1)
    """Epochs between two validations, each with a checkpoint; the last epoch has one anyway."""

    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps between two checkpoints within an epoch; each validation has one anyway."""

    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the best are kept; the newest always is."""

    log_every_steps: int = Field(default=10, ge=1)

    tensorboard: bool = True
    """Write losses, learning rate, validation scores and sample captions to ``output``/tensorboard, at each
    checkpoint."""

    mlflow: MlflowTracking | None = None
    """Write the same numbers to MLflow, too."""

    max_failures: int = Field(default=3, ge=0)
    """How often lost workers are replaced, each time from the last checkpoint."""

    overwrite: bool = False
    """Delete what another run left in ``output``."""

    @model_validator(mode="after")
    def _strategy_fits(self) -> TrainConfig:
        if isinstance(self.strategy, DeepSpeed) and self.num_workers == 0:
            raise ValueError(f"strategy.kind (deepspeed) needs num_workers ({self.num_workers}) of at least 1")
        if isinstance(self.strategy, InPlace) and not isinstance(self.task, ContrastiveDivergenceTraining):
            raise ValueError(f"strategy.kind (in_place) trains RBMs only, not {self.task.kind}; set it to ddp")
        if isinstance(self.task, LstmCaptioningTraining):
            self._require_stages(self.task)
        if isinstance(self.strategy, DeepSpeed) and isinstance(self.task, LstmCaptioningTraining):
            _require_shardable(self.task, self.strategy)
        if self.spreads_model:
            self._require_images()
        return self

    def _require_stages(self, task: LstmCaptioningTraining) -> None:
        after = task.unfreeze_encoder_after_epochs
        if after is not None and after >= self.epochs:
            raise ValueError(f"task.unfreeze_encoder_after_epochs ({after}) must be less than epochs ({self.epochs})")
        if task.self_critical is not None and self.early_stopping is not None:
            raise ValueError(
                "early_stopping: looks at the validation loss, which task.self_critical raises as captions get better; "
                "leave it out"
            )

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        if self.data_parts is None:
            return self
        if self.data_parts % self.data_workers:
            raise ValueError(f"data_parts ({self.data_parts}) must be a multiple of num_workers ({self.num_workers})")
        if self.batch_size_per_worker % (self.data_parts // self.data_workers):
            raise ValueError(
                f"batch_size_per_worker ({self.batch_size_per_worker}) must be a multiple of the parts of a worker, "
                f"{self.data_parts // self.data_workers}: data_parts ({self.data_parts}) over num_workers "
                f"({self.num_workers})"
            )
        return self

    @property
    def spreads_model(self) -> bool:
        """Whether each worker holds a part of the model and all see the same samples."""
        return isinstance(self.strategy, InPlace) and self.strategy.shard == "visible_units"

    @property
    def data_workers(self) -> int:
        """Workers among which the samples are shared out."""
        return 1 if self.spreads_model else max(self.num_workers, 1)

    def _require_images(self) -> None:
        assert isinstance(self.task, ContrastiveDivergenceTraining)
        field = "strategy.shard (visible_units)"
        if self.task.granularity != "image":
            raise ValueError(f"{field} needs task.granularity image, not {self.task.granularity}")
        if self.task.negatives == "parallel_tempering":
            raise ValueError(f"{field} cannot train with task.negatives (parallel_tempering); set it to cd or pcd")
        if self.num_workers == 0:
            raise ValueError(f"{field} needs num_workers ({self.num_workers}) of at least 1")


def _require_shardable(task: LstmCaptioningTraining, strategy: DeepSpeed) -> None:
    if task.unfreeze_encoder_after_epochs is not None:
        raise ValueError(
            "task.unfreeze_encoder_after_epochs: strategy.kind (deepspeed) shards what is trained from the first "
            "step; set it to ddp, or train in two runs"
        )
    if task.self_critical is not None and strategy.stage == 3:
        # Parameters are gathered in each step of the LSTM, and drawn captions differ in length.
        raise ValueError("task.self_critical: not with strategy.stage (3); set a lower one, or strategy.kind: ddp")
