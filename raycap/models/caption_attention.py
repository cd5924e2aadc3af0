"""Where in the image the decoder looked for each word of a caption."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from raycap.models.blip import BlipCaptionDecoder


@torch.inference_mode()
def attention_maps(decoder: BlipCaptionDecoder, image_embeds: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Cross-attention of a finished caption, from one pass over all of it.

    The mean over the heads of all layers: heads and layers look for different things, and which of them find the
    named object differs from one training to the next; their mean needs no choice made on one model's pictures.

    Args:
        decoder: in evaluation mode.
        image_embeds: (N, D) in the weights' type.
        token_ids: (T,), bos, prompt and caption.

    Returns:
        (T, N) float32: row t is the attention of the step that predicted token t and sums to 1; the first row, of
        bos, which nothing predicted, is 0.
    """
    attention = decoder.text_decoder.bert(
        input_ids=token_ids[None],
        encoder_hidden_states=image_embeds[None],
        use_cache=False,
        is_decoder=True,
        output_attentions=True,
    ).cross_attentions  # of each layer (1, h, T, N)
    of_layers = torch.stack([of_layer[0].float().mean(0) for of_layer in attention])
    maps = of_layers.mean(0).roll(1, 0)  # a step stands at the token that it read
    maps[0] = 0
    return maps
