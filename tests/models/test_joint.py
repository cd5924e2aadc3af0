"""One pass of the decoder gives a caption's probability, as transformers has it, and its joint embedding."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from tiny import CAPTIONS, png
from transformers import BlipForConditionalGeneration
from transformers_search import generate_options

from raycap.checkpoint.pretrained import load_blip
from raycap.data.text import encode_captions
from raycap.models.blip import BlipCaptionDecoder, Decoding
from raycap.models.joint import score_captions
from raycap.predictor import CaptionPredictor

BEAM = Decoding(max_new_tokens=8, num_beams=4)
PROMPTED = Decoding(max_new_tokens=12, num_beams=4, prompt="a red")
DRAWS = Decoding(max_new_tokens=8, do_sample=True, temperature=1.5, seed=3)


@pytest.fixture(scope="module")
def predictor(tiny_blip: str) -> CaptionPredictor:
    return CaptionPredictor.from_pretrained(tiny_blip)


@pytest.fixture(scope="module")
def decoder(predictor: CaptionPredictor) -> BlipCaptionDecoder:
    return predictor.decoder.decoder


@pytest.fixture(scope="module")
def image_embeds(predictor: CaptionPredictor) -> torch.Tensor:
    images = [Image.open(io.BytesIO(png(seed))) for seed in range(5)]
    return predictor.encode(predictor.preprocess(images))


@pytest.mark.parametrize("decoding", [BEAM, PROMPTED, DRAWS], ids=["beam", "prompt", "draws"])
def test_log_probability_is_that_of_transformers_whole_model(
    tiny_blip: str, decoder: BlipCaptionDecoder, image_embeds: torch.Tensor, decoding: Decoding
) -> None:
    candidates = decoder.propose(image_embeds, decoding, 4)
    given = 1 + (2 if decoding.prompt else 0)
    scores = score_captions(decoder, image_embeds, candidates, given)
    model = BlipForConditionalGeneration.from_pretrained(tiny_blip).eval()
    lengths = set()
    for image, of_image in enumerate(candidates):
        for index, token_ids in enumerate(of_image.tolist()):
            end = token_ids.index(decoder.eos_id) + 1 if decoder.eos_id in token_ids else len(token_ids)
            input_ids = torch.tensor([token_ids[:end]])  # alone and without padding
            with torch.inference_mode():
                logits = model.text_decoder(
                    input_ids=input_ids, encoder_hidden_states=image_embeds[image : image + 1]
                ).logits[0]
            steps = logits.double().log_softmax(-1)[given - 1 : -1].gather(1, input_ids[0, given:, None])
            assert scores.log_probability[image, index].item() == pytest.approx(steps.sum().item(), rel=1e-5, abs=1e-4)
            assert scores.num_tokens[image, index].item() == len(steps)
            lengths.add(len(steps))
    assert len(lengths) > 1, "captions of one length prove nothing of padding"


def test_log_probabilities_are_the_scores_that_beam_search_itself_gives(
    decoder: BlipCaptionDecoder, image_embeds: torch.Tensor
) -> None:
    outputs = decoder.text_decoder.generate(
        input_ids=torch.full((5, 1), decoder.bos_id),
        eos_token_id=decoder.eos_id,
        pad_token_id=decoder.pad_id,
        encoder_hidden_states=image_embeds,
        encoder_attention_mask=torch.ones(image_embeds.shape[:2], dtype=torch.long),
        num_return_sequences=4,
        return_dict_in_generate=True,
        output_scores=True,
        length_penalty=0.0,
        **generate_options(BEAM),
    )
    candidates = outputs.sequences.unflatten(0, (5, 4))
    scores = score_captions(decoder, image_embeds, candidates)
    assert torch.allclose(scores.log_probability.flatten(), outputs.sequences_scores, rtol=1e-4, atol=1e-4)


def test_a_caption_s_scores_depend_neither_on_padding_nor_on_its_company(
    decoder: BlipCaptionDecoder, image_embeds: torch.Tensor
) -> None:
    input_ids = torch.from_numpy(encode_captions(decoder.tokenizer, CAPTIONS, decoder.bos_id, "", 16))
    together = score_captions(decoder, image_embeds, input_ids.expand(5, -1, -1))
    for image in range(5):
        for index, caption in enumerate(input_ids):
            alone = caption[: int((caption != decoder.pad_id).sum())]
            by_itself = score_captions(decoder, image_embeds[image : image + 1], alone[None, None])
            for ours, theirs in zip(together, by_itself, strict=True):
                assert torch.allclose(ours[image, index], theirs[0, 0], atol=1e-4)


def test_a_joint_embedding_is_the_image_s_mean_and_the_mean_of_the_states_that_tell_the_caption(
    tiny_blip: str, decoder: BlipCaptionDecoder, image_embeds: torch.Tensor
) -> None:
    input_ids = torch.from_numpy(encode_captions(decoder.tokenizer, CAPTIONS[2:3], decoder.bos_id, "", 16))
    length = int((input_ids != decoder.pad_id).sum())
    joint = score_captions(decoder, image_embeds[:1], input_ids[None]).joint_embeds[0, 0]
    _, whole = load_blip(tiny_blip)
    with torch.inference_mode():
        states = whole.text_decoder(
            input_ids=input_ids[:, :length], encoder_hidden_states=image_embeds[:1], output_hidden_states=True
        ).hidden_states[-1][0]
    assert joint.shape == (32,)
    assert torch.allclose(joint[:16], image_embeds[0].mean(0), atol=1e-5)
    assert torch.allclose(joint[16:], states[:-1].mean(0), atol=1e-5)  # without [SEP]'s, which tells nothing


def test_different_images_and_captions_have_different_embeddings(
    decoder: BlipCaptionDecoder, image_embeds: torch.Tensor
) -> None:
    input_ids = torch.from_numpy(encode_captions(decoder.tokenizer, CAPTIONS, decoder.bos_id, "", 16))
    joint = score_captions(decoder, image_embeds, input_ids.expand(5, -1, -1)).joint_embeds.flatten(0, 1)
    assert torch.pdist(joint).min() > 1e-3


def test_the_best_of_a_beam_stands_first_and_is_the_caption(
    decoder: BlipCaptionDecoder, image_embeds: torch.Tensor
) -> None:
    candidates = decoder.propose(image_embeds, BEAM, 4)
    assert candidates.shape[:2] == (5, 4)
    texts = decoder.tokenizer.batch_decode(candidates[:, 0, 1:], skip_special_tokens=True)
    assert texts == decoder.generate(image_embeds, BEAM)
    for of_image in candidates.tolist():
        assert len({tuple(token_ids) for token_ids in of_image}) == 4
