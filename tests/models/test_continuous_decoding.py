"""Who shares a batch, since when and for how long changes no caption; a short one never waits for a long one."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_decoder

from raycap.errors import UserError
from raycap.models.blip import BlipCaptionDecoder
from raycap.models.caption_search import Caption, count_rows
from raycap.models.continuous_decoding import ContinuousDecoder, DecodingRequest
from raycap.models.decoding import Decoding

SETTINGS = [
    (Decoding(), 1),
    (Decoding(prompt="a red"), 1),
    (Decoding(num_beams=3), 2),
    (Decoding(num_beams=3, prompt="a blue"), 1),
    (Decoding(do_sample=True, temperature=1.5, top_p=0.9), 1),
    (Decoding(do_sample=True, temperature=0.7), 3),
]


@pytest.fixture(scope="module")
def decoder() -> BlipCaptionDecoder:
    return make_decoder(3)


def make_requests(num: int, seed: int) -> list[DecodingRequest]:
    drawn = random.Random(seed)
    embeds = torch.randn(num, 5, 16, generator=torch.Generator().manual_seed(seed))
    requests = []
    for index, image in enumerate(embeds):
        decoding, num_captions = SETTINGS[index % len(SETTINGS)]
        changes = {"max_new_tokens": drawn.randint(1, 12), "seed": drawn.randint(0, 99)}
        requests.append(DecodingRequest(f"request {index}", image, decoding.model_copy(update=changes), num_captions))
    return requests


def require_same(found: list[Caption] | None, expected: list[Caption]) -> None:
    assert found is not None
    assert [caption.token_ids for caption in found] == [caption.token_ids for caption in expected]
    totals = [caption.log_probability for caption in expected]
    assert [caption.log_probability for caption in found] == pytest.approx(totals, abs=1e-3)


def alone(decoder: BlipCaptionDecoder, request: DecodingRequest) -> list[Caption]:
    searching = ContinuousDecoder(decoder, 10)
    searching.add(*request)
    while True:
        (progress,) = searching.step()
        if progress.captions is not None:
            assert searching.num_active_rows == 0
            return progress.captions


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_company_joins_and_cancels_change_no_caption(decoder: BlipCaptionDecoder, seed: int) -> None:
    drawn = random.Random(seed)
    requests = make_requests(14, seed % 5)
    drawn.shuffle(requests)
    waiting, active = list(requests), {}
    found: dict[object, list[Caption]] = {}
    cancelled = set()
    searching = ContinuousDecoder(decoder, 12)
    while waiting or active:
        joining, free = [], searching.num_free_rows
        while waiting and drawn.random() < 0.6 and count_rows(*waiting[-1][2:]) <= free:
            free -= count_rows(*waiting[-1][2:])
            joining.append(waiting.pop())
        searching.add_all(joining)
        active |= {request.request_id: request for request in joining}
        if active and drawn.random() < 0.1:
            given_up = drawn.choice(sorted(active))
            searching.cancel(given_up)
            del active[given_up]
            cancelled.add(given_up)
        progress = searching.step()
        assert {of_request.request_id for of_request in progress} == set(active)
        for ended in progress:
            if ended.captions is not None:
                found[ended.request_id] = ended.captions
                del active[ended.request_id]
        assert searching.num_active_rows == sum(count_rows(*request[2:]) for request in active.values())
    assert set(found) | cancelled == {request.request_id for request in requests}
    for request in requests:
        if request.request_id not in cancelled:
            require_same(found[request.request_id], alone(decoder, request))


def test_a_short_caption_is_answered_while_a_longer_one_goes_on(decoder: BlipCaptionDecoder) -> None:
    decoder = make_decoder(3, end_bias=-100.0)
    image = torch.randn(5, 16)
    for num_beams in (1, 3):
        searching = ContinuousDecoder(decoder, 20)
        for name, length in (("long", 12), ("short", 4), ("middle", 7)):
            searching.add(name, image, Decoding(max_new_tokens=length, num_beams=num_beams))
        ends = {}
        for step in range(1, 13):
            ends |= {ended.request_id: step for ended in searching.step() if ended.captions is not None}
        assert ends == {"short": 4, "middle": 7, "long": 12}


def test_a_prompt_is_read_while_others_go_on(decoder: BlipCaptionDecoder) -> None:
    searching = ContinuousDecoder(make_decoder(3, end_bias=-100.0), 20)
    image = torch.randn(5, 16)
    searching.add("plain", image, Decoding(max_new_tokens=6))
    searching.step()
    searching.add("prompted", image, Decoding(max_new_tokens=2, prompt="a red"))
    found = [{progress.request_id: len(progress.new_token_ids) for progress in searching.step()} for _ in range(4)]
    assert found == [{"plain": 1, "prompted": count} for count in (0, 0, 1, 1)]


def test_the_tokens_of_the_steps_make_up_the_caption_of_one_row_and_beams_tell_none(
    decoder: BlipCaptionDecoder,
) -> None:
    requests = make_requests(12, seed=0)
    searching = ContinuousDecoder(decoder, 100)
    searching.add_all(requests)
    told: dict[object, list[int]] = {request.request_id: [] for request in requests}
    by_id = {request.request_id: request for request in requests}
    while searching.num_active_rows:
        for progress in searching.step():
            told[progress.request_id] += progress.new_token_ids
            if progress.captions is not None:
                decoding = by_id[progress.request_id].decoding
                if len(progress.captions) == 1 and decoding.num_beams == 1:
                    given = decoder.prompt_ids(decoding.prompt)
                    assert given + told[progress.request_id] == progress.captions[0].token_ids
                else:
                    assert told[progress.request_id] == []


def test_equal_seeds_draw_equal_captions_whoever_is_there(decoder: BlipCaptionDecoder) -> None:
    embeds = torch.randn(5, 5, 16, generator=torch.Generator().manual_seed(0))
    decoding = Decoding(max_new_tokens=10, do_sample=True, temperature=1.5, seed=7)
    together = decoder.generate(embeds, decoding)
    assert [decoder.generate(embeds[index : index + 1], decoding)[0] for index in range(5)] == together
    assert decoder.generate(embeds.flip(0), decoding) == together[::-1]
    same_image = decoder.generate(embeds[:1].expand(3, -1, -1), decoding)
    assert len(set(same_image)) == 1


def test_nothing_is_kept_after_all_have_left(decoder: BlipCaptionDecoder) -> None:
    searching = ContinuousDecoder(decoder, 40)
    searching.add_all(make_requests(12, seed=0))
    assert searching.num_active_rows == 24
    assert searching.num_free_rows == 16
    searching.cancel("request 2")
    assert searching.num_free_rows == 19
    while searching.num_active_rows:
        searching.step()
    assert searching._buckets == {}
    assert searching.step() == []


def test_what_does_not_fit_is_refused_and_none_of_it_joins(decoder: BlipCaptionDecoder) -> None:
    searching = ContinuousDecoder(decoder, 4)
    image = torch.randn(5, 16)
    searching.add("a", image, Decoding(max_new_tokens=5))
    with pytest.raises(ValueError, match=r"rows \(4\) must be at most num_free_rows \(3\); add them later"):
        searching.add("b", image, Decoding(max_new_tokens=5, num_beams=4))
    with pytest.raises(ValueError, match=r"request_id \('a'\) is active already; give another"):
        searching.add("a", image, Decoding(max_new_tokens=5))
    with pytest.raises(ValueError, match=r"num_captions \(3\) must be at most num_beams \(2\)"):
        searching.add("b", image, Decoding(max_new_tokens=5, num_beams=2), 3)
    with pytest.raises(UserError, match="decoding.max_new_tokens = 16: the decoder has 16 positions; set at most 15"):
        searching.add_all([DecodingRequest("b", image, Decoding(max_new_tokens=16))])
    with pytest.raises(KeyError, match="b"):
        searching.cancel("b")
    assert searching.num_active_rows == 1
