from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from raycap.clip_judge import ClipJudge
from raycap.errors import UserError
from raycap.metrics.caption import caption_scores

IMAGES = {
    f"{index}.png": Image.fromarray(np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8))
    for index in range(5)
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP of random weights that reads letters, 40 at most."""
    folder = str(tmp_path_factory.mktemp("clip"))
    names = ["<|startoftext|>", "<|endoftext|>", *(letter + end for letter in "abcdeghiopst" for end in ("", "</w>"))]
    CLIPTokenizer(vocab={name: index for index, name in enumerate(names)}, merges=[]).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = shape | {
        "vocab_size": len(names), "max_position_embeddings": 40,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    vision = shape | {"image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)  # larger weights tell inputs apart
    model.save_pretrained(folder)
    return folder


def test_cosines_of_the_embeddings_are_the_models_own_logits(directory: str) -> None:
    texts, image_ids = ["a dog", "the cat is", "a"], list(IMAGES)
    model = CLIPModel.from_pretrained(directory).eval()
    inputs = CLIPTokenizer.from_pretrained(directory)(texts, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(directory)(images=list(IMAGES.values()), return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs, **pixels).logits_per_image / model.logit_scale.exp()
    clip = ClipJudge(directory, IMAGES.__getitem__, batch_size=2)
    images, words = clip.embed_images(image_ids), clip.embed_texts(texts)
    assert (images.shape, words.shape) == ((5, 8), (3, 8))
    images, words = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, words))
    np.testing.assert_allclose(images @ words.T, logits.numpy(), atol=1e-5)
    assert np.ptp(logits.numpy()) > 0.05, "the case shows nothing: all are alike"


def test_it_judges_captions(directory: str) -> None:
    captions = dict.fromkeys(IMAGES, "a dog")
    references = {image_id: ["the cat", "a dog"] for image_id in IMAGES}
    scores = caption_scores(captions, references, clip=ClipJudge(directory, IMAGES.__getitem__), java=False)
    assert 0 <= scores["clipscore"] <= 2.5
    # A reference that is the caption itself has cosine 1.
    per_image = [
        caption_scores({i: "a dog"}, {i: ["a dog"]}, ClipJudge(directory, IMAGES.__getitem__), java=False)
        for i in IMAGES
    ]
    expected = [2 * s["clipscore"] / (s["clipscore"] + 1) for s in per_image]
    assert scores["refclipscore"] == pytest.approx(np.mean(expected), abs=1e-5)


def test_a_text_too_long_is_cut_and_a_place_without_a_clip_is_named(directory: str, tmp_path: Path) -> None:
    clip = ClipJudge(directory, IMAGES.__getitem__)
    assert clip.embed_texts(["a " * 100, "a"]).shape == (2, 8)
    with pytest.raises(UserError, match="source = "):
        ClipJudge(str(tmp_path), IMAGES.__getitem__)
