"""Which tokens come next, for the rows of many captions at once.

Shapes: B captions' searches, R rows of each, V vocab_size.
"""

from __future__ import annotations

import torch


def best_continuations(
    logits: torch.Tensor, log_probability: torch.Tensor, num: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The most probable continuations of each search's rows together, best first.

    Args:
        logits: (B, R, V) float32.
        log_probability: (B, R) of the rows so far.
        num: C, how many; at most R * V.

    Returns:
        their log-probabilities, rows and token ids, each (B, C).
    """
    # No row has more than C among the best C: so sums are made for R * C continuations instead of R * V.
    of_row, token_ids = logits.topk(min(num, logits.shape[-1]))  # (B, R, C)
    totals = of_row - logits.logsumexp(-1, keepdim=True) + log_probability[..., None]
    best, places = totals.flatten(1).topk(num)
    return best, places // of_row.shape[-1], token_ids.flatten(1).gather(1, places)


def nucleus(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What sampling draws from: the fewest tokens that have the probability ``top_p`` (Holtzman et al. 2020).

    Args:
        logits: (B, R, V) float32.
        temperature, top_p: (B,).

    Returns:
        probabilities (B, R, V) float64, the largest first, 0 outside the nucleus, not normalised; their token ids.
    """
    ordered, token_ids = logits.sort(dim=-1, descending=True, stable=True)
    # In double precision: in single, the sum over a vocabulary would be too rough to compare a draw near 1 with.
    probability = (ordered.double() / temperature[:, None, None]).softmax(-1)
    before = probability.cumsum(-1) - probability
    outside = (before >= top_p[:, None, None]) & (top_p < 1)[:, None, None]
    return probability.masked_fill_(outside, 0.0), token_ids


def draw(logits: torch.Tensor, uniforms: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Token ids (B, R) from the nucleus, by inversion of its cumulative probabilities.

    Args:
        logits: (B, R, V) float32.
        uniforms: Uniform[0, 1), (B, R).
        temperature, top_p: (B,).
    """
    probability, token_ids = nucleus(logits, temperature, top_p)
    cumulative = probability.cumsum(-1)
    drawn = uniforms[..., None].double() * cumulative[..., -1:]
    place = torch.searchsorted(cumulative, drawn, right=True)
    return token_ids.gather(-1, place).squeeze(-1)
