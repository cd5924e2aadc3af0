"""Choosing among proposed captions: by their log-probability, an RBM's free energy of image and caption together, and
the cosine that a CLIP finds between them.

Shapes: B images, C candidates of each, N image tokens, D embed_dim, E CLIP's projection_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from raycap.checkpoint.identity import EncoderId
from raycap.checkpoint.pretrained import load_clip
from raycap.checkpoint.refiner import load_rbm_refiner
from raycap.data.text import count_prompt_tokens
from raycap.hardware import default_device
from raycap.models.blip import BlipCaptionDecoder
from raycap.models.decoding import Decoding
from raycap.models.joint import score_captions
from raycap.rerank import Rerank


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
