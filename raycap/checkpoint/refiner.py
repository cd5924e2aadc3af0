"""A refiner's directory, an RBM's or a control's.

config.json         model_type, sizes, sigma, and which encoder its data came from
model.safetensors   weight, biases, log_variance, mean, scale; of an RBM whose visible units were spread
                    over workers, one file a worker, named in config.json's parts
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from raycap import storage
from raycap.checkpoint.directory import CONFIG, WEIGHTS, read_config, write_model
from raycap.checkpoint.identity import EncoderId
from raycap.errors import UserError
from raycap.models.controls import LinearRefiner, NoiseRefiner
from raycap.models.hidden_projection import HiddenProjectionRefiner
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner
from raycap.models.sharded_rbm import ShardedGaussianBernoulliRBM

Refiner = RbmRefiner | LinearRefiner | NoiseRefiner | HiddenProjectionRefiner
_MODEL_TYPES: dict[type[nn.Module], str] = {
    RbmRefiner: "gaussian_bernoulli_rbm",
    LinearRefiner: "linear_refiner",
    NoiseRefiner: "noise_refiner",
    HiddenProjectionRefiner: "hidden_projection_refiner",
}
_OF_VISIBLE_UNITS = {"weight", "visible_bias", "log_variance"}


def save_refiner(directory: Path, refiner: Refiner, encoder: EncoderId) -> None:
    """Write a refiner into a local directory that nobody reads yet (see ``directory.publish``)."""
    config: dict[str, Any] = {"model_type": _MODEL_TYPES[type(refiner)], "encoder": encoder._asdict()}
    if not isinstance(refiner, LinearRefiner):
        like = refiner if isinstance(refiner, RbmRefiner) else refiner.like
        rbm = like.rbm
        num_visible = rbm.num_visible
        if isinstance(rbm, ShardedGaussianBernoulliRBM):
            num_visible = rbm.shard.num_visible_of_all
        config |= {
            "granularity": "image" if like.sees_images else "token",
            "num_visible": num_visible,
            "num_hidden": rbm.num_hidden,
            "learn_variance": rbm.learn_variance,
            "sigma_bounds": list(rbm.sigma_bounds),
        }
    tensors = {name.removeprefix("like.").removeprefix("rbm."): t for name, t in refiner.state_dict().items()}
    write_model(directory, config, tensors)


def load_refiner(source: str, encoder: EncoderId | None = None, field: str = "rbm") -> Refiner:
    """Load a refiner, an RBM's or a control's, on the CPU, in float32.

    Args:
        source: a local directory or s3:// prefix.
        encoder: the encoder it is to refine; its fingerprint must be the one it was trained on.
        field: the setting that names the source, for errors.

    Raises:
        UserError: nothing there, another model, or trained on another encoder's embeddings.
    """
    config = read_config(source, field)
    model_type = config["model_type"]
    if model_type not in _MODEL_TYPES.values():
        raise UserError(f"{field} = {source}: holds a {model_type}, not an RBM; give an RBM directory")
    trained_on = EncoderId(**config["encoder"])
    if encoder is not None and trained_on.fingerprint != encoder.fingerprint:
        raise UserError(
            f"{field} = {source}: trained on embeddings of encoder {trained_on.name} ({trained_on.fingerprint}), "
            f"not of {encoder.name} ({encoder.fingerprint}); train an RBM on this encoder's embeddings"
        )
    with storage.local_directory(source) as directory:
        tensors = _load_parts(directory, config) if "parts" in config else load_file(directory / WEIGHTS)
    if model_type == _MODEL_TYPES[LinearRefiner]:
        return LinearRefiner(tensors["mean"], tensors["matrix"]).eval()
    refiner = _build_rbm_refiner(config, tensors)
    if model_type == _MODEL_TYPES[NoiseRefiner]:
        return NoiseRefiner(refiner).eval()
    if model_type == _MODEL_TYPES[HiddenProjectionRefiner]:
        return HiddenProjectionRefiner(refiner, tensors["projection"], tensors["offset"]).eval()
    return refiner.eval()


def load_rbm_refiner(source: str, encoder: EncoderId | None = None, field: str = "rbm") -> tuple[RbmRefiner, EncoderId]:
    """Load an RBM's refiner and tell whose embeddings it was trained on.

    Raises:
        UserError: as :func:`load_refiner`, or it is a control.
    """
    refiner = load_refiner(source, encoder, field)
    config = read_config(source, field)
    if not isinstance(refiner, RbmRefiner):
        raise UserError(f"{field} = {source}: holds a {config['model_type']}, not an RBM; give an RBM directory")
    return refiner, EncoderId(**config["encoder"])


def _build_rbm_refiner(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> RbmRefiner:
    rbm = GaussianBernoulliRBM(
        config["num_visible"],
        config["num_hidden"],
        sigma=math.sqrt(config["sigma_bounds"][0] * config["sigma_bounds"][1]),  # any; its tensor follows
        learn_variance=config["learn_variance"],
        sigma_bounds=tuple(config["sigma_bounds"]),
    )
    refiner = RbmRefiner(rbm, tensors["mean"], tensors["scale"], config.get("granularity", "token") == "image")
    rbm.load_state_dict({name: tensors[name] for name in rbm.state_dict()})
    return refiner


def publish_part(local: Path, uri: str, index: int, count: int, step: int) -> None:
    """Put one worker's part of a sharded RBM beside the others, where no reader knows of it yet.

    Args:
        local: what :func:`save_refiner` wrote of this part.
        index: of this part, among ``count``.
        step: tells it from the parts of an earlier publication, which readers may still need.
    """
    storage.upload_file(local / WEIGHTS, storage.join(uri, _part_name(index, count, step)))


def publish_parts(local: Path, uri: str, count: int, step: int) -> None:
    """Once all parts are in place: name them in config.json, which readers go by, and delete those before.

    Args:
        local: of any part.
    """
    parts = [_part_name(index, count, step) for index in range(count)]
    config = json.loads((local / CONFIG).read_text())
    storage.write_json(storage.join(uri, CONFIG), config | {"parts": parts})
    for entry in list(storage.list_files(uri)):
        if entry.name.endswith(".safetensors") and entry.name not in parts:
            storage.delete(storage.join(uri, entry.name))


def _part_name(index: int, count: int, step: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}-step-{step}.safetensors"


def _load_parts(directory: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of all parts, those of visible units joined without ever holding them twice."""
    tensors: dict[str, torch.Tensor] = {}
    start = 0
    for name in config["parts"]:
        part = load_file(directory / name)
        stop = start + len(part["visible_bias"])
        for key, value in part.items():
            if key not in _OF_VISIBLE_UNITS:
                tensors[key] = value
                continue
            whole = tensors.setdefault(key, value.new_empty(config["num_visible"], *value.shape[1:]))
            whole[start:stop] = value
        start = stop
    return tensors
