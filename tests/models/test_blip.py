"""BLIP in halves gives exactly what transformers' whole gives."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import png
from transformers import AutoTokenizer, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers_search import generate_options

from raycap.models.blip import BlipShape, Decoding
from raycap.models.refinement import Refinement
from raycap.predictor import CaptionPredictor

SEARCHES = {
    "greedy": Decoding(max_new_tokens=8),
    "beam 3": Decoding(max_new_tokens=8, num_beams=3),
    "prompt": Decoding(max_new_tokens=6, num_beams=2, prompt="a red"),
}
SAMPLING = Decoding(max_new_tokens=8, do_sample=True, temperature=1.5, top_p=0.95, seed=3)


def images(count: int = 6) -> list[Image.Image]:
    return [Image.open(io.BytesIO(png(seed, size=24 + seed))) for seed in range(count)]


def captions_of_transformers(directory: str, decoding: Decoding) -> list[str]:
    model = BlipForConditionalGeneration.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    pixels = BlipImageProcessorPil.from_pretrained(directory)(images(), return_tensors="pt").pixel_values
    prompt = {}
    if decoding.prompt:
        encoded = tokenizer([decoding.prompt] * len(pixels), return_tensors="pt")
        prompt = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
    token_ids = model.generate(pixel_values=pixels, **prompt, **generate_options(decoding))
    return tokenizer.batch_decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", SEARCHES)
def test_captions_equal_those_of_transformers(tiny_blip: str, name: str) -> None:
    expected = captions_of_transformers(tiny_blip, SEARCHES[name])
    assert CaptionPredictor.from_pretrained(tiny_blip).caption(images(), SEARCHES[name]) == expected
    assert len(set(expected)) > 1, "images that all get one caption prove nothing"


def test_one_draw_is_the_first_of_several_and_another_seed_draws_another(tiny_blip: str) -> None:
    predictor = CaptionPredictor.from_pretrained(tiny_blip)
    decoder, embeds = predictor.decoder.decoder, predictor.encode(predictor.preprocess(images()))
    captions = decoder.generate(embeds, SAMPLING)
    draws = decoder.propose(embeds, SAMPLING, 3)
    assert decoder.tokenizer.batch_decode(draws[:, 0, 1:], skip_special_tokens=True) == captions
    assert decoder.generate(embeds, SAMPLING.model_copy(update={"seed": 4})) != captions


@pytest.mark.parametrize("name", SEARCHES)
def test_gate_zero_changes_no_caption(tiny_blip: str, tiny_rbm: str, name: str) -> None:
    expected = captions_of_transformers(tiny_blip, SEARCHES[name])
    predictor = CaptionPredictor.from_pretrained(tiny_blip, tiny_rbm)
    assert predictor.caption(images(), SEARCHES[name], Refinement(gate=0.0)) == expected


def test_the_rbm_changes_the_embeddings_it_is_asked_to(tiny_blip: str, tiny_rbm: str) -> None:
    predictor = CaptionPredictor.from_pretrained(tiny_blip, tiny_rbm)
    embeds = predictor.encode(predictor.preprocess(images()))
    half, whole = (predictor.refine(embeds, Refinement(gate=gate)) for gate in (0.5, 1.0))
    assert torch.allclose(half, (embeds + whole) / 2, atol=1e-5)
    assert not torch.allclose(whole, embeds, atol=1e-2)
    twice = predictor.refine(embeds, Refinement(passes=2))
    assert torch.allclose(twice, predictor.refine(whole, Refinement()), atol=1e-5)


def test_pixels_equal_those_of_the_processor_bit_for_bit(tiny_blip: str) -> None:
    predictor = CaptionPredictor.from_pretrained(tiny_blip)
    processed = BlipImageProcessorPil.from_pretrained(tiny_blip)(images(), return_tensors="pt").pixel_values
    ours = predictor.encoder.encoder.normalise(torch.from_numpy(predictor.preprocess(images())))
    assert torch.equal(ours, processed)


def test_sampling_leaves_the_global_generator_alone(tiny_blip: str) -> None:
    predictor = CaptionPredictor.from_pretrained(tiny_blip)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    predictor.caption(images(1), SAMPLING)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("decoding", [SEARCHES["beam 3"], SAMPLING], ids=["beam 3", "sampling"])
def test_a_caption_does_not_depend_on_its_batch(tiny_blip: str, decoding: Decoding) -> None:
    predictor = CaptionPredictor.from_pretrained(tiny_blip)
    together = predictor.caption(images(), decoding)
    assert [predictor.caption([image], decoding)[0] for image in images()] == together
    assert len(set(together)) > 1


def test_bf16_weights_leave_the_preprocessing_exact(tiny_blip: str) -> None:
    from raycap.hardware import Precision

    pixels = torch.from_numpy(np.stack([np.asarray(image.resize((16, 16))) for image in images()]))
    full, half = (CaptionPredictor.from_pretrained(tiny_blip, precision=p) for p in (Precision.FP32, Precision.BF16))
    assert torch.equal(full.encoder.encoder.normalise(pixels), half.encoder.encoder.normalise(pixels))
    assert full.encoder.id == half.encoder.id


@pytest.mark.parametrize(("size", "message"), [({"patch_size": 7}, "image_size"), ({"num_heads": 3}, "embed_dim")])
def test_sizes_that_do_not_fit_are_refused(size: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlipShape(**size)
