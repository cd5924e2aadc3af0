"""Captioners of either kind, loaded and asked in one way."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from tiny import png

from raycap.checkpoint.captioner_shape import read_captioner_shape
from raycap.checkpoint.lstm_captioner import load_lstm_captioner
from raycap.errors import UserError
from raycap.hardware import Precision
from raycap.models.decoding import Decoding
from raycap.models.lstm_decoding import LstmDecoding, write_captions
from raycap.predictor import CaptionPredictor
from raycap.rerank import Rerank

IMAGES = [Image.open(io.BytesIO(png(seed, 32))) for seed in range(6)]


@pytest.mark.parametrize(
    ("decoding", "settings", "num_captions"),
    [
        (Decoding(max_new_tokens=9), LstmDecoding(max_words=9), 1),
        (
            Decoding(max_new_tokens=9, num_beams=4, no_repeat_words=2, length_penalty=0.5),
            LstmDecoding(max_words=9, num_beams=4, num_captions=3, no_repeat_words=2, length_penalty=0.5),
            3,
        ),
        (
            Decoding(max_new_tokens=9, do_sample=True, top_p=0.9, temperature=1.5, seed=3),
            LstmDecoding(max_words=9, do_sample=True, num_captions=3, top_p=0.9, temperature=1.5, seed=3),
            3,
        ),
    ],
    ids=["greedy", "beams", "nucleus"],
)
def test_an_lstm_captioner_writes_what_its_own_search_finds(
    tiny_lstm: str, decoding: Decoding, settings: LstmDecoding, num_captions: int
) -> None:
    predictor = CaptionPredictor.from_pretrained(tiny_lstm)
    encoder, decoder, vocabulary = load_lstm_captioner(tiny_lstm)
    with torch.inference_mode():
        found = write_captions(decoder, encoder(torch.from_numpy(predictor.preprocess(IMAGES))), settings)
    if decoding.do_sample:
        found = [sorted(of_image, key=lambda caption: -caption.log_probability) for of_image in found]
    written = predictor.write(IMAGES, decoding, num_captions=num_captions, explain=True)
    for of_image, expected in zip(written, found, strict=True):
        assert [caption.text for caption in of_image] == [vocabulary.decode(e.token_ids) for e in expected]
        logs = [caption.log_probability for caption in of_image]
        assert logs == pytest.approx([e.log_probability for e in expected], abs=1e-5)
        assert [caption.finished for caption in of_image] == [len(e.token_ids) < 9 for e in expected]
        assert [caption.num_tokens for caption in of_image] == [min(len(e.token_ids) + 1, 9) for e in expected]
        attention = of_image[0].attention
        assert attention is not None
        assert attention.words == of_image[0].text.split()
        assert torch.equal(torch.from_numpy(attention.maps).flatten(1), expected[0].attention)
        assert all(other.attention is None for other in of_image[1:])
    firsts = {of_image[0].text for of_image in written}
    assert len(firsts) > 1, "all captions are the same, so the case shows nothing"


def test_words_are_told_as_they_are_found(tiny_lstm: str) -> None:
    encoder, decoder, _ = load_lstm_captioner(tiny_lstm)
    images = torch.from_numpy(CaptionPredictor.from_pretrained(tiny_lstm).preprocess(IMAGES))
    told: list[list[int]] = [[] for _ in IMAGES]
    with torch.inference_mode():
        regions = encoder(images)
    found = write_captions(decoder, regions, LstmDecoding(), lambda index, word: told[index].append(word))
    assert told == [caption.token_ids for (caption,) in found]


def test_a_blip_writes_what_it_captions(tiny_blip: str) -> None:
    predictor = CaptionPredictor.from_pretrained(tiny_blip)
    decoding = Decoding(num_beams=3, max_new_tokens=8)
    written = predictor.write(IMAGES, decoding, num_captions=3, explain=True)
    assert [captions[0].text for captions in written] == predictor.caption(IMAGES, decoding)
    assert {len(captions) for captions in written} == {3}
    best = written[0][0]
    assert best.attention is not None
    assert "".join(best.attention.words) == best.text.replace(" ", "")
    sampled = predictor.write(IMAGES[:1], Decoding(do_sample=True, max_new_tokens=8), num_captions=4)[0]
    logs = [caption.log_probability for caption in sampled]
    assert logs == sorted(logs, reverse=True)


def test_a_captioner_s_shape_is_that_of_its_embeddings(tiny_lstm: str, tiny_blip: str) -> None:
    for source, kind in ((tiny_lstm, "lstm_captioner"), (tiny_blip, "blip")):
        predictor, shape = CaptionPredictor.from_pretrained(source), read_captioner_shape(source)
        assert shape.kind == kind
        assert shape.image_size == predictor.encoder.image_size
        embeds = predictor.encode(predictor.preprocess(IMAGES[:1]))
        assert tuple(embeds.shape[1:]) == (shape.num_tokens, shape.embed_dim)


def test_an_lstm_captioner_writes_in_bf16_too(tiny_lstm: str) -> None:
    captions = CaptionPredictor.from_pretrained(tiny_lstm, precision=Precision.BF16).caption(IMAGES)
    assert len(set(captions)) > 1


def test_what_a_kind_of_captioner_cannot_do_is_refused_by_name(tiny_lstm: str, tiny_blip: str) -> None:
    lstm, blip = (CaptionPredictor.from_pretrained(source) for source in (tiny_lstm, tiny_blip))
    with pytest.raises(UserError, match="decoding.prompt = 'a red': an LSTM captioner continues no text"):
        lstm.caption(IMAGES, Decoding(prompt="a red"))
    with pytest.raises(UserError, match="decoding.no_repeat_words = 3: is for LSTM captioners"):
        blip.caption(IMAGES, Decoding(no_repeat_words=3))
    with pytest.raises(UserError, match="decoding.no_repeat_words = 3: is for LSTM captioners"):
        blip.write(IMAGES, Decoding(num_beams=3, no_repeat_words=3))
    with pytest.raises(UserError, match="an LSTM captioner has no joint embeddings"):
        CaptionPredictor.from_pretrained(tiny_lstm, rerank=Rerank(num_candidates=1)).caption(IMAGES)


def test_the_smallest_temperature_takes_the_likeliest_word(tiny_lstm: str) -> None:
    predictor = CaptionPredictor.from_pretrained(tiny_lstm)
    cold = predictor.caption(IMAGES, Decoding(do_sample=True, temperature=5e-324))
    assert cold == predictor.caption(IMAGES, Decoding())
