"""An LSTM captioner in the stages of one process, joined as in a fused replica."""

import asyncio
import hashlib
from dataclasses import replace

import pytest
import torch

from raycap.checkpoint.lstm_captioner import load_lstm_captioner
from raycap.data.images import decode_image, resize_image
from raycap.errors import UserError
from raycap.models.decoding import Decoding
from raycap.models.lstm_decoding import LstmDecoding, write_captions
from raycap.serve.config import CaptionerOptions
from raycap.serve.deployments import CaptionerDeployment
from raycap.serve.stages.pipeline import Captioned, CaptionTask
from raycap.serve.stages.weights import ServedModel

SEARCHES = {
    "greedy": (Decoding(max_new_tokens=9), 1, LstmDecoding(max_words=9)),
    "beams": (
        Decoding(max_new_tokens=9, num_beams=4, no_repeat_words=2),
        3,
        LstmDecoding(max_words=9, num_beams=4, num_captions=3, no_repeat_words=2),
    ),
    "nucleus": (
        Decoding(max_new_tokens=9, do_sample=True, temperature=1.5, top_p=0.9, seed=7),
        3,
        LstmDecoding(max_words=9, num_captions=3, do_sample=True, temperature=1.5, top_p=0.9, seed=7),
    ),
}


@pytest.fixture
def model(lstm):
    return ServedModel(model=lstm, precision="fp32")


def tasks_of(files, model, **changes):
    return [
        CaptionTask(
            pixels=resize_image(decode_image(file), 32),
            digest=hashlib.sha256(file).digest(),
            weights=model.weights.key,
            refinement=model.refinement,
            **{"decoding": model.decoding} | changes,
        )
        for file in files
    ]


def run(tasks, options=CaptionerOptions(batch_size=4)):  # noqa: B008 - frozen
    """All tasks at once."""

    async def run():
        captioner = CaptionerDeployment(options)
        return await asyncio.gather(*(captioner.caption(task) for task in tasks))

    return asyncio.run(run())


@pytest.mark.parametrize("kind", SEARCHES)
def test_sixteen_at_once_say_what_the_search_says_of_each_alone(lstm, files, model, kind):
    decoding, num_captions, settings = SEARCHES[kind]
    answers = run(tasks_of(files, model, decoding=decoding, num_captions=num_captions, explain=True))
    encoder, decoder, vocabulary = load_lstm_captioner(lstm)
    for file, answer in zip(files, answers, strict=True):
        with torch.inference_mode():
            regions = encoder(torch.from_numpy(resize_image(decode_image(file), 32).copy())[None]).half().float()
        (found,) = write_captions(decoder, regions, settings)
        if decoding.do_sample:
            found = sorted(found, key=lambda caption: -caption.log_probability)
        assert answer.captions == [vocabulary.decode(caption.token_ids) for caption in found]
        assert answer.log_probabilities == pytest.approx([c.log_probability for c in found], abs=1e-2)
        assert answer.attention.words == answer.captions[0].split()
        assert torch.allclose(torch.from_numpy(answer.attention.maps).flatten(1), found[0].attention, atol=1e-2)
    assert len({answer.captions[0] for answer in answers}) > 3, "the images must be told apart to show anything"


def test_searches_of_all_kinds_and_few_rows_never_mix(files, model):
    changes = [
        {"decoding": decoding, "num_captions": num_captions, "explain": kind == "beams"}
        for kind, (decoding, num_captions, _) in SEARCHES.items()
    ]
    tasks = [replace(task, **changes[index % 3]) for index, task in enumerate(tasks_of(files, model))]
    together = run(tasks, CaptionerOptions(batch_size=4, max_rows=8))
    for task, answer in zip(tasks, together, strict=True):
        (alone,) = run([task])
        assert answer.captions == alone.captions
        assert answer.finished == alone.finished
        assert answer.num_tokens == alone.num_tokens
        assert (answer.attention is not None) == task.explain


def test_a_stream_s_words_join_to_the_caption(files, model):
    async def stream_all(tasks):
        captioner = CaptionerDeployment(CaptionerOptions())

        async def pieces(task):
            return [piece async for piece in captioner.stream(task)]

        return await asyncio.gather(*map(pieces, tasks))

    for *pieces, captioned in asyncio.run(stream_all(tasks_of(files[:6], model))):
        assert isinstance(captioned, Captioned)
        assert "".join(pieces) == captioned.captions[0]
        assert len(pieces) == len(captioned.captions[0].split())


def test_one_request_s_mistake_is_its_own(files, model):
    prompted = tasks_of(files[:1], model, decoding=Decoding(prompt="a red"))
    wide = tasks_of(files[:1], model, decoding=Decoding(num_beams=130))
    good = tasks_of(files, model)

    async def ask():
        captioner = CaptionerDeployment(CaptionerOptions())
        return await asyncio.gather(*map(captioner.caption, prompted + wide + good), return_exceptions=True)

    refused, too_wide, *answered = asyncio.run(ask())
    assert isinstance(refused, UserError)
    assert "continues no text" in str(refused)
    assert "max_rows allows 128" in str(too_wide)
    assert [answer.captions for answer in answered] == [answer.captions for answer in run(good)]


def test_what_fails_is_told_and_the_next_requests_are_answered(files, model, monkeypatch):
    (task,) = tasks_of(files[:1], model)

    async def ask():
        captioner = CaptionerDeployment(CaptionerOptions())
        await captioner.prepare(task.weights)
        writer = (await captioner.stage.models(task.weights)).writer
        with monkeypatch.context() as patch:
            patch.setattr(writer.decoder, "write", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await captioner.caption(task)
        assert (writer.num_rows, writer.num_waiting, writer.num_unfinished) == (0, 0, 0)
        return await captioner.caption(task)

    assert asyncio.run(ask()).captions == run([task])[0].captions
