"""Loops that share the thread in which they compute."""

import asyncio
import time

import pytest
import torch

from raycap.checkpoint.captioner import load_captioner
from raycap.models.decoding import Decoding
from raycap.serve.stages.decoding import DecodingLoop
from raycap.serve.stages.threads import compute_thread

LONG = Decoding(do_sample=True, temperature=3.0, seed=1, max_new_tokens=25)


@pytest.fixture
def captioner(models):
    return load_captioner(str(models / "demo/blip/model"))


@pytest.fixture
def thread():
    with compute_thread("compute", 1) as thread:
        yield thread


@pytest.fixture
def image_embeds(captioner):
    encoder, _ = captioner
    with torch.inference_mode():
        return encoder(torch.zeros(1, encoder.image_size, encoder.image_size, 3, dtype=torch.uint8))[0]


def test_tokens_get_as_much_of_the_thread_s_time_as_what_others_ask_of_it(captioner, thread, image_embeds):
    _, decoder = captioner
    others, is_written = [], False

    def work_without_end():
        time.sleep(0.2)
        others.append(time.perf_counter())
        if not is_written:
            thread.submit(work_without_end)

    thread.submit(work_without_end)
    (caption,) = asyncio.run(DecodingLoop(decoder, 8, thread).decode(image_embeds, LONG))
    is_written = True
    assert len(caption.token_ids) > 15, "it must be long for this to show anything"
    assert 1 <= len(others) <= 5


def test_another_s_failure_stops_no_loop(captioner, thread, image_embeds, monkeypatch):
    _, decoder = captioner

    async def ask():
        alone = await DecodingLoop(decoder, 8, thread).decode(image_embeds, LONG)
        loop, broken = DecodingLoop(decoder, 8, thread), DecodingLoop(decoder, 8, thread)
        monkeypatch.setattr(broken._continuous, "step", lambda: 1 / 0)
        asked = (each.decode(image_embeds, LONG) for each in (broken, loop, broken, loop))
        return alone, await asyncio.gather(*asked, return_exceptions=True)

    alone, (lost, one, lost_too, other) = asyncio.run(ask())
    assert [type(each) for each in (lost, lost_too)] == [ZeroDivisionError] * 2
    assert one[0].token_ids == other[0].token_ids == alone[0].token_ids
