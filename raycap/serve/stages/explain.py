"""Attention of a caption's words, from that of its tokens."""

import numpy as np
import torch

from raycap.models.blip import BlipCaptionDecoder
from raycap.models.caption_attention import attention_maps
from raycap.serve.stages.pipeline import Attention

_CONTINUES_A_WORD = "##"  # WordPiece's mark


def explain(
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
