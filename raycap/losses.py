"""Losses as pure functions of tensors."""

from __future__ import annotations

import torch
from torch.nn import functional

IGNORE_INDEX = -100


def caption_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each next token (the LM loss of BLIP, Li et al. 2022, section 3.2).

    Args:
        logits: (B, T, vocab_size); position t scores the token at t + 1.
        labels: (B, T) token ids; IGNORE_INDEX (prompt, padding) does not count.

    Returns:
        a scalar, in nats per counted token.
    """
    shifted = logits[:, :-1].float().flatten(0, 1)  # (B * (T - 1), vocab_size)
    return functional.cross_entropy(shifted, labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)


def contrastive_divergence(data_free_energy: torch.Tensor, negative_free_energy: torch.Tensor) -> torch.Tensor:
    """Mean F(data) - mean F(negatives): its gradient is the CD update (Hinton 2002, equation 5).

    The negatives must carry no gradient. The value itself is no measure of fit.

    Args:
        data_free_energy: (B,) in nats.
        negative_free_energy: (B,) in nats.
    """
    return data_free_energy.mean() - negative_free_energy.mean()


def coverage_loss(attention: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """How far each region is from being attended to once: the doubly stochastic attention of Xu et al. 2015, eq. 14.

    Args:
        attention: (B, T, R), summing to 1 over the regions.
        counted: (B, T), where there is a word.

    Returns:
        sum over the regions of (1 - sum over the words)^2, its mean over the batch, a scalar.
    """
    attended = (attention.float() * counted.unsqueeze(-1)).sum(1)  # (B, R)
    return (1 - attended).square().sum(-1).mean()


def policy_gradient_loss(log_probability: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """Its gradient estimates that of the expected reward, reversed (Williams 1992; Rennie et al. 2017, equation 7).

    Args:
        log_probability: (B,) in nats, of drawn captions.
        advantage: (B,) reward less a baseline that does not depend on the draw; carries no gradient.
    """
    return -(advantage.detach() * log_probability).mean()
