"""config.json of a model in transformers' own form, of a directory or a name of the hub.

Read without transformers, whose import takes seconds and hundreds of megabytes: many processes want to know a model's
sizes and never hold it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from raycap.checkpoint.directory import CONFIG, is_directory, read_config
from raycap.errors import UserError


def read_pretrained_config(source: str, field: str, model_type: str) -> dict[str, Any]:
    """config.json as it stands there; it may block.

    Args:
        source: a local directory, an s3:// prefix or a hub name.
        field: the setting that names the source, for errors.
        model_type: ``blip`` or ``clip``.

    Raises:
        UserError: nothing there, or another model.
    """
    name = model_type.upper()
    if is_directory(source):
        config = read_config(source, field)
    elif source.startswith(("/", ".", "~")) or source.count("/") != 1:
        raise UserError(f"{field} = {source}: no such directory; give a {name} directory, s3:// prefix or hub name")
    else:
        try:
            config = json.loads(Path(hf_hub_download(source, CONFIG)).read_text())
        except (OSError, ValueError) as error:  # ValueError: no name that the hub could have, or no JSON
            raise not_on_hub(source, field, error) from None
    if config.get("model_type") != model_type:
        raise UserError(
            f"{field} = {source}: holds a {config.get('model_type')}, not a {name}; give a {name} model directory"
        )
    return config


def not_on_hub(source: str, field: str, error: Exception) -> UserError:
    """One line of what the hub's client says in several."""
    reason = str(error).splitlines()[0]
    return UserError(f"{field} = {source}: no such directory, and the hub does not give it ({reason})")
