"""How one of several proposed captions is chosen, as a setting that evaluation and serving share."""

from __future__ import annotations

from pydantic import Field, model_validator

from raycap import storage
from raycap.checkpoint.directory import absolute_source
from raycap.config import Config
from raycap.errors import UserError
from raycap.models.decoding import Decoding


class Rerank(Config):
    """How one of several captions is chosen: the one with the highest

    log_probability_weight * log p(caption | image) - free_energy_weight * F(image, caption)
        + clip_weight * cos(image, caption),

    of equals the more probable. The first two are in nats; F is known up to a constant, which chooses nothing.
    """

    num_candidates: int = Field(default=5, ge=1)
    """Captions proposed for each image: the beams' best, or, with sampling, as many draws."""

    log_probability_weight: float = 1.0

    length_normalised: bool = False
    """Weigh the mean log-probability of a caption's tokens, as beam search does; the sum favours short captions."""

    free_energy_weight: float = 0.0

    rbm: str | None = None
    """RBM directory or s3:// prefix, trained on this BLIP's image_text embeddings of jobs/extract.py."""

    clip_weight: float = 0.0
    """Of the cosine between CLIP's embeddings of image and caption, -1 to 1. Weighed by CLIP's own logit
    scale (100 in the published ones) it is in nats too."""

    clip: str | None = None
    """CLIP: a directory of the model's and the processor's save_pretrained, an s3:// prefix or a hub name. It computes
    in float32 whatever BLIP does, and sees the image as BLIP does: squeezed into a square of BLIP's size."""

    @model_validator(mode="after")
    def _weighs_what_is_there(self) -> Rerank:
        if self.free_energy_weight != 0 and self.rbm is None:
            raise ValueError(f"free_energy_weight ({self.free_energy_weight:g}) needs an RBM; set rbm, or weigh it 0")
        if self.clip_weight != 0 and self.clip is None:
            raise ValueError(f"clip_weight ({self.clip_weight:g}) needs a CLIP; set clip, or weigh it 0")
        return self

    def require_candidates(self, decoding: Decoding, field: str = "decoding") -> None:
        """See that the search gives so many candidates, of the kind that the RBM knows.

        Raises:
            UserError: it does not; ``field`` names the setting that holds ``decoding``.
        """
        if not decoding.do_sample and decoding.num_beams < self.num_candidates:
            raise UserError(
                f"{field}.num_beams = {decoding.num_beams}: gives no {self.num_candidates} candidates; set at least "
                f"{self.num_candidates}, or 1 with do_sample: true"
            )
        if self.rbm is not None and decoding.prompt:
            raise UserError(
                f"{field}.prompt = {decoding.prompt!r}: the RBM that re-ranks was trained on captions without one; "
                "leave it empty"
            )

    def absolute(self) -> Rerank:
        """The same with its models' paths as any process of the cluster finds them."""
        rbm = None if self.rbm is None else storage.absolute(self.rbm)
        clip = None if self.clip is None else absolute_source(self.clip)
        return self.model_copy(update={"rbm": rbm, "clip": clip})
