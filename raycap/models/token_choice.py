"""Which tokens come next, for the rows of many captions at once.

Shapes: B captions' searches, R rows of each, M = B * R, V vocab_size.
"""

from __future__ import annotations

import torch

_PART_TOKENS = 128
_FEW_TOKENS = 512
_LEAST_TEMPERATURE = 1e-4  # below it only the likeliest token is ever drawn


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """Token ids (...) of the largest of (..., V) logits; of equal ones the first.

    Part by part: a maximum alone takes a tenth of the time of torch's argmax on a CPU.
    """
    vocab_size = logits.shape[-1]
    whole = vocab_size - vocab_size % _PART_TOKENS
    of_parts = [logits[..., :whole].unflatten(-1, (-1, _PART_TOKENS)).amax(-1)] if whole else []
    if whole < vocab_size:
        of_parts.append(logits[..., whole:].amax(-1, keepdim=True))
    part = torch.cat(of_parts, -1).argmax(-1, keepdim=True)  # (..., 1)
    # Beyond the last token stands that one again, which is not the first of its kind then.
    places = part * _PART_TOKENS + torch.arange(_PART_TOKENS, device=logits.device)
    in_part = logits.gather(-1, places.clamp_max_(vocab_size - 1)).argmax(-1)
    return part.squeeze(-1) * _PART_TOKENS + in_part


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


def nucleus(logits: torch.Tensor, top_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What sampling draws from: the fewest tokens that have the probability ``top_p`` (Holtzman et al. 2020).

    Args:
        logits: (M, V) float32, divided by the temperature.
        top_p: (M,).

    Returns:
        probabilities (M, V) float64, the largest first, 0 outside the nucleus, not normalised; their token ids.
    """
    ordered, token_ids = logits.sort(dim=-1, descending=True, stable=True)
    # In double precision: in single, the sum over a vocabulary would be too rough to compare a draw near 1 with.
    probability = ordered.double().softmax(-1)
    outside = probability.cumsum(-1) - probability >= top_p[:, None]
    outside[:, 0] = False  # the likeliest, however little is asked for
    return probability.masked_fill_(outside, 0.0), token_ids


def draw(logits: torch.Tensor, uniforms: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Token ids (B, R) from the nucleus, by inversion of its cumulative probabilities.

    How a row is computed depends on that row alone, or a draw would depend on its batch.

    Args:
        logits: (B, R, V) float32.
        uniforms: Uniform[0, 1), (B, R).
        temperature, top_p: (B,).
    """
    # Bounded, and from 0 downwards: however small the temperature, nothing is infinite.
    scale = temperature.clamp_min(_LEAST_TEMPERATURE)[:, None, None]
    rows = ((logits - logits.amax(-1, keepdim=True)) / scale).flatten(0, 1)  # (M, V)
    top_p, places = top_p[:, None].expand_as(uniforms).flatten(), uniforms.flatten()
    # To sort a vocabulary takes as long as a layer of the decoder, and the nucleus is mostly among a few tokens.
    # In the vocabulary's order, in which a stable sort leaves tokens of equal probability.
    few = rows.topk(min(_FEW_TOKENS, rows.shape[-1])).indices.sort(-1).values
    of_few = rows.gather(1, few)
    share = top_p / (of_few.logsumexp(-1) - rows.logsumexp(-1)).exp()  # of their probability, in the nucleus
    token_ids = few.gather(1, _invert(places, *nucleus(of_few, share))[:, None]).squeeze(1)
    whole = top_p == 1
    if whole.any():  # needs no order
        token_ids[whole] = _invert(places[whole], rows[whole].double().softmax(-1))
    wide = (share > 1) & ~whole
    if wide.any():
        token_ids[wide] = _invert(places[wide], *nucleus(rows[wide], top_p[wide]))
    return token_ids.view_as(uniforms)


def _invert(uniforms: torch.Tensor, probability: torch.Tensor, token_ids: torch.Tensor | None = None) -> torch.Tensor:
    """Where (M,) uniform numbers lie in cumulative probabilities (M, V), as token ids, if these are not in order."""
    cumulative = probability.cumsum(-1)
    drawn = uniforms[:, None].double() * cumulative[:, -1:]
    # Clamped: what is no number would lie beyond the last, and on a GPU end the process's every later computation.
    found = torch.searchsorted(cumulative, drawn, right=True).clamp_max(cumulative.shape[-1] - 1)
    return (found if token_ids is None else token_ids.gather(1, found)).squeeze(1)
