"""Attention maps are the mean of what each step of transformers' decoder attends to."""

from __future__ import annotations

import pytest
import torch
from tiny import make_decoder

from raycap.models.caption_attention import attention_maps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_are_the_mean_of_the_heads_and_layers_of_each_step(dtype: torch.dtype) -> None:
    decoder = make_decoder(0).to(dtype)
    image = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    token_ids = torch.tensor([decoder.bos_id, 9, 12, 30, decoder.eos_id])
    maps = attention_maps(decoder, image, token_ids)
    assert maps.shape == (5, 5)
    assert maps.dtype == torch.float32
    assert not maps[0].any()
    for position in range(1, 5):
        with torch.inference_mode():
            outputs = decoder.text_decoder(
                input_ids=token_ids[None, :position],
                encoder_hidden_states=image[None],
                output_attentions=True,
            )
        heads = torch.cat([of_layer[0, :, -1].float() for of_layer in outputs.cross_attentions])
        assert torch.allclose(maps[position], heads.mean(0), atol=1e-5 if dtype is torch.float32 else 2e-2)
        assert maps[position].sum() == pytest.approx(1, abs=1e-5 if dtype is torch.float32 else 2e-2)
    assert torch.pdist(maps[1:]).min() > 1e-3
