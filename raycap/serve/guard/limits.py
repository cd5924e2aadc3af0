"""What one request may bring and ask for; everything beyond is refused with a 4xx."""

from pydantic import Field, model_validator

from raycap.config import Config
from raycap.data.images import MAX_PIXELS


class Limits(Config):
    """The largest request."""

    max_image_bytes: int = Field(default=20 * 1024 * 1024, ge=1)
    """Of an image file."""

    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Width times height of an image, read from the file's header before any pixel is decoded."""

    max_images: int = Field(default=16, ge=1)
    """Of one request to /v1/captions or /v1/embeddings."""

    max_body_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """Of a request with several images; one with a single image may have max_image_bytes and what base64 adds."""

    max_held_bytes: int = Field(default=512 * 1024 * 1024, ge=1)
    """Of bodies and fetched images that one replica of the ingress holds at once, until they are pixels; requests
    beyond are answered 503 with Retry-After."""

    max_float_numbers: int = Field(default=1_000_000, ge=1)
    """Of one answer of /v1/embeddings with `encoding_format: float`, which takes far more bytes and time than base64:
    in that an answer has as many as there are."""

    max_header_bytes: int = Field(default=32 * 1024, ge=1024)
    """Of a request's headers, path and query."""

    decode_seconds: float = Field(default=10.0, gt=0)
    """How long an image may take to decode and resize."""

    request_seconds: float = Field(default=60.0, gt=0)
    """How long a request may take in all; then its work is cancelled in every stage."""

    max_new_tokens: int = Field(default=64, ge=1)
    """Of a caption, beyond its prompt."""

    max_beams: int = Field(default=8, ge=1)
    """Of a beam search."""

    max_captions: int = Field(default=8, ge=1)
    """Of one image."""

    max_passes: int = Field(default=8, ge=1)
    """Through the RBM."""

    max_prompt_characters: int = Field(default=200, ge=0)
    """Of the text that a caption continues; 0 refuses all prompts but the empty one."""

    @model_validator(mode="after")
    def _largest_request_can_be_held(self) -> "Limits":
        # In base64, a third more.
        largest = max(self.max_body_bytes, 2 * self.max_image_bytes)
        if self.max_held_bytes < largest:
            raise ValueError(
                f"max_held_bytes ({self.max_held_bytes}) must be at least max_body_bytes ({self.max_body_bytes}) and "
                f"twice max_image_bytes ({self.max_image_bytes})"
            )
        return self
