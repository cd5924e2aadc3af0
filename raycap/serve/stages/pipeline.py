"""What travels between the HTTP ingress and the stages, and what each asks of the next.

A caption is pulled: the ingress asks the decoder, the decoder asks the refiner for embeddings, the refiner asks the
encoder. So embeddings go by value from stage to stage and never through the ingress, and a streamed token has one
hop to go. A stage is asked in the same way whether it is a deployment of its own or an object in the same process.

The ingress imports this and computes nothing: what it sends and gets holds no tensors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from raycap.models.decoding import Decoding
from raycap.models.refinement import Refinement
from raycap.models.written_caption import Attention

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ImageTask:
    """An image and how its embeddings are wanted."""

    pixels: np.ndarray
    """(S, S, 3) uint8, at the encoder's size."""

    digest: bytes
    """Of the image file; equal digests have equal pixels. Empty, no stage answers from memory, nor keeps what it
    computes: of an image that is made to see whether the stages work."""

    weights: str
    """Key of the models to use: see :class:`raycap.serve.stages.weights.Weights`."""

    refinement: Refinement

    request_id: str = field(default="", kw_only=True)
    """Of the client's request, for the logs of every stage."""

    trace: dict[str, str] = field(default_factory=dict, kw_only=True)
    """W3C trace context of the request's span; empty where it is not traced."""


@dataclass(frozen=True)
class CaptionTask(ImageTask):
    """An image and how its captions are wanted."""

    decoding: Decoding
    num_captions: int = 1
    explain: bool = False
    """Whether the attention of each token is wanted too."""


@dataclass(frozen=True)
class Encoded:
    """What a stage hands on of an image to the next."""

    image_embeds: torch.Tensor
    """(N, D) float16, on the device that made it; where it leaves the process it travels from and to the CPU."""

    versions: dict[str, str]
    """Fingerprint of each model that made it: ``encoder``, ``refiner``."""

    image_features: torch.Tensor | None = None
    """CLIP's, (E,) float32, if one re-ranks."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Each stage's own time, without waiting for other stages or for a batch, with waiting for rows of the decoder."""

    batch_size: int = 0
    """How many images the last stage computed together."""

    def __reduce__(self) -> tuple[Any, ...]:
        # NumPy's arrays are pickled as they lie in memory, several times faster than tensors.
        features = None if self.image_features is None else self.image_features.cpu().numpy()
        return _arrived, (self.image_embeds.cpu().numpy(), self.versions, features, self.seconds, self.batch_size)


def _arrived(
    image_embeds: np.ndarray,
    versions: dict[str, str],
    features: np.ndarray | None,
    seconds: dict[str, float],
    batch_size: int,
) -> Encoded:
    import torch

    image_features = None if features is None else torch.from_numpy(features)
    return Encoded(torch.from_numpy(image_embeds), versions, image_features, seconds, batch_size)


def version_name(versions: dict[str, str]) -> str:
    """The fingerprints of encoder, refiner and decoder, as far as they had a part in an answer."""
    return "+".join(versions[part][:8] for part in ("encoder", "refiner", "decoder") if part in versions)


@dataclass(frozen=True)
class Captioned:
    """The answer to a :class:`CaptionTask`."""

    captions: list[str]
    """The best first."""

    log_probabilities: list[float]
    """Of each caption given the image, in nats."""

    num_tokens: int
    """Generated, of all captions together."""

    finished: list[bool]
    """Of each caption: whether it ended by itself, rather than at ``max_new_tokens``."""

    version: str
    """Of the models that made it: see :func:`version_name`."""

    seconds: dict[str, float]
    attention: Attention | None = None


@dataclass(frozen=True)
class Embedded:
    """The answer to an :class:`ImageTask` of a client who asks for the embeddings themselves."""

    before: np.ndarray
    """(N, D) float16, as the encoder gives them."""

    after: np.ndarray
    """The same, refined; without an RBM, and with gate 0, the same array."""

    version: str
    """Of the models that made them: see :func:`version_name`."""

    seconds: dict[str, float]


class EmbeddingSource(Protocol):
    """Encoder or refiner, from the view of what follows it."""

    async def __call__(self, task: ImageTask) -> Encoded: ...

    async def prepare(self, weights: str) -> None:
        """Load these weights, here and in all that is asked, and run them once."""


class Captioner(Protocol):
    """The whole of the stages, from the ingress's view.

    Raises (all methods):
        raycap.serve.errors.Overloaded: a stage's queue is full.
    """

    async def caption(self, task: CaptionTask) -> Captioned: ...

    def stream(self, task: CaptionTask) -> AsyncIterator[str | Captioned]:
        """Pieces of text as they are decoded, then the whole answer. Only a search of one caption without beams
        has pieces; of any other the answer comes alone."""

    async def embed(self, task: ImageTask) -> Embedded:
        """The embeddings before and after the refiner."""

    async def prepare(self, weights: str) -> None:
        """Load these weights in every stage and run them once, so that the first request finds them warm."""
