"""Captions out of an LSTM captioner: greedy, beam search, nucleus sampling; with what it looked at for each word.

No caption depends on the images beside it: a beam competes with its own image's alone, and drawn numbers belong to
(seed, draw, step). Shapes as in raycap.models.lstm_captioner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from pydantic import Field, model_validator

from raycap.config import Config
from raycap.models.lstm_captioner import EOS_ID, PAD_ID, SOS_ID, UNK_ID, LstmCaptioner, State


class LstmDecoding(Config):
    """How captions are searched: greedy, beam or nucleus."""

    max_words: int = Field(default=28, ge=1)
    """Longest caption."""

    num_beams: int = Field(default=1, ge=1)
    """1 is greedy (or sampling)."""

    num_captions: int = Field(default=1, ge=1)
    """Of each image: the best of the beams; of sampling as many draws, which may repeat."""

    length_penalty: float = Field(default=1.0, ge=0)
    """Beams compete by log-probability / length^penalty; 0 favours short captions most."""

    no_repeat_words: int = Field(default=0, ge=0)
    """So many words in a row come once in a caption (3 blocks trigrams); 0 is off."""

    do_sample: bool = False
    """Draw words instead of searching for the most probable."""

    temperature: float = Field(default=1.0, gt=0)
    """Of sampling."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sampling draws from the fewest words that have so much probability (Holtzman et al. 2020)."""

    seed: int = 0
    """Of sampling."""

    @model_validator(mode="after")
    def _kinds_fit(self) -> LstmDecoding:
        if self.do_sample and self.num_beams > 1:
            raise ValueError(f"num_beams ({self.num_beams}) must be 1 with do_sample; set num_captions for more draws")
        if not self.do_sample and self.num_captions > self.num_beams:
            raise ValueError(f"num_captions ({self.num_captions}) must be at most num_beams ({self.num_beams})")
        return self


OnWord = Callable[[int, int], None]
"""Told of an image, by its place in the batch, and the word it was given next."""


class Caption(NamedTuple):
    """One caption, without the words that begin and end it."""

    token_ids: list[int]
    attention: torch.Tensor
    """(T, R), a row for each word."""
    log_probability: float
    """In nats, of the words and, where the caption ended by itself, of its end."""


class _Beams(NamedTuple):
    """Captions side by side; one that has ended stands among them, with padding for its further words."""

    token_ids: torch.Tensor
    """(B, W, 1 + t), the first SOS_ID."""
    attention: torch.Tensor
    """(B, W, t, R)."""
    log_probability: torch.Tensor
    """(B, W); -inf where there is no caption."""
    state: State


@torch.inference_mode()
def write_captions(
    model: LstmCaptioner, region_features: torch.Tensor, decoding: LstmDecoding, on_word: OnWord | None = None
) -> list[list[Caption]]:
    """Captions of every image: of a search the best first, of sampling in the order of the draws.

    Args:
        model: in evaluation mode.
        region_features: (B, R, D).
        on_word: called as words are found, if each image has one caption at a time (no beams, one draw): a beam may
            yet be given up.

    Returns:
        ``num_captions`` for each of B images; a search gives fewer where there are not so many.
    """
    regions, start = model.begin(region_features)
    beams = _first_beams(region_features, start, decoding)
    draws = _draws(decoding).to(region_features.device)
    for t in range(decoding.max_words):
        ended = _ended(beams.token_ids)
        if bool((ended | beams.log_probability.isinf()).all()):
            break
        step = model.step(regions, beams.state, model.embedding(beams.token_ids[..., -1]))
        log_probs = model.score(step.hidden).float().log_softmax(-1)  # (B, W, V)
        _forbid(log_probs, beams.token_ids, ended, decoding.no_repeat_words)
        if decoding.do_sample:
            words = _draw(log_probs, draws[:, t], decoding)
            parents = torch.arange(words.shape[1], device=words.device).expand_as(words)
        else:
            parents, words = _search(log_probs, beams, ended, decoding.length_penalty)
        beams = _extend(beams._replace(state=step.state), step.attention, log_probs, parents, words)
        if on_word is not None and words.shape[1] == 1:
            for index, word in enumerate(words[:, 0].tolist()):
                if word not in (EOS_ID, PAD_ID):
                    on_word(index, word)
    return [
        [_caption(*caption) for caption in zip(*image, strict=True) if not caption[2].isinf()][: decoding.num_captions]
        for image in zip(beams.token_ids.cpu(), beams.attention.cpu(), beams.log_probability.cpu(), strict=True)
    ]


def _first_beams(region_features: torch.Tensor, start: State, decoding: LstmDecoding) -> _Beams:
    num_images, num_regions, _ = region_features.shape
    width = decoding.num_captions if decoding.do_sample else decoding.num_beams
    log_probability = torch.zeros(num_images, width, device=region_features.device)
    if not decoding.do_sample:
        log_probability[:, 1:] = -torch.inf  # else the beams would all be the same
    token_ids = torch.full((num_images, width, 1), SOS_ID, device=region_features.device)
    attention = region_features.new_empty(num_images, width, 0, num_regions)
    state = State(*(part.expand(-1, width, -1) for part in start))
    return _Beams(token_ids, attention, log_probability, state)


def _ended(token_ids: torch.Tensor) -> torch.Tensor:
    last = token_ids[..., -1]
    return (last == EOS_ID) | (last == PAD_ID)


def _forbid(log_probs: torch.Tensor, token_ids: torch.Tensor, ended: torch.Tensor, no_repeat_words: int) -> None:
    """Leave only words and the end, none that repeats; of what has ended only padding, which costs nothing."""
    log_probs[..., [PAD_ID, SOS_ID, UNK_ID]] = -torch.inf
    if no_repeat_words and token_ids.shape[-1] >= no_repeat_words:
        runs = token_ids.unfold(-1, no_repeat_words, 1)  # (B, W, runs, n)
        context = token_ids[..., token_ids.shape[-1] - no_repeat_words + 1 :].unsqueeze(-2)  # (B, W, 1, n - 1)
        again = (runs[..., :-1] == context).all(-1).to(log_probs.dtype)  # (B, W, runs)
        repeats = torch.zeros_like(log_probs).scatter_add_(-1, runs[..., -1], again) > 0
        log_probs.masked_fill_(repeats, -torch.inf)
    log_probs.masked_fill_(ended.unsqueeze(-1), -torch.inf)
    log_probs[..., PAD_ID].masked_fill_(ended, 0.0)


def _search(
    log_probs: torch.Tensor, beams: _Beams, ended: torch.Tensor, length_penalty: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best continuations of an image's beams, best first: from which beam, by which word, both (B, W)."""
    totals = beams.log_probability.unsqueeze(-1) + log_probs  # (B, W, V)
    lengths = (beams.token_ids != PAD_ID).sum(-1) - ended.long()  # words, the next one and the end included
    ranks = totals / lengths.unsqueeze(-1) ** length_penalty
    best = ranks.flatten(1).topk(totals.shape[1]).indices
    return best // log_probs.shape[-1], best % log_probs.shape[-1]


def _draws(decoding: LstmDecoding) -> torch.Tensor:
    """Uniform[0, 1), (num_captions, max_words)."""
    generator = torch.Generator().manual_seed(decoding.seed)
    return torch.rand(decoding.num_captions, decoding.max_words, generator=generator)


def _draw(log_probs: torch.Tensor, draws: torch.Tensor, decoding: LstmDecoding) -> torch.Tensor:
    """Words (B, W) from the nucleus, by inversion of their cumulative probabilities.

    Args:
        draws: Uniform[0, 1), (W,), the same for every image.
    """
    # In double precision: in single, a draw just below 1 could round to 1, behind the last word.
    # From 0 downwards: however small the temperature, the likeliest word stays finite.
    scores = (log_probs - log_probs.amax(-1, keepdim=True)).double() / decoding.temperature
    probability, words = scores.softmax(-1).sort(-1, descending=True)
    before = probability.cumsum(-1) - probability
    nucleus = probability.masked_fill(before >= decoding.top_p, 0.0).cumsum(-1)  # (B, W, V)
    place = (nucleus <= draws.unsqueeze(-1) * nucleus[..., -1:]).sum(-1, keepdim=True)
    return words.gather(-1, place).squeeze(-1)


def _extend(
    beams: _Beams, attention: torch.Tensor, log_probs: torch.Tensor, parents: torch.Tensor, words: torch.Tensor
) -> _Beams:
    """Each beam's parent, one word longer."""

    def of_parents(tensor: torch.Tensor) -> torch.Tensor:
        index = parents.view(*parents.shape, *[1] * (tensor.ndim - 2)).expand(-1, -1, *tensor.shape[2:])
        return tensor.gather(1, index)

    gained = of_parents(log_probs).gather(-1, words.unsqueeze(-1)).squeeze(-1)
    return _Beams(
        torch.cat([of_parents(beams.token_ids), words.unsqueeze(-1)], -1),
        of_parents(torch.cat([beams.attention, attention.unsqueeze(2)], 2)),
        of_parents(beams.log_probability) + gained,
        State(*(of_parents(part) for part in beams.state)),
    )


def _caption(token_ids: torch.Tensor, attention: torch.Tensor, log_probability: torch.Tensor) -> Caption:
    words = [token for token in token_ids[1:].tolist() if token not in (EOS_ID, PAD_ID)]
    return Caption(words, attention[: len(words)], log_probability.item())
