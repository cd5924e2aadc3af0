"""The likelihood of held-out tokens, for RBMs and the Gaussian alike, in the same units.

Units: embeddings less their mean, divided by the standard deviation of each dimension ("standardised").
A model in other units, x = mean + v S, has log p(standardised) = log p(v) + sum_i log std_i - log |det S|.
Shapes: n images, m tokens of each, V dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from raycap.data.features import FeatureStore, positive_scale, read_features, token_covariance
from raycap.models.gaussian import FullCovarianceGaussian
from raycap.models.partition import LogPartition
from raycap.models.refiner import RbmRefiner

_IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class HeldOut:
    """Tokens on which models are compared, and the units in which they are.

    Args:
        tokens: (n, m, V) float16, as the store has them.
        mean: (V,).
        std: (V,), positive.
    """

    tokens: np.ndarray
    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True)
class RbmLikelihood:
    """What an RBM gives, in nats per token.

    Args:
        per_image: mean over each image's tokens, (n,), standardised units.
        log_partition: log Z, on which all of them rest.
    """

    per_image: np.ndarray
    log_partition: LogPartition

    def metrics(self) -> dict[str, float]:
        annealing, sampling = self.log_partition.standard_error, standard_error(self.per_image)
        return {
            "log_likelihood": float(self.per_image.mean()),
            "log_likelihood_error": math.hypot(annealing, sampling),
            "annealing_error": annealing,
            "sampling_error": sampling,
            "annealing_effective_samples": self.log_partition.effective_sample_size,
            "log_partition": self.log_partition.value,
        }

    def lead(self, other: RbmLikelihood) -> tuple[float, float]:
        """How far this RBM is before another on the same tokens, paired over images, and its standard error."""
        difference = self.per_image - other.per_image
        annealing = self.log_partition.standard_error, other.log_partition.standard_error
        return float(difference.mean()), math.hypot(standard_error(difference), *annealing)

    def compare(self, gaussian: np.ndarray) -> dict[str, float]:
        """:meth:`metrics` beside the Gaussian's, and the difference to it, paired over images.

        Args:
            gaussian: of :func:`gaussian_likelihood` on the same tokens, (n,).
        """
        difference = self.per_image - gaussian
        return {
            **self.metrics(),
            "gaussian_log_likelihood": float(gaussian.mean()),
            "gaussian_log_likelihood_error": standard_error(gaussian),
            "difference_to_gaussian": float(difference.mean()),
            "difference_to_gaussian_error": math.hypot(standard_error(difference), self.log_partition.standard_error),
        }


def held_out(store: FeatureStore, split: str, max_tokens: int, seed: int) -> HeldOut:
    """Draw as many tokens of every image of a split as there is room for.

    Tokens of one image are alike, so that few of each of many images tell more than all of a few.

    Args:
        max_tokens: where there are more images, they are drawn too.
    """
    rng = np.random.default_rng(seed)
    num_images = store.num_images(split)
    per_image = max(1, min(store.num_tokens, max_tokens // num_images))
    wanted = np.zeros(num_images, bool)
    wanted[rng.permutation(num_images)[: max(1, max_tokens // per_image)]] = True
    parts, start = [], 0
    for chunk in store.chunks(split):
        embeds = read_features(chunk)[wanted[start : start + chunk.num_rows]]  # (images, N, V)
        start += chunk.num_rows
        places = rng.random(embeds.shape[:2]).argsort(axis=1)[:, :per_image]
        parts.append(np.take_along_axis(embeds, places[..., None], axis=1))
    return HeldOut(np.concatenate(parts), np.array(store.mean), positive_scale(np.array(store.std)))


def rbm_likelihood(refiner: RbmRefiner, data: HeldOut, log_partition: LogPartition) -> RbmLikelihood:
    """Measure an RBM: -F(v) - log Z.

    Annealing's log Z is on average not above the true one, nor then this likelihood below it.

    Args:
        refiner: the RBM with its statistics, on any device.
        log_partition: of the RBM.
    """
    scale = refiner.scale.double()
    log_scale = scale.log().sum() if scale.ndim == 1 else torch.linalg.slogdet(scale).logabsdet
    shift = float(np.log(data.std).sum()) - float(log_scale) - log_partition.value
    return RbmLikelihood(-_free_energies(refiner, data) + shift, log_partition)


@torch.no_grad()
def _free_energies(refiner: RbmRefiner, data: HeldOut) -> np.ndarray:
    """Mean over each image's tokens, (n,) float64."""
    means = []
    for start in range(0, len(data.tokens), _IMAGES_AT_ONCE):
        tokens = torch.from_numpy(np.array(data.tokens[start : start + _IMAGES_AT_ONCE])).to(refiner.mean.device)
        means.append(refiner.rbm.free_energy(refiner.standardise(tokens)).double().mean(1).cpu())
    return torch.cat(means).numpy()


def gaussian_likelihood(store: FeatureStore, train_split: str, data: HeldOut) -> np.ndarray:
    """The full-covariance Gaussian of the training tokens, in nats per token: mean of each held-out image, (n,)."""
    covariance = token_covariance(store, train_split) / np.outer(data.std, data.std)
    gaussian = FullCovarianceGaussian.from_covariance(torch.zeros(len(covariance)), torch.from_numpy(covariance))
    means = []
    for start in range(0, len(data.tokens), _IMAGES_AT_ONCE):
        v = (data.tokens[start : start + _IMAGES_AT_ONCE].astype(np.float64) - data.mean) / data.std
        log_prob = gaussian.log_prob(torch.from_numpy(v).flatten(0, 1))
        means.append(log_prob.view(v.shape[:2]).mean(1))
    return torch.cat(means).numpy()


def standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values; 0 for one value alone, which shows none."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
