"""The captioning loss counts the caption's tokens, and nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from raycap.checkpoint.pretrained import load_blip
from raycap.data.text import count_prompt_tokens, encode_captions
from raycap.losses import IGNORE_INDEX, caption_loss
from raycap.tasks.captioning import CaptioningTask


def batch_of(
    tiny_blip: str, captions: list[str], prompt: str, max_tokens: int
) -> tuple[CaptioningTask, dict[str, torch.Tensor]]:
    encoder, decoder = load_blip(tiny_blip)
    input_ids = encode_captions(decoder.tokenizer, captions, decoder.bos_id, prompt, max_tokens)
    num_prompt_tokens = count_prompt_tokens(decoder.tokenizer, prompt)
    images = np.random.default_rng(0).integers(0, 256, (len(captions), 16, 16, 3), dtype=np.uint8)
    task = CaptioningTask(encoder, decoder, num_prompt_tokens)
    return task, {"images": torch.from_numpy(images), "input_ids": torch.from_numpy(input_ids)}


def test_padding_never_changes_the_loss(tiny_blip: str) -> None:
    captions = ["a red circle", "a green circle above a red square"]
    losses = []
    for max_tokens in (10, 16):
        task, batch = batch_of(tiny_blip, captions, "", max_tokens)
        losses.append(task(batch)["caption_loss"])
    assert torch.allclose(losses[0], losses[1], atol=1e-6)


def test_the_loss_is_the_mean_over_caption_tokens_without_the_prompt(tiny_blip: str) -> None:
    task, batch = batch_of(tiny_blip, ["red circle"], "a", 12)
    ids = batch["input_ids"]
    tokens = task.decoder.tokenizer.convert_ids_to_tokens(ids[0].tolist())
    assert tokens[:5] == ["[DEC]", "a", "red", "circle", "[SEP]"]
    logits = task.decoder(task.encoder(batch["images"]), ids[:, :5])[0]
    # Position t scores the token at t + 1; of "[DEC] a red circle [SEP]" the last three are learned.
    expected = functional.cross_entropy(logits[1:4], ids[0, 2:5])
    assert torch.allclose(task(batch)["caption_loss"], expected, atol=1e-6)


def test_transformers_gives_the_same_loss(tiny_blip: str) -> None:
    from transformers import BlipForConditionalGeneration

    task, batch = batch_of(tiny_blip, ["a red circle", "there is a blue circle"], "", 12)
    model = BlipForConditionalGeneration.from_pretrained(tiny_blip).eval()
    model.text_decoder.label_smoothing = 0.0
    ids = batch["input_ids"]
    output = model(
        pixel_values=task.encoder.normalise(batch["images"]),
        input_ids=ids,
        attention_mask=(ids != task.decoder.pad_id).long(),
        labels=ids.masked_fill(ids == task.decoder.pad_id, IGNORE_INDEX),
    )
    assert torch.allclose(task(batch)["caption_loss"], output.loss, atol=1e-5)


def test_a_perfect_prediction_has_no_loss() -> None:
    labels = torch.tensor([[IGNORE_INDEX, 3, 1, IGNORE_INDEX]])
    logits = torch.zeros(1, 4, 5)
    logits[0, 0, 3] = logits[0, 1, 1] = 100.0
    assert caption_loss(logits, labels) < 1e-6
