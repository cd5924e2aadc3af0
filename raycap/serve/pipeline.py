"""What travels between the HTTP ingress and the stages, and what each asks of the next.

A caption is pulled: the ingress asks the decoder, the decoder asks the refiner for embeddings, the refiner asks the
encoder. So embeddings go by value from stage to stage and never through the ingress, and a streamed token
has one hop to go. Whether a stage is a deployment of its own or an object in the same process, it is asked the same way.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from raycap.models.blip import Decoding
from raycap.predictor import Refinement


@dataclass(frozen=True)
class ImageTask:
    """An image and how its embeddings are wanted."""

    pixels: np.ndarray
    """(S, S, 3) uint8, at the encoder's size."""

    digest: bytes
    """Of the image file; equal digests have equal pixels."""

    weights: str
    """Key of the models to use: see :class:`raycap.serve.models.Weights`."""

    refinement: Refinement


@dataclass(frozen=True)
class CaptionTask(ImageTask):
    """An image and how its captions are wanted."""

    decoding: Decoding
    num_captions: int = 1
    explain: bool = False
    """Whether the attention of each token is wanted too."""


@dataclass(frozen=True)
class Encoded:
    """What a stage hands on of an image."""

    image_embeds: np.ndarray
    """(N, D) float16."""

    versions: dict[str, str]
    """Fingerprint of each model that made it, by its part: ``encoder``, ``refiner``."""

    image_features: np.ndarray | None = None
    """CLIP's, (E,) float32, if one re-ranks."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Each stage's own time, waiting for its batch and for other stages not included."""


@dataclass(frozen=True)
class Attention:
    """Where the decoder looked as it chose each word of the first caption."""

    words: list[str]
    maps: np.ndarray
    """(words, rows, columns) float32: share of attention on each patch of the image; each word's sum to at most 1,
    the rest lies on the image's class token."""


@dataclass(frozen=True)
class Captioned:
    """The answer to a :class:`CaptionTask`."""

    captions: list[str]
    """The best first."""

    log_probabilities: list[float]
    """Of each caption given the image, in nats."""

    num_tokens: int
    """Generated, of all captions together."""

    finished: bool
    """Whether the first caption ended by itself, rather than at ``max_new_tokens``."""

    version: str
    """Fingerprints of the models that made it."""

    seconds: dict[str, float]
    attention: Attention | None = None


class EmbeddingSource(Protocol):
    """Encoder or refiner, from the view of what follows it."""

    async def __call__(self, task: ImageTask) -> Encoded: ...


class Captioner(Protocol):
    """The whole of the stages, from the ingress's view.

    Raises (all methods):
        raycap.serve.errors.Overloaded: a stage's queue is full.
    """

    async def caption(self, task: CaptionTask) -> Captioned: ...

    def stream(self, task: CaptionTask) -> AsyncIterator[str | Captioned]:
        """Pieces of text as they are decoded, then the whole answer. Only a search of one caption without beams
        has pieces; of any other the answer comes alone."""

    async def embed(self, task: ImageTask) -> tuple[Encoded, Encoded]:
        """The embeddings before and after the refiner."""
