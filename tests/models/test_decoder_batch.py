"""A step gives the logits of the whole sequence, whatever came and went; an image is projected once."""

from __future__ import annotations

import random

import pytest
import torch
from tiny import make_decoder

from raycap.models.blip import BlipCaptionDecoder
from raycap.models.decoder_batch import DecoderBatch


@pytest.fixture(scope="module")
def decoder() -> BlipCaptionDecoder:
    return make_decoder(0)


def random_embeds(seed: int, num_images: int) -> torch.Tensor:
    return torch.randn(num_images, 5, 16, generator=torch.Generator().manual_seed(seed))


def test_logits_are_those_of_the_whole_sequence_while_slots_come_go_and_move(decoder: BlipCaptionDecoder) -> None:
    drawn, batch = random.Random(0), DecoderBatch(decoder.text_decoder, 3, 5)
    slots: list[tuple[torch.Tensor, list[list[int]]]] = []  # image, tokens of each row
    moved = 0
    for step in range(60):
        if len(slots) < 7 and drawn.random() < 0.6:
            images = random_embeds(step, drawn.randint(1, 3))
            batch.join(images, drawn.randint(10, 16))
            slots += [(image, [[], [], []]) for image in images]
        for slot in reversed(range(len(slots))):
            if len(slots[slot][1][0]) == 9 or drawn.random() < 0.1:
                moved += slot < len(slots) - 1
                batch.leave(slot)
                slots[slot] = slots[-1]
                slots.pop()
        assert batch.num_slots == len(slots)
        if not slots:
            continue
        parents = [[drawn.randrange(3) if rows[0] else row for row in range(3)] for _, rows in slots]
        token_ids = [[drawn.randrange(5, 40) for _ in range(3)] for _ in slots]
        logits = batch.step(torch.tensor(token_ids), torch.tensor(parents))
        slots = [
            (image, [[*rows[parent], token] for parent, token in zip(of_rows, tokens, strict=True)])
            for (image, rows), of_rows, tokens in zip(slots, parents, token_ids, strict=True)
        ]
        for of_slot, (image, rows) in zip(logits, slots, strict=True):
            with torch.inference_mode():
                expected = decoder(image.expand(3, -1, -1), torch.tensor(rows))[:, -1]
            assert torch.allclose(of_slot, expected, atol=2e-3, rtol=1e-4)
    assert moved > 10


@pytest.mark.parametrize("num_rows", [1, 4])
def test_an_image_s_keys_and_values_are_made_once_and_for_all_rows(decoder: BlipCaptionDecoder, num_rows: int) -> None:
    shapes: list[torch.Size] = []
    projections = [
        projection
        for layer in decoder.text_decoder.bert.encoder.layer
        for projection in (layer.crossattention.self.key, layer.crossattention.self.value)
    ]
    hooks = [projection.register_forward_hook(lambda *call: shapes.append(call[2].shape)) for projection in projections]
    batch = DecoderBatch(decoder.text_decoder, num_rows, 5)
    batch.join(random_embeds(0, 3), 16)
    for _ in range(4):
        batch.step(torch.full((3, num_rows), 7))
    for hook in hooks:
        hook.remove()
    assert shapes == [(3, 5, 16)] * len(projections)


def test_memory_grows_by_doubling_and_is_given_back_as_slots_leave(decoder: BlipCaptionDecoder) -> None:
    batch = DecoderBatch(decoder.text_decoder, 1, 5)
    capacities = []
    for seed in range(9):
        batch.join(random_embeds(seed, 1), 4)
        capacities.append(batch.capacity)
    assert capacities == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    for _ in range(9):
        batch.leave(0)
        capacities.append(batch.capacity)
    assert capacities[9:] == [16, 16, 16, 16, 8, 8, 4, 2, 0]
