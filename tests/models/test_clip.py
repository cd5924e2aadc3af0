"""CLIP's halves: what CLIPModel and CLIPProcessor give, for any image, any text, in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from raycap.checkpoint.pretrained import load_clip
from raycap.models.clip import ClipImageEncoder, ClipTextEncoder

TEXTS = ["a red circle", "", "A  BLUE square!", "there is a green circle above 3 red squares", "é", "ab " * 60]


@pytest.fixture(scope="module")
def clip(tiny_clip: str) -> tuple[ClipImageEncoder, ClipTextEncoder]:
    return load_clip(tiny_clip)


def make_images(height: int, width: int) -> np.ndarray:
    """Three images of coarse squares, which a resize leaves different."""
    coarse = np.random.default_rng(height).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    resized = [Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST) for image in coarse]
    return np.stack([np.asarray(image) for image in resized])


@pytest.mark.parametrize(("height", "width"), [(24, 24), (64, 64), (16, 16), (30, 70), (70, 30), (3, 40)])
def test_cosines_are_those_of_transformers(
    clip: tuple[ClipImageEncoder, ClipTextEncoder], tiny_clip: str, height: int, width: int
) -> None:
    images = make_images(height, width)
    model, processor = CLIPModel.from_pretrained(tiny_clip).eval(), CLIPProcessor.from_pretrained(tiny_clip)
    pictures = [Image.fromarray(image) for image in images]
    inputs = processor(text=TEXTS, images=pictures, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs).logits_per_image / model.logit_scale.exp()  # (B, n)
    cosines = clip[0](images) @ clip[1](TEXTS).T
    torch.testing.assert_close(cosines, expected, atol=1e-5, rtol=0)
    assert expected.std(0).min() > 0.02, "images that are all alike prove nothing"
    assert expected.std(1).min() > 0.1, "texts that are all alike prove nothing"


def test_batch_mates_change_no_direction(clip: tuple[ClipImageEncoder, ClipTextEncoder]) -> None:
    images = make_images(32, 32)
    alone = torch.cat([clip[0](image[None]) for image in images])
    torch.testing.assert_close(clip[0](images), alone, atol=1e-5, rtol=0)
    alone = torch.cat([clip[1]([text]) for text in TEXTS])
    torch.testing.assert_close(clip[1](TEXTS), alone, atol=1e-5, rtol=0)


def test_of_a_long_text_the_first_75_tokens_count(clip: tuple[ClipImageEncoder, ClipTextEncoder]) -> None:
    text = "abcdefghij" * 10  # a token each; bos and eos make 77 of the first 75
    whole, longest, shorter = clip[1]([text, text[:76], text[:74]])
    torch.testing.assert_close(whole, longest, atol=1e-5, rtol=0)
    assert (whole - shorter).abs().max() > 1e-2
