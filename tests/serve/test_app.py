"""What the builder makes of its arguments, without a cluster."""

import pytest

from raycap.hardware import KEEP_FREED_BLOCKS, KEEP_FREED_MEMORY
from raycap.serve.app import build
from raycap.serve.config import CaptionArgs, ServeArgsError
from raycap.serve.telemetry.tracing import Tracing


def deployments(application):
    """By name, those of an application."""
    found, todo = {}, [application]
    while todo:
        bound = todo.pop()._bound_deployment
        found[bound.name] = bound
        todo += [argument for argument in bound.init_args if isinstance(argument, type(application))]
    return found


@pytest.fixture
def args(models):
    """A function from a shape to arguments with the demo's models."""

    def args(**values):
        model = {"model": str(models / "demo/blip/model"), "rbm": str(models / "demo/rbm/model")}
        return CaptionArgs.model_validate({"models": {"caption": model}} | values)

    return args


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("disaggregated", {"ingress", "decoder", "refiner", "encoder"}),
        ("fused", {"ingress", "captioner"}),
        ("cpu", {"ingress"}),
    ],
)
def test_each_shape_has_its_deployments_with_their_own_queues_and_models(args, kind, names):
    made = args(shape={"kind": kind})
    found = deployments(build(made))
    assert set(found) == names
    for name, deployment in found.items():
        # The ingress refuses what is too much itself, in its own form.
        queue = 2 * made.max_inside if name == "ingress" else 256
        assert deployment._deployment_config.max_queued_requests == queue
        assert deployment._deployment_config.backpressure_config.status_code == 503
        assert set(deployment._deployment_config.user_config["models"]) == {"caption"}


def test_without_a_refiner_the_decoder_asks_the_encoder(lstm):
    args = {"shape": {"kind": "disaggregated", "refiner": None}, "models": {"lstm": {"model": lstm}}}
    found = deployments(build(CaptionArgs.model_validate(args)))
    assert set(found) == {"ingress", "decoder", "encoder"}


@pytest.mark.parametrize("name", ["rbm", "rerank"])
def test_an_lstm_captioner_takes_no_rbm(models, lstm, name):
    given = {"rbm": str(models / "demo/rbm/model"), "rerank": {"num_candidates": 1}}[name]
    with pytest.raises(ServeArgsError, match=f"args.models.m.{name}: .* is an LSTM captioner, which takes none"):
        build(CaptionArgs.model_validate({"models": {"m": {"model": lstm, name: given}}}))


def test_the_stages_keep_their_share_of_a_gpu(args):
    shape = {"kind": "disaggregated", "encoder": {"num_gpus": 0.5, "max_replicas": 4}, "decoder": {"num_gpus": 0.4}}
    found = deployments(build(args(shape=shape)))
    assert found["encoder"].ray_actor_options["num_gpus"] == 0.5
    assert found["encoder"]._deployment_config.autoscaling_config.max_replicas == 4
    assert found["decoder"].ray_actor_options["num_gpus"] == 0.4


def test_parcels_are_as_many_as_the_replicas_that_compute_them(args):
    shape = {
        "kind": "disaggregated",
        "encoder": {"batch_size": 32, "max_replicas": 4},
        "refiner": {"batch_size": 8, "num_replicas": 2},
    }
    found = deployments(build(args(shape=shape)))
    assert found["refiner"].init_args[2:4] == (32, 4)
    assert found["decoder"].init_args[2:4] == (8, 4), "the encoder's replicas compute what the refiner asks for"


def test_embeddings_that_no_message_holds_are_refused_where_they_would_travel(args, monkeypatch):
    monkeypatch.setattr("raycap.serve.app.MESSAGE_BYTES", 3 * 32 * 32)
    assert build(args(shape={"kind": "disaggregated"}))
    monkeypatch.setattr("raycap.serve.app.MESSAGE_BYTES", 3 * 32 * 32 - 1)
    assert build(args(shape={"kind": "cpu"}))
    for kind in ("disaggregated", "fused"):
        with pytest.raises(ServeArgsError, match=r"args\.models\.caption\.model = .*_GRPC_MAX_MESSAGE_LENGTH=6144,"):
            build(args(shape={"kind": kind}))


@pytest.mark.parametrize("kind", ["disaggregated", "fused", "cpu"])
def test_replicas_keep_freed_memory_where_no_gpu_computes(args, kind, monkeypatch):
    def kept(shape):
        found = deployments(build(args(shape=shape)))
        environments = {name: each.ray_actor_options.get("runtime_env") for name, each in found.items()}
        return {name: environment["env_vars"] for name, environment in environments.items() if environment}

    stages = {"disaggregated": {"encoder", "refiner", "decoder"}, "fused": {"captioner"}, "cpu": {"ingress"}}[kind]
    assert kept({"kind": kind}) == dict.fromkeys(stages, KEEP_FREED_BLOCKS), "of narrow models"
    monkeypatch.setattr("raycap.serve.stages.threads._WIDE", 1)
    assert kept({"kind": kind}) == dict.fromkeys(stages, KEEP_FREED_MEMORY)
    assert set(kept({"kind": "disaggregated", "encoder": {"num_gpus": 0.5}})) == {"refiner", "decoder"}


def test_every_stage_knows_where_traces_go(args):
    tracing = Tracing(endpoint="http://collector:4318/v1/traces")
    for kind, stages in (("disaggregated", {"decoder", "refiner", "encoder"}), ("fused", {"captioner"})):
        found = deployments(build(args(shape={"kind": kind}, tracing=tracing.model_dump())))
        assert all(tracing in found[stage].init_args for stage in stages)


def test_relative_paths_are_made_absolute_where_build_runs(models, monkeypatch):
    monkeypatch.chdir(models)
    found = deployments(build(CaptionArgs.model_validate({"models": {"m": {"model": "demo/blip/model"}}})))
    user_config = found["captioner"]._deployment_config.user_config
    assert user_config["models"]["m"]["model"] == str(models / "demo/blip/model")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "no/such/model"}, "args.models.m.model = no/such/model: no such directory; give a BLIP directory"),
        ({"rbm": "/no/such/rbm"}, "args.models.m.rbm = /no/such/rbm: no model there"),
        ({"rerank": {"num_candidates": 1, "rbm": "/no/such/rbm"}}, "m.rerank.rbm = /no/such/rbm: no model there"),
        ({"rerank": {"num_candidates": 1, "clip": "/no/clip"}}, "m.rerank.clip = /no/clip: no such directory; give"),
        ({"model": "{models}/demo/rbm/model"}, "not a BLIP; give a BLIP model directory"),
        ({"rbm": "{models}/demo/blip/model"}, "not an RBM; give an RBM directory"),
    ],
)
def test_a_wrong_path_is_one_clear_line_before_any_replica_starts(models, values, message):
    values = {key: value.format(models=models) if isinstance(value, str) else value for key, value in values.items()}
    with pytest.raises(ServeArgsError) as caught:
        build(CaptionArgs.model_validate({"models": {"m": {"model": str(models / "demo/blip/model")} | values}}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_serve_finds_the_type_of_the_arguments():
    assert build.__annotations__["args"] is CaptionArgs


def test_addresses_that_clients_may_choose_limit_no_rate(args, monkeypatch):
    rate_limit = {"requests_per_minute": 60, "burst": 10}
    monkeypatch.setattr("raycap.serve.app.RAY_SERVE_ENABLE_HA_PROXY", True)
    with pytest.raises(ServeArgsError, match=r"^args\.rate_limit: without keys .*; set keys, or leave it out$"):
        build(args(rate_limit=rate_limit))
    build(args(rate_limit=rate_limit, keys={"environment": "RAYCAP_KEYS"}))
    monkeypatch.setattr("raycap.serve.app.RAY_SERVE_ENABLE_HA_PROXY", False)
    build(args(rate_limit=rate_limit))
