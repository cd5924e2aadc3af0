"""Refiners beside an RBM's reconstruction, made in closed form from the same embeddings: a projection of its
hidden activations, and the controls."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from raycap import storage
from raycap.checkpoint.directory import publish
from raycap.checkpoint.refiner import Refiner, load_rbm_refiner, save_refiner
from raycap.data.features import FeatureStore, open_store, read_features, spread_chunks, token_covariance
from raycap.errors import UserError
from raycap.job import JobConfig
from raycap.models.controls import NoiseRefiner, gaussian_shrinkage, linear_autoencoder
from raycap.models.gaussian import FullCovarianceGaussian
from raycap.models.hidden_projection import ProjectionFit
from raycap.models.refiner import RbmRefiner
from raycap.progress import say


class RefinersConfig(JobConfig):
    """Makes ``output``/features, /autoencoder, /shrinkage and /noise; jobs/evaluate.py takes them as ``refiners``."""

    rbm: str
    """RBM directory or s3:// prefix: its size, its sigma and its change are imitated."""

    features: str
    """Feature store the RBM was trained on."""

    split: str = "train"

    max_images: int = Field(default=2048, ge=1)
    """Images, spread evenly over the split, whose tokens are looked at."""


def make_refiners(config: RefinersConfig) -> dict[str, Any]:
    """Fit each refiner, and write it whole.

    Raises:
        UserError: the RBM or the store is missing, or they belong to different encoders.
    """
    refiner, encoder = load_rbm_refiner(config.rbm)
    if refiner.sees_images:
        raise UserError(f"rbm = {config.rbm}: is one over images; give one over tokens, which these refiners imitate")
    store = open_store(config.features, encoder_fingerprint=encoder.fingerprint)
    store.chunks(config.split)  # refuses a split that is not there
    say(f"measuring the covariance of the embeddings of at most {config.max_images:,} images")
    covariance = torch.from_numpy(token_covariance(store, config.split, config.max_images))
    gaussian = _in_units_of(refiner, torch.tensor(store.mean, dtype=torch.float64), covariance)
    refiners: dict[str, Refiner] = {
        "features": _fit_projection(refiner, store, config),
        "autoencoder": linear_autoencoder(refiner, gaussian),
        "shrinkage": gaussian_shrinkage(refiner, gaussian),
        "noise": NoiseRefiner(refiner),
    }
    for name, made in refiners.items():
        with tempfile.TemporaryDirectory(prefix="raycap-") as folder:
            save_refiner(Path(folder, name), made, encoder)
            publish(Path(folder, name), storage.join(config.output, name))
    num_components = min(refiner.rbm.num_hidden // 2, refiner.rbm.num_visible)
    if num_components == refiner.rbm.num_visible:
        say("autoencoder: as many weights as the RBM's hold every linear map; this control changes nothing")
    return {
        "refiners": {name: storage.join(config.output, name) for name in refiners},
        "autoencoder_components": num_components,
        "num_visible": refiner.rbm.num_visible,
    }


def _fit_projection(refiner: RbmRefiner, store: FeatureStore, config: RefinersConfig) -> Refiner:
    fit = ProjectionFit(refiner)
    for chunk in spread_chunks(store, config.split, config.max_images):
        fit.add(torch.from_numpy(read_features(chunk).reshape(-1, store.embed_dim).astype("float32")))
    return fit.solve()


def _in_units_of(refiner: RbmRefiner, mean: torch.Tensor, covariance: torch.Tensor) -> FullCovarianceGaussian:
    """A Gaussian over embeddings as one over what the refiner's RBM sees."""
    scale = refiner.scale.double()
    inverse = torch.diag(1 / scale) if scale.ndim == 1 else torch.linalg.inv(scale)
    shifted = mean - refiner.mean.double()
    return FullCovarianceGaussian.from_covariance(shifted @ inverse, inverse.T @ covariance @ inverse)
