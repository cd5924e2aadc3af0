"""The training loop that every model shares; this function runs in each Ray Train worker."""

from __future__ import annotations

import functools
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raycap import cluster, storage
from raycap.hardware import num_cores
from raycap.progress import Progress, say
from raycap.train.blocks import Batch, Block, Plan, Source, batches_per_epoch, plan_epoch, reading_order
from raycap.train.config import AdamW, DeepSpeed, InPlace, TrainConfig
from raycap.train.host import Host, RayTrainHost
from raycap.train.in_place import InPlaceStrategy
from raycap.train.mlflow_tracking import log_metrics
from raycap.train.recipe import HopelessRunError, Measured, Recipe, Sample, Share, Validation
from raycap.train.state import HISTORY, Place, load_state, save_state
from raycap.train.strategy import DdpStrategy, DeepSpeedStrategy, Losses, Strategy
from raycap.train.stream import BatchStream
from raycap.train.visible_sharding import VisibleShardingStrategy

ERROR = "error.json"

# Blocks that one Ray Data pipeline reads: a pipeline spans epochs, since starting one costs a second.
_BLOCKS_PER_PIPELINE = 1024


def train_worker(config: TrainConfig, recipe: Recipe) -> None:
    """Train from the last checkpoint, or from nothing, to the end.

    A hopeless run's error is left in ERROR for the driver: raised, it would only make Ray start the
    workers anew, ``max_failures`` times, to the same end.
    """
    host = RayTrainHost()
    try:
        Worker(config, recipe, host).run()
    except HopelessRunError as error:
        if host.rank == 0:
            storage.write_json(storage.join(config.output, ERROR), {"message": str(error)})


# Plans by what the evaluation is called.
_Evaluations = dict[str, Plan]


class Worker:
    """One of the processes that train a model together.

    Args:
        config: of the run.
        recipe: of the kind of training.
        host: who runs this process.
        measure: the trained task to further validation metrics; for a worker that trains alone.
    """

    def __init__(
        self,
        config: TrainConfig,
        recipe: Recipe,
        host: Host,
        measure: Callable[[Any], dict[str, float]] | None = None,
    ) -> None:
        self.config, self.recipe, self.host, self._measure = config, recipe, host, measure
        cluster.quiet()
        self.rank, self.num_workers, self.device = host.rank, host.num_workers, host.device
        torch.set_num_threads(config.torch_threads or max(1, num_cores() // host.local_workers))
        _seed_everything(config.seed)
        self.share = _share(config, self.rank, self.num_workers)
        first_sample = self.share.parts.start * self.share.samples_per_part
        self.task = recipe.build_task(config.seed, first_sample, self.share).train().to(self.device)
        self.source: Source = recipe.source(self.task, self.device)
        # The parameters above are the same on every worker; what is drawn from here on must differ.
        _seed_everything(config.seed + 1 + self.rank)
        sizes = {"num_parts": self.share.num_parts, "samples_per_part": self.share.samples_per_part}
        batches = batches_per_epoch(self.source, recipe.train_split, whole=False, **sizes)
        self.steps_per_epoch = batches // config.gradient_accumulation_steps
        self.evaluation_batches = {
            "validation": batches_per_epoch(self.source, recipe.validation_split, whole=True, **sizes),
            "train_sample": self._train_sample_batches(),
        }
        if self.steps_per_epoch == 0:
            raise HopelessRunError(
                f"batch_size_per_worker = {config.batch_size_per_worker}: a worker's share of split "
                f"{recipe.train_split} fills no step of {config.gradient_accumulation_steps} batches; "
                f"set a smaller one, or fewer workers"
            )
        self.total_steps = self.steps_per_epoch * config.epochs
        self.strategy = self._make_strategy()
        self.place = Place()
        self._skip = 0
        self._last_batch: Batch = {}

    def _make_strategy(self) -> Strategy:
        config, settings = self.config, self.config.optimizer
        groups = self.recipe.parameter_groups(self.task, settings.weight_decay)
        groups = [g | {"lr": settings.learning_rate * g.pop("lr_scale")} for g in groups if g["params"]]
        optimizer: torch.optim.Optimizer
        if isinstance(settings, AdamW):
            optimizer = torch.optim.AdamW(groups, betas=settings.betas, fused=True)
        else:
            optimizer = torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, fused=True)
        dtype = config.precision.dtype(self.device)
        common: dict[str, Any] = {
            "task": self.task,
            "optimizer": optimizer,
            "schedule": functools.partial(
                config.schedule.factor, total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch
            ),
            "accumulation_steps": config.gradient_accumulation_steps,
            "clip_norm": config.clip_norm,
        }
        if isinstance(config.strategy, InPlace):
            common |= {"dtype": dtype, "centred": config.strategy.centred}
            if self.share.model_rank is not None:
                return VisibleShardingStrategy(**common)
            return InPlaceStrategy(**common, num_workers=self.num_workers)
        common["autocast_dtype"] = None if dtype == torch.float32 else dtype
        if isinstance(config.strategy, DeepSpeed):
            return DeepSpeedStrategy(**common, stage=config.strategy.stage, batch_size=config.batch_size_per_worker)
        return DdpStrategy(**common, device=self.device, num_workers=self.num_workers)

    def run(self) -> None:
        """Train from the last checkpoint, or from nothing, to the end.

        Raises:
            HopelessRunError: a loss or a metric is not finite.
        """
        with self.host.checkpoint() as directory:
            if directory is not None:
                self.place = load_state(directory, self.rank, self.strategy, self.task, self.device)
                self.place.resumed_at = self.place.step
                if self.host.speaks:
                    say(f"resumed at step {self.place.step:,} of {self.total_steps:,}")
        self._tracked = len(self.place.history)  # a checkpoint's history is tracked before it is one
        place, self._started = self.place, time.monotonic() - self.place.seconds
        self.progress = Progress("train", "steps", self.total_steps) if self.host.speaks else None
        if self.progress:
            self.progress.resume_at(place.step)
            samples = self.steps_per_epoch * self.config.gradient_accumulation_steps * self.config.batch_size_per_worker
            there = sum(chunk.num_rows for chunk in self.source.chunks(self.recipe.train_split))
            say(
                f"an epoch: {self.steps_per_epoch:,} steps, {samples * self.config.data_workers:,} of "
                f"{there * self.source.samples_per_row:,} samples (others each time)"
            )
        streams = self._streams()
        while place.epoch < self.config.epochs and not place.stopped:
            stream, plan, evaluations = next(streams)
            self._train_epoch(stream, plan)
            place.epoch, place.step_in_epoch = place.epoch + 1, 0
            if evaluations is None:
                if self._checkpoint_due():
                    self._checkpoint({})
                continue
            metrics = self._evaluate(stream, evaluations)
            measured = self._measure_model()
            metrics |= measured.metrics
            if self._measure is not None:
                metrics |= self._measure(self.task)
            self._record(metrics)
            self._publish_if_best(metrics)
            self._stop_if_stale(metrics)
            self._checkpoint(metrics, measured.samples)
        if self.progress:
            self.progress.finish()

    def _streams(self) -> Iterator[tuple[BatchStream, Plan, _Evaluations | None]]:
        """For each epoch to come its stream, which stands at the epoch's blocks: training, then evaluation.

        The latter are None where no evaluation is due; a worker whose share of it is empty takes part all the same.
        """
        config, recipe, share = self.config, self.recipe, self.share
        sizes: dict[str, Any] = {"parts": share.parts, "num_parts": share.num_parts}
        sizes["chunks_per_block"] = config.shuffle_chunks
        validation = plan_epoch(self.source, recipe.validation_split, seed=config.seed, epoch=0, **sizes)
        evaluations = {"validation": validation}
        if recipe.compares_training:
            # Others than the next epoch begins with, and the same at each evaluation.
            sample = plan_epoch(self.source, recipe.train_split, seed=config.seed + 1, epoch=0, **sizes)
            evaluations["train_sample"] = [
                blocks[: len(shown)] for blocks, shown in zip(sample, validation, strict=True)
            ]
        epoch = self.place.epoch
        self._skip = self.place.step_in_epoch * config.gradient_accumulation_steps * share.samples_per_part
        skip = self._skip
        while epoch < config.epochs:
            plans: list[tuple[Plan, _Evaluations | None]] = []
            blocks: list[Block] = []
            while epoch < config.epochs and len(blocks) < _BLOCKS_PER_PIPELINE:
                train = plan_epoch(self.source, recipe.train_split, seed=config.seed, epoch=epoch, **sizes)
                blocks += reading_order(train, share.samples_per_part, skip)
                skip = 0
                epoch += 1
                due = epoch % config.validate_every_epochs == 0 or epoch == config.epochs
                plans.append((train, evaluations if due else None))
                for plan in evaluations.values() if due else ():
                    blocks += reading_order(plan, share.samples_per_part)
            stream = BatchStream(self.source, blocks, config.readers_per_worker)
            for train, after in plans:
                yield stream, train, after

    def _train_sample_batches(self) -> int:
        """Batches that the largest part of the training sample fills, at most."""
        chunks = -(-len(self.source.chunks(self.recipe.validation_split)) // self.share.num_parts)
        chunks = -(-chunks // self.config.shuffle_chunks) * self.config.shuffle_chunks
        largest = max(chunk.num_rows for chunk in self.source.chunks(self.recipe.train_split))
        return -(-chunks * largest * self.source.samples_per_row // self.share.samples_per_part)

    def _train_epoch(self, stream: BatchStream, plan: Plan) -> None:
        config, place = self.config, self.place
        self.strategy.begin_epoch(place.epoch)
        skip, self._skip = self._skip, 0
        batches = stream.batches(plan, self.share.samples_per_part, skip=skip)
        while place.step_in_epoch < self.steps_per_epoch:
            for part in range(1, config.gradient_accumulation_steps + 1):
                losses = self.strategy.backward(
                    self._next(batches), self.recipe.loss_name, last=part == config.gradient_accumulation_steps
                )
                self._sum_up(losses, 1)
                place.losses_summed += 1
            self._sum_up(self.strategy.step(), config.gradient_accumulation_steps)
            place.step += 1
            place.step_in_epoch += 1
            if self.progress:
                self.progress.advance(1, self._summary)
            if place.step % config.log_every_steps == 0:
                self._record({})
            # At an epoch's end the place moves on first.
            if self._checkpoint_due() and place.step_in_epoch < self.steps_per_epoch:
                self._checkpoint({})
        for _ in batches:  # what fills no step any more
            pass

    def _sum_up(self, losses: Losses, batches: int) -> None:
        sums = self.place.loss_sums
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.detach().double() * batches

    def _checkpoint_due(self) -> bool:
        every = self.config.checkpoint_every_steps
        return every is not None and self.place.step % every == 0

    def _next(self, batches: Iterator[Batch]) -> Batch:
        start = time.monotonic()
        batch = next(batches)
        self.place.waited_seconds += time.monotonic() - start
        self._last_batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        return self._last_batch

    def _evaluate(self, stream: BatchStream, evaluations: _Evaluations) -> dict[str, float]:
        """Mean losses over each evaluation's data, and their gaps to those over training data."""
        losses = {
            name: self._mean_losses(stream, plan, self.evaluation_batches[name]) for name, plan in evaluations.items()
        }
        metrics = {f"{name}_{loss}": value for name, values in losses.items() for loss, value in values.items()}
        for loss, value in losses.get("train_sample", {}).items():
            metrics[f"{loss}_gap"] = losses["validation"][loss] - value
        return metrics

    def _mean_losses(self, stream: BatchStream, plan: Plan, num_batches: int) -> dict[str, float]:
        """Each sample counts once; every worker takes as many steps."""
        batches = stream.batches(plan, self.share.samples_per_part, shuffle=False)
        sums: dict[str, float] = {}
        count, batch = 0, self._last_batch
        self.task.eval()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.config.seed)  # the same negatives at every epoch
            # ZeRO 3 gathers parameters in each forward: workers with less data repeat a batch, uncounted.
            for _ in range(num_batches):
                following = next(batches, None)
                batch = {name: t.to(self.device) for name, t in following.items()} if following else batch
                size = len(next(iter(batch.values()))) if following else 0
                for name, loss in self.strategy.evaluate(batch).items():
                    sums[name] = sums.get(name, 0.0) + loss.item() * size
                count += size
        for _ in batches:
            pass
        self.task.train()
        names = sorted(sums)
        totals = self._sum_over_workers([*(sums[name] for name in names), count])
        return {name: total / totals[-1] for name, total in zip(names, totals, strict=False)}

    def _measure_model(self) -> Measured:
        """What the recipe says of the model, without a trace in what is drawn afterwards."""
        config, epoch = self.config, self.place.epoch
        dtype = config.precision.dtype(self.device)
        about = Validation(epoch, epoch == config.epochs, self.rank, self.num_workers, self.host.speaks)
        with (
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
            torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32),
            self.strategy.whole(),
        ):
            return self.recipe.measure(self.task, self.device, about)

    def _sum_over_workers(self, values: list[float]) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.num_workers > 1:
            torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def _record(self, metrics: dict[str, float]) -> None:
        """Add a record to the history: mean training losses over all workers since the last one, and metrics."""
        place = self.place
        names = sorted(place.loss_sums)
        totals = self._sum_over_workers([*(place.loss_sums[name].item() for name in names), place.losses_summed])
        place.loss_sums, place.losses_summed = {}, 0
        place.seconds = time.monotonic() - self._started
        record: dict[str, Any] = {
            "epoch": place.epoch,
            "step": place.step,
            "seconds": round(place.seconds, 3),
            "learning_rate": self.strategy.learning_rate(),
            "data_wait_share": round(place.waited_seconds / max(place.seconds, 1e-9), 4),
        }
        if totals[-1]:
            record |= {f"train_{name}": total / totals[-1] for name, total in zip(names, totals, strict=False)}
        if place.resumed_at is not None:
            record["resumed_at"], place.resumed_at = place.resumed_at, None
        record |= metrics
        place.history.append(record)
        wrong = {name: value for name, value in record.items() if not math.isfinite(value)}
        if wrong:
            name, loss = next(iter(wrong.items()))
            raise HopelessRunError(
                f"optimizer.learning_rate = {self.config.optimizer.learning_rate}: {name} is {loss} "
                f"at step {place.step}; set a smaller learning rate, or clip_norm"
            )
        if metrics and self.host.speaks:
            say(f"epoch {place.epoch}/{self.config.epochs}: " + _format(record))

    def _summary(self) -> str:
        count = max(self.place.losses_summed, 1)
        return _format({f"train_{name}": total.item() / count for name, total in self.place.loss_sums.items()})

    def _publish_if_best(self, metrics: dict[str, float]) -> None:
        place, score = self.place, self._score(metrics)
        if place.best_score is not None and (score is None or not score < place.best_score):
            return
        place.best_score = score
        self.strategy.publish(self.recipe.save_model, storage.join(self.config.output, "model"), place.step)

    def _score(self, metrics: dict[str, float]) -> tuple[float, ...] | None:
        """The lower the better; None where these metrics do not tell."""
        recipe = self.recipe
        value = metrics.get(f"validation_{recipe.score_name}")
        if value is None:
            return None
        return (value if recipe.score_order == "min" else -value, metrics[recipe.stopping_metric])

    def _stop_if_stale(self, metrics: dict[str, float]) -> None:
        stopping, place, recipe = self.config.early_stopping, self.place, self.recipe
        if stopping is None:
            return
        value, best = metrics[recipe.stopping_metric], place.best_stopping_value
        if best is None or value < best:
            place.best_stopping_value = value
        if recipe.compares_training:  # the gap only ever widens
            gained = best is None or value <= best + stopping.min_delta
        else:
            gained = best is None or value < best - stopping.min_delta
        place.validations_without_gain = 0 if gained else place.validations_without_gain + 1
        if place.validations_without_gain >= stopping.patience:
            place.stopped = True
            if self.host.speaks:
                name = recipe.stopping_metric
                say(f"stopped early after epoch {place.epoch}: {name} is {value:.4f}, at best {best:.4f}")

    def _checkpoint(self, metrics: dict[str, float], samples: Sequence[Sample] = ()) -> None:
        """Write a checkpoint and report it; report() is a barrier, so every worker must come here."""
        newest_is_best = self.recipe.score_name is None
        score = float(-self.place.step) if newest_is_best else (self._score(metrics) or (math.nan,))[0]
        with tempfile.TemporaryDirectory(prefix="raycap-") as folder:
            self.place.seconds = time.monotonic() - self._started
            save_state(Path(folder), self.rank, self.place, self.strategy, self.task)
            if self.rank == 0:
                history = Path(folder, HISTORY).read_bytes()
                storage.write_bytes(storage.join(self.config.output, HISTORY), history)
                self._track(samples)
            self.host.report({"step": self.place.step, "score": score, **metrics}, Path(folder))

    def _track(self, samples: Sequence[Sample]) -> None:
        place = self.place
        records, self._tracked = place.history[self._tracked :], len(place.history)
        if self.config.tensorboard and (records or samples):
            from raycap.train.tensorboard import write_events  # takes a second

            write_events(self.config.output, place.step, records, samples)
        if self.config.mlflow is not None and records:
            log_metrics(self.config.mlflow, self.config.output, place.history)


def _share(config: TrainConfig, rank: int, num_workers: int) -> Share:
    num_parts = config.data_parts or config.data_workers
    of_one = num_parts // config.data_workers
    first = 0 if config.spreads_model else rank * of_one
    share = Share(range(first, first + of_one), num_parts, config.batch_size_per_worker // of_one)
    return share._replace(model_rank=rank, model_workers=num_workers) if config.spreads_model else share


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _format(record: dict[str, Any]) -> str:
    shown = {name: value for name, value in record.items() if name.startswith(("train_", "validation_"))}
    return ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
