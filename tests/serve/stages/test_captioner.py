"""The stages in one process, joined as in a fused replica."""

import asyncio
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from raycap.data.images import decode_image, resize_image
from raycap.errors import UserError
from raycap.models.decoding import Decoding
from raycap.models.refinement import Refinement
from raycap.rerank import Rerank
from raycap.serve.autoscaling import OWN_WORK
from raycap.serve.config import CaptionerOptions
from raycap.serve.deployments import CaptionerDeployment
from raycap.serve.errors import Overloaded
from raycap.serve.stages.decoding import DecodingLoop
from raycap.serve.stages.fused import fused_stages
from raycap.serve.stages.pipeline import Captioned, CaptionTask
from raycap.serve.stages.weights import ServedModel
from raycap.serve.telemetry.telemetry import Telemetry


@pytest.fixture
def served(models):
    """A function from a model's settings to it, in float32."""

    def served(**settings):
        settings = {"model": str(models / "demo/blip/model"), "precision": "fp32"} | settings
        return ServedModel.model_validate(settings).absolute()

    return served


def task_of(file, model, **changes):
    pixels = resize_image(decode_image(file), 32)
    task = CaptionTask(pixels, hashlib.sha256(file).digest(), model.weights.key, model.refinement, model.decoding)
    return replace(task, **changes)


def run(tasks, options=CaptionerOptions(batch_size=4), method="caption"):  # noqa: B008 - frozen
    """All tasks at once."""

    async def run():
        captioner = CaptionerDeployment(options)
        return await asyncio.gather(*(getattr(captioner, method)(task) for task in tasks))

    return asyncio.run(run())


def test_a_replica_that_starts_when_its_first_models_are_gone_serves_those_that_replaced_them(
    files, served, predicted, serve_log
):
    gone = {"models": {"caption": {"model": "/srv/models/replaced"}}}

    async def begin_and_caption():
        captioner = CaptionerDeployment(CaptionerOptions())
        await captioner.reconfigure(gone)
        return await captioner.caption(task_of(files[0], served()))

    assert asyncio.run(begin_and_caption()).captions[0] == predicted(None)[0]
    assert "/srv/models/replaced: no such directory" in serve_log.text


def captions(model, files, **changes):
    return [answer.captions[0] for answer in run([task_of(file, model, **changes) for file in files])]


def test_sixteen_at_once_say_what_the_predictor_says(models, files, served, predicted):
    rbm = str(models / "demo/rbm/model")
    said = captions(served(rbm=rbm), files)
    assert said == predicted(rbm)
    assert len(set(said)) > len(said) // 2, "the images must be told apart for this to show anything"


@pytest.mark.parametrize(("num_cores", "num_gpus", "turns"), [(2, 0, True), (4, 0, False), (2, 1, False)])
def test_stages_that_take_turns_say_the_same(models, files, served, predicted, monkeypatch, num_cores, num_gpus, turns):
    monkeypatch.setattr("raycap.serve.stages.threads.num_cores", lambda: num_cores)
    rbm = str(models / "demo/rbm/model")
    model = served(rbm=rbm)

    async def ask():
        stages = fused_stages(CaptionerOptions(batch_size=4, num_gpus=num_gpus), Telemetry(), num_threads=2)
        encoding = stages.source.source.batcher.executor
        assert (stages.executor is encoding) == turns
        assert encoding.submit(torch.get_num_threads).result(10) == 2
        return await asyncio.gather(*(stages.caption(task_of(file, model)) for file in files))

    assert [answer.captions[0] for answer in asyncio.run(ask())] == predicted(rbm)


def test_a_replica_s_threads_compute_with_as_many_as_it_is_given_and_its_event_loop_alone():
    executor = CaptionerDeployment(CaptionerOptions(torch_threads=3)).stage.executor
    assert torch.get_num_threads() == 1
    assert executor.submit(torch.get_num_threads).result(10) == 3


def test_of_a_call_with_more_tasks_than_there_is_room_for_some_are_refused(files, served):
    options = CaptionerOptions(batch_size=1, max_ongoing_requests=2, max_queued_requests=1, retry_after_seconds=7)

    async def ask(tasks):
        captioner = CaptionerDeployment(options)
        answers, work = {}, []
        async for some in captioner.captions("parcel", tasks):
            work.append(captioner.record_autoscaling_stats()[OWN_WORK])
            answers |= dict(some)
        return answers, work, captioner.record_autoscaling_stats()[OWN_WORK]

    assert CaptionerDeployment(options, num_callers=3).bounded.max_requests == 5
    answers, work, left = asyncio.run(ask([task_of(file, served()) for file in files[:5]]))
    assert [type(answers[index]) for index in range(5)] == [Captioned] * 3 + [Overloaded] * 2
    assert answers[4].retry_after_seconds == 7
    assert (work[1], left) == (3, 0)


def test_of_a_call_with_several_tasks_one_may_be_given_up(files, served, monkeypatch):
    async def ask(tasks):
        captioner = CaptionerDeployment(CaptionerOptions())
        may_begin = asyncio.Event()
        caption = captioner.stage.caption

        async def later(task):
            await may_begin.wait()
            return await caption(task)

        monkeypatch.setattr(captioner.stage, "caption", later)
        answers = captioner.captions("parcel", tasks)
        assert await anext(answers) == []
        await asyncio.sleep(0)
        await captioner.give_up([("parcel", 1), ("another", 0)])
        await asyncio.sleep(0)
        left = captioner.bounded.num_requests
        may_begin.set()
        return left, [index async for some in answers for index, _ in some]

    left, answered = asyncio.run(ask([task_of(file, served()) for file in files[:3]]))
    assert (left, sorted(answered)) == (2, [0, 2])


def test_gate_0_and_no_rbm_are_both_plain_blip(models, files, served, predicted):
    plain, rbm = predicted(None), str(models / "demo/rbm/model")
    assert captions(served(), files) == plain
    assert captions(served(rbm=rbm), files, refinement=Refinement(gate=0)) == plain
    assert captions(served(rbm=rbm), files) != plain, "the refiner must matter for this to show anything"


def test_requests_of_all_kinds_at_once_each_get_what_they_get_alone(models, files, served):
    model = served(rbm=str(models / "demo/rbm/model"))
    kinds = [
        {"decoding": Decoding(num_beams=3), "num_captions": 3},
        {"decoding": Decoding(do_sample=True, temperature=1.5, seed=7), "num_captions": 2},
        {"decoding": Decoding(prompt="a red", max_new_tokens=5)},
        {"refinement": Refinement(gate=0.5, passes=2)},
        {"refinement": Refinement(gate=0)},
        {},
    ]
    tasks = [task_of(file, model, **kinds[index % len(kinds)]) for index, file in enumerate(files)]
    together = run(tasks)
    for task, answer in zip(tasks, together, strict=True):
        (alone,) = run([task])
        assert answer.captions == alone.captions
        assert answer.version == alone.version


def test_a_stream_s_pieces_join_to_the_caption(files, served):
    async def stream(task):
        return [piece async for piece in CaptionerDeployment(CaptionerOptions()).stream(task)]

    for settings in ({}, {"decoding": Decoding(prompt="a blue")}):
        task = task_of(files[0], served(), **settings)
        *pieces, captioned = asyncio.run(stream(task))
        assert isinstance(captioned, Captioned)
        assert "".join(pieces) == captioned.captions[0]
        assert len(pieces) > 1
    *pieces, captioned = asyncio.run(stream(task_of(files[0], served(), decoding=Decoding(num_beams=2))))
    assert "".join(pieces) == captioned.captions[0]


def test_a_stream_given_up_stops_the_decoder(files, served):
    async def begin_and_stop(task):
        captioner = CaptionerDeployment(CaptionerOptions())
        stream = captioner.stream(task)
        await anext(stream)
        await stream.aclose()
        loop = (await captioner.stage.models(task.weights)).writer.loop
        await asyncio.sleep(0.2)
        return loop._continuous.num_active_rows, len(loop._active)

    task = task_of(files[0], served(), decoding=Decoding(max_new_tokens=30))
    assert asyncio.run(begin_and_stop(task)) == (0, 0)


def test_one_request_s_mistake_is_its_own(files, served):
    model = served()
    wrong = task_of(files[0], model, decoding=Decoding(max_new_tokens=500))
    wide = task_of(files[0], model, decoding=Decoding(num_beams=130))
    good = [task_of(file, model) for file in files]

    async def ask():
        captioner = CaptionerDeployment(CaptionerOptions())
        tasks = (captioner.caption(task) for task in (wrong, wide, *good))
        return await asyncio.gather(*tasks, return_exceptions=True)

    refused, too_wide, *answered = asyncio.run(ask())
    assert isinstance(refused, UserError)
    assert "max_rows allows 128" in str(too_wide)
    assert [answer.captions[0] for answer in answered] == captions(model, files)


def test_a_decoder_that_fails_tells_all_and_starts_afresh(files, served, monkeypatch):
    task = task_of(files[0], served())

    async def ask():
        captioner = CaptionerDeployment(CaptionerOptions())
        await captioner.prepare(task.weights)
        loop = (await captioner.stage.models(task.weights)).writer.loop
        for broken in ("step", "add_all"):
            with monkeypatch.context() as patch:
                patch.setattr(loop._continuous, broken, lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    await asyncio.wait_for(captioner.caption(task), 20)
            assert loop.num_unfinished == 0
        return await captioner.caption(task)

    assert asyncio.run(ask()).captions


def test_draws_come_the_likeliest_first_and_the_smallest_settings_draw_the_likeliest_token(files, served):
    model = served()
    (drawn,) = run(
        [task_of(files[0], model, decoding=Decoding(do_sample=True, temperature=2.0, seed=3), num_captions=6)]
    )
    assert drawn.log_probabilities == sorted(drawn.log_probabilities, reverse=True)
    assert len(set(drawn.captions)) > 1
    for least in ({"top_p": 1e-50}, {"temperature": 1e-50}):
        assert captions(model, files[:2], decoding=Decoding(do_sample=True, **least)) == captions(model, files[:2])


def test_each_caption_says_whether_it_ended_by_itself(files, served, monkeypatch):
    lengths = []
    decode = DecodingLoop.decode

    async def counted(self, *args):
        captions = await decode(self, *args)
        by_probability = sorted(captions, key=lambda caption: caption.log_probability, reverse=True)
        lengths.extend(len(caption.token_ids) for caption in by_probability)
        return captions

    monkeypatch.setattr(DecodingLoop, "decode", counted)
    drawn = Decoding(do_sample=True, seed=1, max_new_tokens=20)
    (answer,) = run([task_of(files[0], served(), num_captions=8, decoding=drawn)])
    assert answer.finished == [length < 1 + drawn.max_new_tokens for length in lengths]
    assert len(set(answer.finished)) == 2, "some must end for this to show anything"


def test_embeddings_before_and_after_the_rbm(models, files, served):
    from raycap.predictor import CaptionPredictor

    rbm = str(models / "demo/rbm/model")
    (embedded,) = run([task_of(files[0], served(rbm=rbm))], method="embed")
    predictor = CaptionPredictor.from_pretrained(str(models / "demo/blip/model"), rbm)
    plain = predictor.encode(predictor.preprocess([decode_image(files[0])])).half()
    torch.testing.assert_close(torch.from_numpy(embedded.before), plain[0], rtol=0, atol=2e-3)
    refined = predictor.refine(plain, Refinement()).half()
    torch.testing.assert_close(torch.from_numpy(embedded.after), refined[0], rtol=0, atol=5e-3)
    assert embedded.version.count("+") == 1, "encoder and refiner"


def test_attention_is_of_each_word(files, served):
    (answer,) = run([task_of(files[0], served(), explain=True)])
    assert " ".join(answer.attention.words) == answer.captions[0]
    assert answer.attention.maps.shape == (len(answer.attention.words), 4, 4)
    sums = answer.attention.maps.sum((1, 2))
    assert (sums > 0).all()
    assert (sums <= 1 + 1e-5).all()
    (prompted,) = run([task_of(files[0], served(), explain=True, decoding=Decoding(prompt="a red", max_new_tokens=8))])
    # Without spaces, as the first of its own pieces may continue the last word that was given.
    words = "".join(prompted.attention.words)
    assert prompted.captions[0].replace(" ", "") == f"ared{words}", "words that were given were not looked for"


def test_re_ranked_captions_are_the_predictor_s(models, files, served, predicted):
    decoding = Decoding(num_beams=3, max_new_tokens=8)
    settings = {"num_candidates": 3, "free_energy_weight": 1.0, "rbm": str(models / "joint")}
    model = served(rerank=settings, decoding=decoding.model_dump())
    said = captions(model, files)
    assert said == predicted(None, decoding, Rerank.model_validate(settings))
    assert said != predicted(None, decoding), "the reranker must matter for this to show anything"


def test_captions_that_a_clip_chose_are_the_predictor_s(models, files, tiny_clip, served, predicted):
    rbm = str(models / "demo/rbm/model")
    decoding = Decoding(num_beams=3, max_new_tokens=8)
    settings = {"num_candidates": 3, "clip_weight": 100.0, "clip": tiny_clip}
    said = captions(served(rbm=rbm, rerank=settings, decoding=decoding.model_dump()), files)
    assert said == predicted(rbm, decoding, Rerank.model_validate(settings))
    assert said != predicted(rbm, decoding), "the CLIP must matter for this to show anything"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rbm": "{models}/wrong"}, "trained on embeddings of encoder another"),
        ({"rerank": {"num_candidates": 1, "free_energy_weight": 1.0, "rbm": "{models}/demo/rbm/model"}}, "rerank.rbm"),
    ],
)
def test_a_model_that_does_not_belong_is_refused_where_both_are_loaded(models, files, served, settings, message):
    settings = eval(repr(settings).replace("{models}", str(models)))
    with pytest.raises(UserError, match=message):
        run([task_of(files[0], served(**settings))])


def test_two_models_at_once_never_mix(models, files, served):
    plain, refined = served(), served(rbm=str(models / "demo/rbm/model"))
    tasks = [task_of(file, model) for file in files for model in (plain, refined)]
    answers = run(tasks)
    assert [answer.captions for answer in answers[::2]] == [answer.captions for answer in run(tasks[::2])]
    assert [answer.captions for answer in answers[1::2]] == [answer.captions for answer in run(tasks[1::2])]
    assert len({answer.version for answer in answers}) == 2


def test_an_image_that_comes_again_is_not_encoded_again(files, served, monkeypatch):
    from raycap.predictor import EncoderStage

    encoded = []
    encode = EncoderStage.__call__
    monkeypatch.setattr(
        EncoderStage, "__call__", lambda self, images: encoded.append(len(images)) or encode(self, images)
    )

    async def twice(task):
        captioner = CaptionerDeployment(CaptionerOptions())
        await captioner.prepare(task.weights)
        encoded.clear()
        return await captioner.caption(task), await captioner.caption(replace(task, decoding=Decoding(num_beams=2)))

    first, second = asyncio.run(twice(task_of(files[0], served())))
    assert encoded == [1]
    assert first.seconds["encode"] > 0
    assert second.seconds["encode"] == 0


def test_an_image_without_a_digest_is_encoded_each_time_and_never_kept(files, served):
    async def probe(task):
        stage = CaptionerDeployment(CaptionerOptions()).stage
        answers = [await stage.caption(task) for _ in range(2)]
        return answers, stage.source.source.cache

    answers, cache = asyncio.run(probe(task_of(files[0], served(), digest=b"")))
    assert all(answer.seconds["encode"] > 0 for answer in answers)
    assert (len(cache), cache.num_hits, cache.num_misses) == (0, 0, 0)


def test_without_a_cache_none_is_kept_nor_looked_for(files, served):
    async def probe(task):
        stage = CaptionerDeployment(CaptionerOptions(cache_bytes=0)).stage
        await stage.caption(task)
        return stage.source.source.cache

    cache = asyncio.run(probe(task_of(files[0], served())))
    assert (len(cache), cache.num_hits, cache.num_misses) == (0, 0, 0)


def test_pixels_of_the_image_are_what_counts(files, served):
    model = served()
    (black,) = run([replace(task_of(files[0], model), pixels=np.zeros((32, 32, 3), np.uint8))])
    (image,) = run([task_of(files[0], model)])
    assert black.log_probabilities != image.log_probabilities
