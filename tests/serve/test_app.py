"""The application in one process: Serve's local testing mode, without a cluster."""

import pytest
from ray import serve

from raycap.data.images import decode_image, resize_image
from raycap.errors import UserError
from raycap.models.blip import Decoding
from raycap.rerank import Rerank
from raycap.serve.app import build
from raycap.serve.config import CaptionArgs, ServeArgsError

# Serve's batching needs a replica around it.
ALONE = {"batch_size": 1}


@pytest.fixture
def captions(models, files):
    """A function from arguments to the captions that the application gives to all files."""

    def captions(**values):
        values = {
            "model": str(models / "demo/blip/model"),
            "precision": "fp32",
            "encoder": ALONE,
            "decoder": ALONE,
        } | values
        handle = serve.run(build(CaptionArgs.model_validate(values)), _local_testing_mode=True)
        pixels = [resize_image(decode_image(file), 32) for file in files]
        return [handle.caption.remote(image).result() for image in pixels]

    return captions


def test_the_application_says_what_the_predictor_says(models, predicted, captions):
    rbm = str(models / "demo/rbm/model")
    served = captions(rbm=rbm)
    assert served == predicted(rbm)
    assert len(set(served)) > len(served) // 2, "the images must be told apart for this to show anything"


def test_gate_0_and_no_rbm_are_both_plain_blip(models, predicted, captions):
    plain = predicted(None)
    rbm = str(models / "demo/rbm/model")
    assert captions() == plain
    assert captions(rbm=rbm, refinement={"gate": 0}) == plain
    assert captions(rbm=rbm) != plain, "the refiner must matter for this to show anything"


def test_re_ranked_captions_are_the_predictor_s(models, predicted, captions, monkeypatch):
    monkeypatch.chdir(models)
    decoding = Decoding(num_beams=3, max_new_tokens=8)
    settings = {"num_candidates": 3, "free_energy_weight": 1.0, "rbm": "joint"}
    served = captions(decoding=decoding.model_dump(), rerank=settings)
    assert served == predicted(None, decoding, Rerank.model_validate(settings))
    assert served != predicted(None, decoding), "the reranker must matter for this to show anything"


def test_captions_that_a_clip_chose_are_the_predictor_s(models, tiny_clip, predicted, captions):
    rbm = str(models / "demo/rbm/model")
    decoding = Decoding(num_beams=3, max_new_tokens=8)
    settings = {"num_candidates": 3, "clip_weight": 100.0, "clip": tiny_clip}
    served = captions(rbm=rbm, decoding=decoding.model_dump(), rerank=settings)
    assert served == predicted(rbm, decoding, Rerank.model_validate(settings))
    assert served != predicted(rbm, decoding), "the CLIP must matter for this to show anything"


def test_a_re_ranking_rbm_of_another_kind_is_refused_where_both_halves_are_loaded(models, captions):
    settings = {"num_candidates": 1, "free_energy_weight": 1.0, "rbm": str(models / "demo/rbm/model")}
    with pytest.raises((UserError, RuntimeError), match="args.rerank.rbm = .*: trained on embeddings of encoder tiny"):
        captions(rerank=settings)


def test_relative_paths_are_made_absolute_where_build_runs(models, predicted, captions, monkeypatch):
    monkeypatch.chdir(models)
    served = captions(model="demo/blip/model", rbm="demo/rbm/model")
    assert served == predicted(str(models / "demo/rbm/model"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "no/such/model"}, "args.model = no/such/model: no such directory; give a BLIP directory"),
        ({"rbm": "/no/such/rbm"}, "args.rbm = /no/such/rbm: no model there"),
        ({"rerank": {"num_candidates": 1, "rbm": "/no/such/rbm"}}, "args.rerank.rbm = /no/such/rbm: no model there"),
        ({"rerank": {"num_candidates": 1, "clip": "/no/clip"}}, "args.rerank.clip = /no/clip: no such directory; give"),
        ({"model": "{models}/demo/rbm/model"}, "not a BLIP; give a BLIP model directory"),
        ({"rbm": "{models}/demo/blip/model"}, "not an RBM; give an RBM directory"),
    ],
)
def test_a_wrong_path_is_one_clear_line_before_any_replica_starts(models, values, message):
    values = {key: value.format(models=models) if isinstance(value, str) else value for key, value in values.items()}
    with pytest.raises(ServeArgsError) as caught:
        build(CaptionArgs.model_validate({"model": str(models / "demo/blip/model")} | values))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_rbm_of_another_encoder_is_refused_where_the_encoder_is_loaded(models, captions):
    with pytest.raises((UserError, RuntimeError), match="trained on embeddings of encoder another"):
        captions(rbm=str(models / "wrong"))


def test_serve_finds_the_type_of_the_arguments():
    assert build.__annotations__["args"] is CaptionArgs
