"""Choosing among proposed captions: by their log-probability, and an RBM's free energy of image and caption together.

Shapes: B images, C candidates of each, N image tokens, D embed_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field, model_validator

from raycap import storage
from raycap.checkpoint import EncoderId, load_rbm_refiner
from raycap.config import Config
from raycap.data.text import count_prompt_tokens
from raycap.errors import UserError
from raycap.hardware import default_device
from raycap.models.blip import BlipCaptionDecoder, Decoding
from raycap.models.joint import score_captions


class Rerank(Config):
    """How one of several captions is chosen: the one with the highest

    log_probability_weight * log p(caption | image) - free_energy_weight * F(image, caption),

    of equals the more probable. Both terms are in nats; F is known up to a constant, which chooses nothing.
    """

    num_candidates: int = Field(default=5, ge=1)
    """Captions proposed for each image: the beams' best, or, with sampling, as many draws."""

    log_probability_weight: float = 1.0

    length_normalised: bool = False
    """Weigh the mean log-probability of a caption's tokens, as beam search does; the sum favours short captions."""

    free_energy_weight: float = 0.0

    rbm: str | None = None
    """RBM directory or s3:// prefix, trained on this BLIP's image_text embeddings of jobs/extract.py."""

    @model_validator(mode="after")
    def _weighs_what_is_there(self) -> Rerank:
        if self.free_energy_weight != 0 and self.rbm is None:
            raise ValueError(f"free_energy_weight ({self.free_energy_weight:g}) needs an RBM; set rbm, or weigh it 0")
        return self

    def require_candidates(self, decoding: Decoding, field: str = "decoding") -> None:
        """See that the search gives so many candidates, of the kind that the RBM knows.

        Raises:
            UserError: it does not; ``field`` names the setting that holds ``decoding``.
        """
        draws = decoding.do_sample and decoding.num_beams == 1
        if not draws and decoding.num_beams < self.num_candidates:
            raise UserError(
                f"{field}.num_beams = {decoding.num_beams}: gives no {self.num_candidates} candidates; set at least "
                f"{self.num_candidates}, or 1 with do_sample: true"
            )
        if self.rbm is not None and decoding.prompt:
            raise UserError(
                f"{field}.prompt = {decoding.prompt!r}: the RBM that re-ranks was trained on captions without one; "
                "leave it empty"
            )


class Candidate(NamedTuple):
    """A proposed caption."""

    caption: str

    log_probability: float
    """Given the image, in nats: of its tokens' sum, or their mean if so asked for."""

    free_energy: float
    """Of image and caption, in nats, up to a constant; 0 without an RBM."""


class Reranker:
    """Proposes captions and chooses among them, on the device.

    Args:
        pair: whose joint embeddings it is given; an RBM trained on others is refused. None where that is known.
        field: the setting that holds ``settings``, for errors.

    Raises:
        UserError: there is no such RBM, or it was trained on other embeddings.
    """

    def __init__(self, settings: Rerank, pair: EncoderId | None = None, field: str = "rerank") -> None:
        self.settings = settings
        self.rbm = None
        if settings.rbm is not None:
            self.rbm = load_rbm_refiner(settings.rbm, pair, f"{field}.rbm")[0].to(default_device())

    def __call__(self, decoder: BlipCaptionDecoder, image_embeds: torch.Tensor, decoding: Decoding) -> list[str]:
        """(B, N, D) in the decoder's type to B captions."""
        return [max(of_image, key=self.score).caption for of_image in self.propose(decoder, image_embeds, decoding)]

    def score(self, candidate: Candidate) -> float:
        """What the chosen candidate has most of."""
        settings = self.settings
        weighted = settings.log_probability_weight * candidate.log_probability
        return weighted - settings.free_energy_weight * candidate.free_energy

    @torch.inference_mode()
    def propose(
        self, decoder: BlipCaptionDecoder, image_embeds: torch.Tensor, decoding: Decoding
    ) -> list[list[Candidate]]:
        """For each image its candidates, no text twice, the more probable first.

        Args:
            image_embeds: (B, N, D) in the decoder's type, as the decoder reads them: refined, if they are.
        """
        token_ids = decoder.propose(image_embeds, decoding, self.settings.num_candidates)  # (B, C, T)
        num_given = count_prompt_tokens(decoder.tokenizer, decoding.prompt)
        scores = score_captions(decoder, image_embeds, token_ids, num_given)
        log_probability = scores.log_probability
        if self.settings.length_normalised:
            log_probability = log_probability / scores.num_tokens
        free_energy = torch.zeros_like(log_probability)
        if self.rbm is not None:
            free_energy = self.rbm.rbm.free_energy(self.rbm.standardise(scores.joint_embeds))
        texts = decoder.tokenizer.batch_decode(token_ids[..., 1:].flatten(0, 1), skip_special_tokens=True)
        figures = zip(texts, log_probability.flatten().tolist(), free_energy.flatten().tolist(), strict=True)
        candidates = [Candidate(*figure) for figure in figures]
        num = self.settings.num_candidates
        return [_distinct(candidates[start : start + num]) for start in range(0, len(candidates), num)]


def _distinct(candidates: list[Candidate]) -> list[Candidate]:
    """The more probable first, and of those with one text only the most probable."""
    distinct: dict[str, Candidate] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.log_probability, reverse=True):
        distinct.setdefault(candidate.caption, candidate)
    return list(distinct.values())


def absolute_rerank(settings: Rerank) -> Rerank:
    """The same with its RBM's path as any process of the cluster finds it."""
    return settings if settings.rbm is None else settings.model_copy(update={"rbm": storage.absolute(settings.rbm)})
