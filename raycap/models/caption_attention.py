"""Where in the image the decoder looked for each word of a caption."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from raycap.models.written_caption import Attention

if TYPE_CHECKING:
    from raycap.models.blip import BlipCaptionDecoder


_CONTINUES_A_WORD = "##"  # WordPiece's mark


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


def word_attention(
    decoder: BlipCaptionDecoder, image_embeds: torch.Tensor, token_ids: list[int], num_given: int = 1
) -> Attention:
    """Where the decoder looked for each word that it chose; of a word in several pieces the mean.

    Args:
        image_embeds: (N, D) of any float type, on any device; the first token is the class token's.
        token_ids: bos, prompt, caption, and eos where it ended by itself.
        num_given: of them, bos and prompt.
    """
    weight = decoder.text_decoder.get_input_embeddings().weight
    maps = attention_maps(decoder, image_embeds.to(weight), torch.tensor(token_ids, device=weight.device))
    patches = maps[:, 1:].cpu().numpy()  # (T, N - 1)
    edge = round(patches.shape[1] ** 0.5)
    words: list[str] = []
    of_words: list[list[np.ndarray]] = []
    special = set(decoder.tokenizer.all_special_ids) | {decoder.bos_id, decoder.eos_id, decoder.pad_id}
    for token_id, of_token in zip(token_ids[num_given:], patches[num_given:], strict=True):
        if token_id in special:
            continue
        token = decoder.tokenizer.convert_ids_to_tokens(token_id)
        piece = token.removeprefix(_CONTINUES_A_WORD)
        if piece != token and words:
            words[-1] += piece
            of_words[-1].append(of_token)
        else:
            words.append(piece)
            of_words.append([of_token])
    means = [np.mean(of_word, axis=0) for of_word in of_words]
    grids = np.stack(means) if means else np.zeros((0, edge * edge), np.float32)
    return Attention(words, grids.reshape(-1, edge, edge).astype(np.float32))
