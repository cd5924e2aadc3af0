"""An image and a caption as one vector, and how probable the caption is, from one pass of BLIP's decoder.

Shapes: B images, C captions of each, T tokens of a caption, N image tokens, D embed_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from raycap.models.blip import BlipCaptionDecoder


class CaptionScores(NamedTuple):
    """What the decoder makes of given captions; float32."""

    log_probability: torch.Tensor
    """log p(caption | image, prompt) in nats, summed over tokens, [SEP] among them where it is there: (B, C)."""

    num_tokens: torch.Tensor
    """How many tokens were summed over: (B, C)."""

    joint_embeds: torch.Tensor
    """Mean of the image's tokens, then mean of the decoder's last states that tell the caption's tokens: (B, C, 2D)."""


@torch.inference_mode()
def score_captions(
    decoder: BlipCaptionDecoder, image_embeds: torch.Tensor, input_ids: torch.Tensor, num_given: int = 1
) -> CaptionScores:
    """Teacher-force captions; none depends on the others of its image, on its batch, or on padding.

    Args:
        image_embeds: (B, N, D) in the weights' type.
        input_ids: (B, C, T), each caption from bos to its first [SEP], or to T; what follows is padding.
        num_given: first tokens (bos and prompt) that count in no probability.
    """
    num_captions, num_tokens = input_ids.shape[1:]
    positions = torch.arange(num_tokens, device=input_ids.device).repeat(num_captions)  # (C * T)
    # The captions of an image lie behind one another in one sequence, each blind to the others: so the decoder
    # projects the image's tokens once, not once for each caption. Padding comes last, where no token looks.
    caption = torch.arange(num_captions, device=input_ids.device).repeat_interleave(num_tokens)
    visible = (caption[:, None] == caption) & (positions[:, None] >= positions)
    mask = torch.zeros(visible.shape, dtype=image_embeds.dtype, device=input_ids.device)
    mask.masked_fill_(~visible, torch.finfo(mask.dtype).min)
    model = decoder.text_decoder
    states = model.bert(
        input_ids=input_ids.flatten(1),
        attention_mask=mask.expand(len(input_ids), 1, -1, -1),
        position_ids=positions[None],
        encoder_hidden_states=image_embeds,
        use_cache=False,
        is_decoder=True,
    ).last_hidden_state
    # A state says what comes next: those of bos to the last word are the caption's.
    states = states.unflatten(1, (num_captions, num_tokens))[:, :, num_given - 1 : -1]  # (B, C, T - given, D)
    targets = input_ids[:, :, num_given:]
    log_probability = -functional.cross_entropy(
        model.cls(states).flatten(0, 2).float(), targets.flatten(), reduction="none"
    ).view_as(targets)
    ends = (targets == decoder.eos_id).long()
    counted = ends.cumsum(-1) - ends == 0  # up to the first [SEP]
    num_counted = counted.sum(-1)
    text = (states.float() * counted[..., None]).sum(2) / num_counted[..., None]
    image = image_embeds.float().mean(1)[:, None].expand(-1, num_captions, -1)
    return CaptionScores((log_probability * counted).sum(-1), num_counted, torch.cat([image, text], dim=-1))
