"""Captions drawn from an LSTM captioner with the gradient of their log-probabilities, for learning from rewards.

Shapes as in raycap.models.lstm_captioner.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from raycap.models.lstm_captioner import EOS_ID, PAD_ID, SOS_ID, UNK_ID, LstmCaptioner


class Rollout(NamedTuple):
    """Drawn captions."""

    token_ids: torch.Tensor
    """(B, T), the words, their end, padding."""
    log_probability: torch.Tensor
    """(B,) in nats, of words and end; has a gradient."""


def draw_captions(model: LstmCaptioner, region_features: torch.Tensor, max_words: int) -> Rollout:
    """Draw a caption of each image by torch's default generator, from the words that decoding can write.

    Args:
        region_features: (B, R, D).
        max_words: after so many words a caption ends, whatever its last word.
    """
    regions, state = model.begin(region_features)
    num_images, device = len(region_features), region_features.device
    words = torch.full((num_images, 1), SOS_ID, device=device)
    ended = torch.zeros(num_images, dtype=torch.bool, device=device)
    log_probability = torch.zeros(num_images, device=device)
    drawn = []
    for _ in range(max_words):
        step = model.step(regions, state, model.embedding(words))
        state = step.state
        logits = model.score(step.hidden[:, 0]).float()  # (B, V)
        barred = torch.zeros_like(logits, dtype=torch.bool)
        barred[:, [PAD_ID, SOS_ID, UNK_ID]] = True
        log_probs = logits.masked_fill(barred, -torch.inf).log_softmax(-1)
        words = torch.multinomial(log_probs.detach().exp(), 1)  # (B, 1)
        gained = log_probs.gather(-1, words).squeeze(-1)
        log_probability = log_probability + gained.masked_fill(ended, 0.0)
        words = words.masked_fill(ended.unsqueeze(-1), PAD_ID)
        drawn.append(words)
        ended = ended | (words.squeeze(-1) == EOS_ID)
        if bool(ended.all()):
            break
    return Rollout(torch.cat(drawn, 1), log_probability)
