"""What /v1/caption and /v1/captions take and answer."""

from typing import Literal

from pydantic import Field

from raycap.config import Config
from raycap.serve.api.options import CaptionOptions, StreamedOptions
from raycap.serve.errors import ErrorDetail


class CaptionBody(StreamedOptions):
    """A request for a caption in JSON."""

    image: str = Field(min_length=1, examples=["data:image/png;base64,iVBORw0KGgo..."])
    """The image file in base64, as a data URL, or its http(s) URL where this server fetches them."""


class CaptionsBody(CaptionOptions):
    """A request for the captions of several images in JSON."""

    images: list[str] = Field(min_length=1)
    """Each as in `image` of /v1/caption."""


FinishReason = Literal["stop", "length"]
"""Whether a caption ended by itself, or at max_new_tokens."""


def finish_reason(finished: bool) -> FinishReason:
    """Of a caption."""
    return "stop" if finished else "length"


class ScoredCaption(Config):
    """One of the captions."""

    text: str

    log_probability: float
    """Given the image, in nats."""

    finish_reason: FinishReason
    """Whether it ended by itself, or at max_new_tokens."""


class RefinementUsed(Config):
    """What the RBM did."""

    gate: float
    passes: int


class Usage(Config):
    """What the answer took."""

    completion_tokens: int
    """Generated, of all captions together."""


class AttentionPictures(Config):
    """Where the decoder looked as it chose each word of the first caption."""

    words: list[str]

    maps: list[str]
    """A heat map over the image for each word: PNG files as data URLs."""

    figure: str
    """The image with each word's map beside it: a PNG file as a data URL."""


class CaptionResponse(Config):
    """The captions of an image."""

    id: str

    caption: str
    """The best."""

    captions: list[ScoredCaption]
    """All of them, the best first."""

    model: str

    model_version: str
    """Fingerprints of the models that made it."""

    refinement: RefinementUsed

    finish_reason: FinishReason
    """Of the best caption: whether it ended by itself, or at max_new_tokens."""

    usage: Usage

    timing_ms: dict[str, float]
    """What each stage took, decode with the wait for free rows; nothing for an answer that was there already."""

    attention: AttentionPictures | None = None


class ImageFailed(Config):
    """An image of several that could not be captioned."""

    error: ErrorDetail


class CaptionsResponse(Config):
    """The captions of several images."""

    results: list[CaptionResponse | ImageFailed]
    """Of each image, in the order of the request."""
