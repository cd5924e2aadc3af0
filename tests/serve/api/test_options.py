"""What a request may ask of a caption, and how its options come together with the model's."""

import pytest

from raycap.checkpoint.captioner_shape import CaptionerShape
from raycap.models.decoding import Decoding
from raycap.models.refinement import Refinement
from raycap.rerank import Rerank
from raycap.serve.api.options import CaptionOptions, make_plan
from raycap.serve.api.served import ReadyModel
from raycap.serve.errors import RequestError
from raycap.serve.guard.limits import Limits
from raycap.serve.stages.weights import ServedModel


def served(rbm="rbm", **settings):
    return ReadyModel("tiny", ServedModel(model="blip", rbm=rbm, **settings), CaptionerShape("blip", 32, 17, 32))


def plan(model=None, **options):
    return make_plan(CaptionOptions(**options), model or served(), Limits())


def test_what_is_left_out_is_as_the_model_says():
    settings = {"refinement": Refinement(gate=0.3, passes=2), "decoding": Decoding(num_beams=3, max_new_tokens=9)}
    made = plan(served(**settings))
    assert (made.refinement, made.decoding, made.num_captions) == (*settings.values(), 1)
    partly = plan(served(**settings), gate=0.5, max_new_tokens=4)
    assert partly.refinement == Refinement(gate=0.5, passes=2)
    assert partly.decoding == Decoding(num_beams=3, max_new_tokens=4)


def test_temperature_or_top_p_switches_sampling_on_and_the_models_beams_off():
    model = served(decoding=Decoding(num_beams=3))
    assert plan(model, temperature=0.7, seed=5).decoding == Decoding(do_sample=True, temperature=0.7, seed=5)
    assert plan(model, top_p=0.9).decoding == Decoding(do_sample=True, top_p=0.9)


def test_temperature_0_or_beams_switch_the_models_sampling_off():
    model = served(decoding=Decoding(do_sample=True, temperature=0.5))
    assert not plan(model, temperature=0.0).decoding.do_sample
    assert not plan(model, num_beams=3).decoding.do_sample
    assert plan(model).decoding.do_sample


def test_a_model_without_rbm_is_captioned_with_gate_0():
    assert plan(served(rbm=None)).refinement == Refinement(gate=0)
    assert plan(served(rbm=None), gate=0.0).refinement == Refinement(gate=0)


RERANKED = {"rerank": Rerank(num_candidates=3), "decoding": Decoding(num_beams=3)}

CONFLICTS = {
    "beams and temperature": ({}, {"num_beams": 3, "temperature": 0.7}, "temperature"),
    "beams and top_p": ({}, {"num_beams": 3, "top_p": 0.7}, "top_p"),
    "more captions than beams": ({}, {"num_captions": 3, "num_beams": 2}, "num_captions"),
    "more captions than a greedy search has": ({}, {"num_captions": 2}, "num_captions"),
    "too many captions": ({}, {"num_captions": 9, "temperature": 1.0}, "num_captions"),
    "too many beams": ({}, {"num_beams": 9}, "num_beams"),
    "too long": ({}, {"max_new_tokens": 65}, "max_new_tokens"),
    "too many passes": ({}, {"passes": 9}, "passes"),
    "too long a prompt": ({}, {"prompt": "a" * 201}, "prompt"),
    "a gate without RBM": ({"rbm": None}, {"gate": 0.5}, "gate"),
    "passes without RBM": ({"rbm": None}, {"passes": 2}, "passes"),
    "fewer beams than are re-ranked": (RERANKED, {"num_beams": 2}, "num_beams"),
    "more captions than are re-ranked": (RERANKED, {"num_captions": 4, "num_beams": 4}, "num_captions"),
}


@pytest.mark.parametrize(("settings", "options", "field"), CONFLICTS.values(), ids=CONFLICTS)
def test_a_contradiction_is_refused_with_field_value_and_remedy(settings, options, field):
    with pytest.raises(RequestError) as refused:
        plan(served(**settings), **options)
    error = refused.value
    assert (error.status, error.kind, error.field) == (400, "invalid_option", field)
    # Of a long value its beginning: who sends a megabyte is not sent it back.
    assert str(error).startswith(f"{field} = {repr(options[field])[:77]}")
    assert ";" in str(error) or "set num_beams" in str(error), "a remedy"


def test_draws_satisfy_a_reranker():
    assert plan(served(**RERANKED), temperature=0.7).decoding.num_beams == 1


WRONG_TYPES = {
    "a boolean for a number": ({"num_beams": True}, "num_beams"),
    "a string for a number": ({"num_beams": "3"}, "num_beams"),
    "a fraction for a whole number": ({"num_beams": 1.5}, "num_beams"),
    "a number for a boolean": ({"explain": 1}, "explain"),
    "a negative seed": ({"seed": -1}, "seed"),
    "a gate above 1": ({"gate": 1.5}, "gate"),
    "no captions": ({"num_captions": 0}, "num_captions"),
    "top_p 0": ({"top_p": 0}, "top_p"),
}


@pytest.mark.parametrize(("options", "field"), WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_types_and_ranges_are_strict(api, data_url, options, field):
    error = api.post(json={"image": data_url()} | options).json()["error"]
    assert (error["type"], error["field"]) == ("malformed_request", field), error


def test_a_misspelt_option_is_told_what_was_meant_in_json_and_in_a_form(api, png, data_url):
    for options in (
        {"json": {"image": data_url(), "num_beam": 3}},
        {"files": {"file": png()}, "data": {"num_beam": "3"}},
    ):
        assert "did you mean num_beams?" in api.post(**options).json()["error"]["message"]


@pytest.mark.parametrize(("name", "value"), [("gate", "nan"), ("num_beams", "1e0"), ("explain", "maybe")])
def test_a_forms_strings_are_read_as_strictly(api, png, name, value):
    error = api.post(files={"file": png()}, data={name: value}).json()["error"]
    assert (error["type"], error["field"]) == ("malformed_request", name)


def test_a_model_that_is_not_served_is_named_with_those_that_are(api, data_url):
    answer = api.post(json={"image": data_url(), "model": "big"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "unknown_model")
    assert "tiny-rbm, tiny" in answer.json()["error"]["message"]


def test_requests_that_name_no_model_are_shared_by_traffic(make, data_url, monkeypatch):
    weights = []
    monkeypatch.setattr(
        "raycap.serve.api.served.random.choices", lambda models, given: weights.append(given) or [models[1]]
    )
    answer = make().post(json={"image": data_url()})
    assert (answer.json()["model"], weights) == ("tiny", [[1.0, 0.0]])


def test_a_caption_that_does_not_fit_the_decoder_is_the_clients_error(make, limits, data_url):
    api = make(limits=limits.model_copy(update={"max_new_tokens": 1000}))
    answer = api.post(json={"image": data_url(), "max_new_tokens": 900})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_option")
