"""The LSTM captioner: the published sizes, and what may and may not depend on what."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetModel

from raycap.models.lstm_captioner import LstmCaptioner
from raycap.models.resnet_regions import ResNetRegions, ResNetShape


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def tiny(**settings: object) -> LstmCaptioner:
    torch.manual_seed(0)
    return LstmCaptioner(12, 6, 8, 10, **settings).eval()  # type: ignore[arg-type]


def inputs(batch_size: int = 3, length: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    regions = torch.randn(batch_size, 4, 10, generator=generator)
    return regions, torch.randint(4, 12, (batch_size, length), generator=generator)


def test_the_decoder_has_the_published_number_of_parameters() -> None:
    assert count(LstmCaptioner(12_509)) == 10_091_998


def test_with_resnet50_it_has_the_published_number_of_parameters() -> None:
    resnet = ResNetModel(ResNetConfig())
    assert count(resnet) + count(LstmCaptioner(12_509)) == 33_600_030
    assert count(ResNetShape().build()) == count(resnet)


def test_one_step_is_the_published_formula() -> None:
    model = tiny(dropout=0.0)
    regions, input_ids = inputs(length=1)
    mean = regions.mean(1)
    h, c = model.initial_hidden(mean), model.initial_cell(mean)
    # One linear map of (region, hidden state) to 1, its weight in two parts.
    weight = torch.cat([model.region_key.weight, model.hidden_key.weight], 1)
    pairs = torch.cat([regions, h.unsqueeze(1).expand(-1, 4, -1)], -1)  # (B, R, D + H)
    attention = (pairs @ weight.T + model.hidden_key.bias).squeeze(-1).softmax(-1)
    context = (attention.unsqueeze(-1) * regions).sum(1)
    h, _ = model.cell(torch.cat([model.embedding(input_ids[:, 0]), context], -1), (h, c))
    scores = model(regions, input_ids)
    assert torch.allclose(scores.attention[:, 0], attention, atol=1e-6)
    assert torch.allclose(scores.logits[:, 0], model.output(h), atol=1e-6)


def test_attention_sums_to_one_and_only_the_additive_one_moves_from_word_to_word() -> None:
    regions, input_ids = inputs()
    for attention_dim, moves in ((None, False), (7, True)):
        attention = tiny(attention_dim=attention_dim)(regions, input_ids).attention
        assert attention.shape == (3, 5, 4)
        assert torch.allclose(attention.sum(-1), torch.ones(3, 5))
        assert torch.allclose(attention[:, 0], attention[:, 4], atol=1e-6) != moves


def test_the_gate_scales_the_context() -> None:
    regions, input_ids = inputs()
    gated, plain = tiny(gated=True), tiny()
    plain.load_state_dict({k: v for k, v in gated.state_dict().items() if not k.startswith("gate")})
    assert gated.gate is not None
    nn.init.zeros_(gated.gate.weight)
    nn.init.constant_(gated.gate.bias, 50.0)  # wide open
    assert torch.allclose(gated(regions, input_ids).logits, plain(regions, input_ids).logits)
    nn.init.constant_(gated.gate.bias, -50.0)  # shut: the regions matter for the first state alone
    shut = gated(regions, input_ids).logits
    shifted = regions + torch.tensor([1.0, -1.0, 2.0, -2.0]).view(1, 4, 1)  # the same mean
    assert torch.allclose(gated(shifted, input_ids).logits, shut, atol=1e-5)
    assert not torch.allclose(plain(shifted, input_ids).logits, plain(regions, input_ids).logits, atol=1e-3)


def test_later_words_and_batch_mates_change_no_score() -> None:
    model = tiny(attention_dim=5, gated=True)
    regions, input_ids = inputs()
    scores = model(regions, input_ids).logits
    changed = input_ids.clone()
    changed[:, 3:] = 0
    assert torch.allclose(model(regions, changed).logits[:, :3], scores[:, :3], atol=1e-6)
    assert torch.allclose(model(regions[:1], input_ids[:1]).logits, scores[:1], atol=1e-6)


def test_scheduled_sampling_reads_the_model_s_own_words() -> None:
    model = tiny()
    regions, input_ids = inputs()
    nn.init.zeros_(model.output.weight)
    nn.init.constant_(model.output.bias, -100.0)
    with torch.no_grad():
        model.output.bias[7] = 100.0  # it always says 7
    own = torch.full_like(input_ids, 7)
    own[:, 0] = input_ids[:, 0]
    hidden: dict[str, torch.Tensor] = {}
    model.output.register_forward_pre_hook(lambda module, arguments: hidden.update(last=arguments[0]))
    model(regions, input_ids, sampling=1.0)
    sampled = hidden["last"]
    model(regions, own)
    assert torch.allclose(sampled, hidden["last"], atol=1e-6)
    model(regions, input_ids)
    assert not torch.allclose(sampled, hidden["last"], atol=1e-3)


def test_the_settings_build_the_same_model_again() -> None:
    model = tiny(attention_dim=5, gated=True, dropout=0.25)
    again = LstmCaptioner(**model.settings)  # type: ignore[arg-type]
    again.load_state_dict(model.state_dict())
    assert again.settings == model.settings


@pytest.mark.parametrize("image_size", [32, 70])
def test_images_of_any_size_become_seven_by_seven_regions(image_size: int) -> None:
    shape = ResNetShape(embedding_size=4, hidden_sizes=(8, 16), depths=(1, 1), layer_type="basic")
    encoder = ResNetRegions(shape.build(), image_size).eval()
    images = torch.randint(0, 256, (2, image_size, image_size, 3), dtype=torch.uint8)
    assert encoder(images).shape == (2, 49, 16) == (2, encoder.num_tokens, encoder.embed_dim)


def test_pooling_to_the_map_s_own_size_keeps_the_features_row_by_row() -> None:
    torch.manual_seed(0)
    shape = ResNetShape(embedding_size=4, hidden_sizes=(8,), depths=(1,), layer_type="basic")
    encoder = ResNetRegions(shape.build(), 32, grid=8).eval()
    images = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    features = encoder.resnet(encoder.normalise(images)).last_hidden_state  # (1, 8, 8, 8)
    assert torch.equal(encoder(images)[0, 8 * 2 + 5], features[0, :, 2, 5])
