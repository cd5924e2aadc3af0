"""Of every model directory: config.json, model.safetensors; written whole or not at all, read with its kind checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycap import storage
from raycap.errors import UserError

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def write_model(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write both files into a local directory that nobody reads yet (see :func:`publish`)."""
    # Only who writes has tensors, and waits for torch.
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, directory / WEIGHTS)
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def publish(local: Path, uri: str) -> None:
    """Put a finished model directory in its place, config.json last: readers see all of it or none."""
    storage.upload_directory(local, uri, last=CONFIG)


def absolute_source(model: str) -> str:
    """A model's source as any process of the cluster finds it: hub names and s3:// prefixes stay as they are."""
    return storage.absolute(model) if is_directory(model) else model


def is_directory(source: str) -> bool:
    """Whether a source is a local directory or s3:// prefix; else it may be a name of the hub."""
    return storage.is_s3(source) or storage.is_directory(source)


def read_config(source: str, field: str) -> dict[str, Any]:
    """config.json of a model directory.

    Args:
        source: a local directory or s3:// prefix.
        field: the setting that names the source, for errors.

    Raises:
        UserError: nothing there, or no model_type in it.
    """
    try:
        config: dict[str, Any] = storage.read_json(storage.join(source, CONFIG))
    except FileNotFoundError:
        message = f"{field} = {source}: no model there ({CONFIG} is missing); give a finished model directory"
        raise UserError(message) from None
    if "model_type" not in config:
        raise UserError(f"{field} = {source}: {CONFIG} names no model_type; give a model directory")
    return config
