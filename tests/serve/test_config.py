import pytest
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call_builder
from ray.serve._private.config import DeploymentConfig
from ray.serve.exceptions import RayServeException

from raycap.errors import UserError
from raycap.serve.app import build
from raycap.serve.config import CaptionArgs, DeploymentOptions

ONE = {"m": {"model": "m"}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "args: models: missing; give it a value"),
        ({"models": {}}, "args: models = {}: Dictionary should have at least 1 item"),
        ({"models": {"m": {}}}, "args: models.m.model: missing; give it a value"),
        (
            {"models": {"модель": {"model": "m"}}},
            "name 'модель': give 1 to 64 visible ASCII characters, without spaces",
        ),
        ({"models": {"a\n": {"model": "m"}}}, r"name 'a\n': give 1 to 64 visible ASCII characters"),
        ({"models": {"m" * 65: {"model": "m"}}}, "give 1 to 64 visible ASCII characters"),
        (
            {"models": {"m": {"model": "m", "precison": "fp32"}}},
            "models.m.precison = 'fp32': unknown key; did you mean",
        ),
        (
            {"models": {"m": {"model": "m", "decoding": {"beams": 3}}}},
            "beams = 3: unknown key; did you mean num_beams?",
        ),
        (
            {"models": {"m": {"model": "m", "refinement": {"gate": 2}}}},
            "refinement.gate = 2: Input should be less than",
        ),
        (
            {"models": {"m": {"model": "m", "rerank": {}}}},
            "decoding.num_beams = 1: gives no 5 candidates; set at least",
        ),
        ({"models": {"m": {"model": "m", "rerank": {"clip_weight": 1}}}}, "clip_weight (1) needs a CLIP; set clip, or"),
        ({"models": {"m": {"model": "m", "traffic": 0}}}, "every model's traffic is 0; give one of them more"),
        ({"models": ONE, "shape": {"kind": "gpu"}}, "'disaggregated', 'fused', 'cpu'"),
        ({"models": ONE, "shape": {"kind": "fused", "encoder": {}}}, "shape.encoder = {}: unknown key"),
        ({"models": ONE, "shape": {"kind": "cpu", "captioner": {"num_gpus": 1}}}, "captioner.num_gpus (1) must be 0;"),
        (
            {"models": ONE, "shape": {"kind": "cpu"}, "ingress": {"num_replicas": 2}},
            "ingress: with shape.kind = cpu each replica answers HTTP itself; set shape.captioner",
        ),
        ({"models": ONE, "ingress": {"num_replicas": 3, "max_replicas": 2}}, "max_replicas (2) must be at least"),
        (
            {"models": ONE, "ingress": {"max_replicas": 2, "max_ongoing_requests": 128}},
            "max_ongoing_requests (128) must be above target_ongoing_requests (128)",
        ),
        (
            {"models": ONE, "shape": {"kind": "fused", "captioner": {"batch_size": 257}}},
            "max_ongoing_requests (256) must be at least batch_size (257)",
        ),
        (
            {"models": ONE, "shape": {"kind": "fused", "captioner": {"max_rows": 4}}},
            "max_rows (4) must be at least limits.max_beams (8) and limits.max_captions (8)",
        ),
        (
            {"models": {"m": {"model": "m", "decoding": {"num_beams": 130}}}},
            "max_rows (128) must be at least models.m.decoding.num_beams (130)",
        ),
        (
            {"models": {"m": {"model": "m", "rbm": "r"}}, "shape": {"kind": "disaggregated", "refiner": None}},
            "models.m.rbm = r: shape.refiner is null; give it options, or {}",
        ),
        (
            {"models": {name: {"model": name} for name in "abc"}},
            "shape.captioner.max_models (2) must be at least the number of models (3)",
        ),
    ],
)
def test_a_bad_argument_is_one_line_from_serve_too(values, message):
    with pytest.raises(UserError) as caught:
        call_builder(build, values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, RayServeException), "else Serve shows a traceback, after three more attempts"


def test_all_bad_arguments_are_reported_together():
    with pytest.raises(UserError) as caught:
        CaptionArgs.model_validate({"modles": {}, "caption_cache_bytes": -1})
    assert len(str(caught.value).splitlines()) == 3


def test_max_replicas_asks_serve_to_scale_without_flapping():
    options = DeploymentOptions(num_replicas=2, max_replicas=4, target_ongoing_requests=5).for_serve()
    assert "num_replicas" not in options
    scaling = DeploymentConfig(autoscaling_config=options["autoscaling_config"]).autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 4, 5)
    assert scaling.downscale_delay_s >= 10 * scaling.upscale_delay_s
