"""Packed layers give the bits of those they stand for, and stand where they are faster only."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from raycap.data.text import train_wordpiece
from raycap.models.blip import BlipShape, build_blip
from raycap.models.decoding import Decoding
from raycap.models.packed_linear import PackedLinear, can_pack, pack_linears

needs_bf16 = pytest.mark.skipif(not can_pack(), reason="this CPU, or this torch, has no packed bf16 products")


@needs_bf16
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_packed_layer_gives_the_same_bits(bias: bool) -> None:
    linear = nn.Linear(96, 40, bias=bias).bfloat16()
    packed = PackedLinear(linear)
    for shape in [(96,), (1, 96), (7, 96), (3, 5, 96), (2, 3, 4, 96)]:
        states = torch.randn(shape).bfloat16()
        assert torch.equal(packed(states), linear(states))


@needs_bf16
@torch.inference_mode()
def test_a_packed_blip_says_the_same() -> None:
    torch.manual_seed(0)
    tokenizer = train_wordpiece(["a red square above a blue circle"] * 2, 200)
    encoder, decoder = (half.bfloat16().eval() for half in build_blip(BlipShape(), tokenizer))
    packed_encoder, packed_decoder = copy.deepcopy(encoder), copy.deepcopy(decoder)
    pack_linears(packed_encoder)
    pack_linears(packed_decoder)
    for packed in (packed_encoder, packed_decoder):
        assert any(isinstance(layer, PackedLinear) for layer in packed.modules())
        assert not any(isinstance(layer, nn.Linear) for layer in packed.modules())
    images = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    image_embeds = encoder(images)
    assert torch.equal(packed_encoder(images), image_embeds)
    for decoding in (Decoding(), Decoding(num_beams=3)):
        assert packed_decoder.generate(image_embeds, decoding) == decoder.generate(image_embeds, decoding)


def test_single_precision_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    before = list(model.modules())
    pack_linears(model)
    assert list(model.modules()) == before


def test_without_such_products_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycap.models.packed_linear.can_pack", lambda: False)
    model = nn.Sequential(nn.Linear(4, 4)).bfloat16()
    pack_linears(model)
    assert type(model[0]) is nn.Linear
