"""Choosing among proposed captions: by their log-probability, an RBM's free energy of image and caption together, and
the cosine that a CLIP finds between them.

Shapes: B images, C candidates of each, N image tokens, D embed_dim, E CLIP's projection_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field, model_validator

from raycap import storage
from raycap.checkpoint.directory import absolute_source
from raycap.checkpoint.identity import EncoderId
from raycap.checkpoint.pretrained import load_clip
from raycap.checkpoint.refiner import load_rbm_refiner
from raycap.config import Config
from raycap.data.text import count_prompt_tokens
from raycap.errors import UserError
from raycap.hardware import default_device
from raycap.models.blip import BlipCaptionDecoder, Decoding
from raycap.models.joint import score_captions


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


class Candidate(NamedTuple):
    """A proposed caption."""

    caption: str

    log_probability: float
    """Given the image, in nats: of its tokens' sum, or their mean if so asked for."""

    free_energy: float
    """Of image and caption, in nats, up to a constant; 0 without an RBM."""

    clip_score: float
    """Cosine between CLIP's embeddings of image and caption; 0 without a CLIP."""

    token_ids: list[int]
    """bos, prompt, caption, and [SEP] where it ended by itself."""


class Reranker:
    """Proposes captions and chooses among them, on the device.

    Of a CLIP it holds the half that reads texts; the other's image_features come in, made where the pixels are.

    Args:
        pair: whose joint embeddings it is given; an RBM trained on others is refused. None where that is known.
        field: the setting that holds ``settings``, for errors.

    Raises:
        UserError: there is no such RBM or CLIP, or the RBM was trained on other embeddings.
    """

    def __init__(self, settings: Rerank, pair: EncoderId | None = None, field: str = "rerank") -> None:
        self.settings = settings
        self.rbm = None
        if settings.rbm is not None:
            self.rbm = load_rbm_refiner(settings.rbm, pair, f"{field}.rbm")[0].to(default_device())
        self.clip = None
        if settings.clip is not None:
            self.clip = load_clip(settings.clip, f"{field}.clip")[1].to(default_device())

    def __call__(
        self,
        decoder: BlipCaptionDecoder,
        image_embeds: torch.Tensor,
        decoding: Decoding,
        image_features: torch.Tensor | None = None,
    ) -> list[str]:
        """(B, N, D) in the decoder's type, and for a CLIP (B, E), to B captions."""
        proposed = self.propose(decoder, image_embeds, decoding, image_features)
        return [max(candidates, key=self.score).caption for candidates in proposed]

    def score(self, candidate: Candidate) -> float:
        """What the chosen candidate has most of."""
        settings = self.settings
        return (
            settings.log_probability_weight * candidate.log_probability
            - settings.free_energy_weight * candidate.free_energy
            + settings.clip_weight * candidate.clip_score
        )

    @torch.inference_mode()
    def propose(
        self,
        decoder: BlipCaptionDecoder,
        image_embeds: torch.Tensor,
        decoding: Decoding,
        image_features: torch.Tensor | None = None,
    ) -> list[list[Candidate]]:
        """For each image its candidates, no text twice, the more probable first.

        Args:
            image_embeds: (B, N, D) in the decoder's type, as the decoder reads them: refined, if they are.
            image_features: (B, E) of the images themselves, from the other half of ``settings.clip``.
        """
        token_ids = decoder.propose(image_embeds, decoding, self.settings.num_candidates)
        return self.judge(decoder, image_embeds, token_ids, decoding, image_features)

    @torch.inference_mode()
    def judge(
        self,
        decoder: BlipCaptionDecoder,
        image_embeds: torch.Tensor,
        token_ids: torch.Tensor,
        decoding: Decoding,
        image_features: torch.Tensor | None = None,
    ) -> list[list[Candidate]]:
        """The candidates of :meth:`propose`, of captions that are proposed already.

        Args:
            token_ids: (B, C, T), as :meth:`BlipCaptionDecoder.propose` gives them.
        """
        assert (image_features is None) == (self.clip is None), "image_features are for a CLIP, and a CLIP needs them"
        num_given = count_prompt_tokens(decoder.tokenizer, decoding.prompt)
        scores = score_captions(decoder, image_embeds, token_ids, num_given)
        log_probability = scores.log_probability
        if self.settings.length_normalised:
            log_probability = log_probability / scores.num_tokens
        free_energy = torch.zeros_like(log_probability)
        if self.rbm is not None:
            free_energy = self.rbm.rbm.free_energy(self.rbm.standardise(scores.joint_embeds))
        rows = [[token for token in row if token != decoder.pad_id] for row in token_ids.flatten(0, 1).tolist()]
        texts = decoder.texts(rows)
        clip_score = torch.zeros_like(log_probability)
        if self.clip is not None and image_features is not None:
            text_features = self.clip(texts).unflatten(0, token_ids.shape[:2])  # (B, C, E)
            clip_score = (image_features.to(text_features)[:, None] * text_features).sum(-1)
        figures = (figure.flatten().tolist() for figure in (log_probability, free_energy, clip_score))
        candidates = [Candidate(*of_candidate) for of_candidate in zip(texts, *figures, rows, strict=True)]
        num = token_ids.shape[1]
        return [_distinct(candidates[start : start + num]) for start in range(0, len(candidates), num)]


def _distinct(candidates: list[Candidate]) -> list[Candidate]:
    """The more probable first, and of those with one text only the most probable."""
    distinct: dict[str, Candidate] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.log_probability, reverse=True):
        distinct.setdefault(candidate.caption, candidate)
    return list(distinct.values())


def absolute_rerank(settings: Rerank) -> Rerank:
    """The same with its models' paths as any process of the cluster finds them."""
    rbm = None if settings.rbm is None else storage.absolute(settings.rbm)
    clip = None if settings.clip is None else absolute_source(settings.clip)
    return settings.model_copy(update={"rbm": rbm, "clip": clip})
