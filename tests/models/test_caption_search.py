"""Searches find what transformers' ``generate`` finds, the best of many beams and their scores too."""

from __future__ import annotations

import pytest
import torch
from tiny import make_decoder
from transformers_search import generate_options

from raycap.models.blip import BlipCaptionDecoder
from raycap.models.caption_search import Caption, begin_search
from raycap.models.continuous_decoding import ContinuousDecoder, DecodingRequest
from raycap.models.decoding import Decoding

NUM_IMAGES = 6


def random_embeds(seed: int, num_images: int = NUM_IMAGES) -> torch.Tensor:
    return torch.randn(num_images, 5, 16, generator=torch.Generator().manual_seed(seed))


def ours(
    decoder: BlipCaptionDecoder, embeds: torch.Tensor, decoding: Decoding, num_captions: int
) -> list[list[Caption]]:
    searching = ContinuousDecoder(decoder, 100)
    searching.add_all([DecodingRequest(index, image, decoding, num_captions) for index, image in enumerate(embeds)])
    found = {}
    while searching.num_active_rows:
        found |= {progress.request_id: progress.captions for progress in searching.step()}
    return [found[index] for index in range(len(embeds))]


def theirs(
    decoder: BlipCaptionDecoder, embeds: torch.Tensor, decoding: Decoding, num_captions: int
) -> tuple[list[list[int]], list[float]]:
    """Token ids up to the first [SEP], and the beams' scores."""
    input_ids = torch.tensor([decoder.prompt_ids(decoding.prompt)] * len(embeds))
    outputs = decoder.text_decoder.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        encoder_hidden_states=embeds,
        encoder_attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        eos_token_id=decoder.eos_id,
        pad_token_id=decoder.pad_id,
        num_return_sequences=num_captions,
        return_dict_in_generate=True,
        output_scores=True,
        **generate_options(decoding),
    )
    rows = outputs.sequences.tolist()
    cut = [row[: row.index(decoder.eos_id) + 1] if decoder.eos_id in row else row for row in rows]
    scores = outputs.sequences_scores.tolist() if decoding.num_beams > 1 else []
    return cut, scores


@pytest.mark.parametrize("prompt", ["", "a red"])
@pytest.mark.parametrize("num_beams", [1, 3, 5])
def test_captions_and_scores_equal_those_of_transformers(num_beams: int, prompt: str) -> None:
    decoding = Decoding(max_new_tokens=10, num_beams=num_beams, prompt=prompt)
    lengths, best = set(), set()
    for seed in range(5):
        decoder, embeds = make_decoder(seed), random_embeds(seed)
        captions = [caption for of_image in ours(decoder, embeds, decoding, num_beams) for caption in of_image]
        token_ids, scores = theirs(decoder, embeds, decoding, num_beams)
        assert [caption.token_ids for caption in captions] == token_ids
        given = len(decoder.prompt_ids(prompt))
        if num_beams > 1:
            means = [caption.log_probability / (len(caption.token_ids) - given) for caption in captions]
            assert means == pytest.approx(scores, abs=1e-4)
        lengths |= {len(row) - given for row in token_ids}
        best |= {tuple(row) for row in token_ids[::num_beams]}
    assert len(lengths) > 3, "captions of one length prove nothing of ends"
    assert len(best) > 10, "images that all get one caption prove nothing"


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(num_beams=4), Decoding(do_sample=True, prompt="a blue")])
def test_a_log_probability_is_that_of_the_caption_read_at_once(decoding: Decoding) -> None:
    decoding = decoding.model_copy(update={"max_new_tokens": 8})
    decoder, embeds = make_decoder(1), random_embeds(1)
    given = len(decoder.prompt_ids(decoding.prompt))
    for image, captions in zip(embeds, ours(decoder, embeds, decoding, 1), strict=True):
        input_ids = torch.tensor(captions[0].token_ids)
        with torch.inference_mode():
            log_probs = decoder(image[None], input_ids[None])[0, given - 1 : -1].log_softmax(-1)
        total = log_probs.gather(1, input_ids[given:, None]).sum()
        assert captions[0].log_probability == pytest.approx(total.item(), abs=1e-4)


def test_draws_of_one_request_differ_and_end_on_their_own() -> None:
    decoder, embeds = make_decoder(2), random_embeds(2, 3)
    decoding = Decoding(max_new_tokens=10, do_sample=True, temperature=1.5)
    for captions in ours(decoder, embeds, decoding, 6):
        assert len({tuple(caption.token_ids) for caption in captions}) > 3
        assert len({len(caption.token_ids) for caption in captions}) > 1
        for caption in captions:
            assert caption.token_ids[-1] == decoder.eos_id or len(caption.token_ids) == 11
            assert decoder.eos_id not in caption.token_ids[:-1]


def test_bf16_weights_give_scores_in_full_precision() -> None:
    decoder, embeds = make_decoder(0).bfloat16(), random_embeds(0).bfloat16()
    for decoding in (Decoding(max_new_tokens=8), Decoding(max_new_tokens=8, num_beams=3)):
        totals = [captions[0].log_probability for captions in ours(decoder, embeds, decoding, 1)]
        assert any(total != torch.tensor(total).bfloat16().item() for total in totals)


def test_more_captions_than_beams_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_captions \(4\) must be at most num_beams \(3\)"):
        begin_search(Decoding(num_beams=3), 4, [0], 1)
