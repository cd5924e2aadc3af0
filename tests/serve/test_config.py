import pytest
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call_builder
from ray.serve.exceptions import RayServeException

from raycap.errors import UserError
from raycap.serve.app import build
from raycap.serve.config import CaptionArgs, StageOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "args: model: missing; give it a value"),
        ({"model": "m", "precison": "fp32"}, "args: precison = 'fp32': unknown key; did you mean precision?"),
        ({"model": "m", "decoding": {"beams": 3}}, "args: decoding.beams = 3: unknown key; did you mean num_beams?"),
        (
            {"model": "m", "refinement": {"gate": 2}},
            "args: refinement.gate = 2: Input should be less than",
        ),
        ({"model": "m", "encoder": {"batch_size": 64}}, "max_ongoing_requests (32) must be at least batch_size (64)"),
        ({"model": "m", "encoder": {"num_replicas": 3, "max_replicas": 2}}, "max_replicas (2) must be at least"),
        ({"model": "m", "rerank": {}}, "decoding.num_beams = 1: gives no 5 candidates; set at least 5"),
        ({"model": "m", "rerank": {"free_energy_weight": 1}}, "free_energy_weight (1) needs an RBM; set rbm"),
        ({"model": "m", "rerank": {"clip_weight": 1}}, "clip_weight (1) needs a CLIP; set clip, or weigh it 0"),
        ({"model": "m", "decoding": {"do_sample": True, "num_beams": 3}}, "num_beams (3) must be 1 with do_sample"),
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
        CaptionArgs.model_validate({"rmb": "r", "refinement": {"gate": 2}})
    assert len(str(caught.value).splitlines()) == 3


def test_max_replicas_asks_serve_to_scale():
    options = StageOptions(num_replicas=2, max_replicas=4, max_ongoing_requests=10).deployment_options()
    assert "num_replicas" not in options
    assert options["autoscaling_config"] == {"min_replicas": 2, "max_replicas": 4, "target_ongoing_requests": 5}
