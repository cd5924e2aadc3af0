"""A caption as people read it, of whichever model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Attention:
    """Where the decoder looked as it chose each word of a caption."""

    words: list[str]
    maps: np.ndarray
    """(words, rows, columns) float32: share of attention on each patch of the image; each word's sum to at most 1,
    the rest lies on the image's class token, if it has one."""


class WrittenCaption(NamedTuple):
    """A caption of an image."""

    text: str

    log_probability: float
    """Given the image (and a prompt), in nats, summed over the tokens that were written, the end's among them."""

    num_tokens: int
    """Written, the end's among them."""

    finished: bool
    """Whether it ended by itself, rather than at ``max_new_tokens``."""

    attention: Attention | None = None
    """Where it was asked for."""
