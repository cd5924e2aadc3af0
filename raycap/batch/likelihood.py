"""How likely an RBM holds held-out tokens: log Z from both sides, and the full-covariance Gaussian beside it."""

from __future__ import annotations

import math
import time
from typing import Any

from pydantic import Field

from raycap.batch.annealing import Annealing, anneal
from raycap.batch.token_likelihood import gaussian_likelihood, held_out, rbm_likelihood
from raycap.checkpoint.refiner import load_rbm_refiner
from raycap.data.features import open_store
from raycap.errors import UserError
from raycap.job import JobConfig
from raycap.models.partition import MAX_ENUMERATED_UNITS, LogPartition, exact_log_partition
from raycap.models.randomness import GROUP_ROWS
from raycap.progress import say


class LikelihoodConfig(JobConfig):
    """Measures the log-likelihood of an RBM on a split, its chains spread over the cluster."""

    rbm: str
    """RBM directory or s3:// prefix."""

    features: str
    """Feature store of the same encoder."""

    split: str = "dev"
    """On which the likelihood is measured."""

    train_split: str = "train"
    """To which the Gaussian is fitted."""

    max_tokens: int = Field(default=20_000, ge=1)
    """Some of each image of the split."""

    annealing: Annealing = Annealing()

    reverse: bool = True
    """Estimate log Z also by as many chains from the RBM to the base, which err to the other side."""

    chains_per_task: int = Field(default=GROUP_ROWS, ge=GROUP_ROWS, multiple_of=GROUP_ROWS)
    """Chains of one Ray task; the result does not depend on it."""

    cpus_per_task: float = Field(default=1.0, gt=0)
    """What each task reserves in Ray, and its threads."""

    use_gpu: bool = False
    """One GPU for each task."""

    seed: int = Field(default=0, ge=0)
    """Of the chains, and of the choice of tokens."""


def measure_likelihood(config: LikelihoodConfig) -> dict[str, Any]:
    """Measure the log-likelihood of held-out tokens under an RBM and under the full-covariance Gaussian.

    The likelihood rests on the exact log Z where there is one, else on annealing from the base to the RBM.

    Returns:
        metrics in nats (per token where they are likelihoods); each error is one standard error.

    Raises:
        UserError: the RBM or the store is missing, they belong to different encoders, or the cluster has no room.
    """
    started = time.monotonic()
    refiner, encoder = load_rbm_refiner(config.rbm)
    if refiner.sees_images:
        raise UserError(f"rbm = {config.rbm}: is one over images; give one over tokens, whose likelihood this measures")
    store = open_store(config.features, encoder_fingerprint=encoder.fingerprint)
    store.chunks(config.train_split, "train_split")  # refuses a split that is not there
    data = held_out(store, config.split, config.max_tokens, config.seed)
    num_images, tokens_per_image, _ = data.tokens.shape
    say(f"likelihood: of {num_images:,} images, {tokens_per_image} tokens of each")
    annealed = anneal(
        refiner.rbm,
        config.annealing,
        config.seed,
        chains_per_task=config.chains_per_task,
        cpus_per_task=config.cpus_per_task,
        use_gpu=config.use_gpu,
        reverse=config.reverse,
    )
    log_partition, above = annealed.estimate(), annealed.reverse_estimate()
    exact = exact_log_partition(refiner.rbm) if refiner.rbm.num_hidden <= MAX_ENUMERATED_UNITS else None
    used = log_partition if exact is None else LogPartition(exact, 0.0, math.inf)
    compared = rbm_likelihood(refiner, data, used).compare(gaussian_likelihood(store, config.train_split, data))
    names = ("log_likelihood", "gaussian_log_likelihood", "difference_to_gaussian")
    return {
        **{name: compared[name] for stem in names for name in (stem, f"{stem}_error")},
        "ais": log_partition._asdict(),
        "reverse_ais": above and above._asdict(),
        "exact_log_partition": exact,
        "log_partition_by": "ais" if exact is None else "enumeration",
        "annealing_error": compared["annealing_error"],
        "sampling_error": compared["sampling_error"],
        "num_visible": refiner.rbm.num_visible,
        "num_hidden": refiner.rbm.num_hidden,
        "rbm": config.rbm,
        "split": config.split,
        "num_images": num_images,
        "num_tokens": num_images * tokens_per_image,
        **config.annealing.model_dump(),
        "seconds": round(time.monotonic() - started, 1),
    }
