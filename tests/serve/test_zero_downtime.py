"""Changes under load, on a cluster made by `ray start` and changed by `serve deploy`."""

import time

import httpx
import pytest
from serve.load import Load
from serve.local_cluster import LocalCluster, disaggregated, wait_until
from serve.tiny_models import Served, make_models

pytestmark = pytest.mark.integration

NUM_CLIENTS = 4
RETURN_SECONDS = 300  # of a change on a busy machine of two cores


@pytest.fixture(scope="module")
def old(models, files):
    return Served.of(models, files)


@pytest.fixture(scope="module")
def new(tmp_path_factory, files):
    """Other weights, another gate."""
    return Served.of(make_models(tmp_path_factory.mktemp("new"), seed=1), files, gate=0.5)


@pytest.fixture(scope="module")
def cluster(old):
    with LocalCluster() as cluster:
        cluster.deploy(disaggregated(old.values))
        cluster.wait_until_running(RETURN_SECONDS)
        yield cluster


@pytest.fixture
def load(cluster, files):
    with Load(cluster.url, files, NUM_CLIENTS) as load:
        load.wait_for(lambda result: len(result.answered) > 20)
        yield load


def routed_to(model, application, **routing):
    """The application with only the ingress's user_config changed."""
    user_config = {"models": {"caption": model}, **routing}
    return application | {"deployments": [{"name": "ingress", "user_config": user_config}]}


def check_answers(result, *served):
    """Nothing failed, and each caption is what the weights and the gate that its answer names give."""
    assert result.errors() == {}
    allowed = {(model.version, model.gate): model.captions for model in served}
    for sample in result.answered:
        assert sample.caption == allowed[sample.version, sample.gate][sample.image]


def test_other_weights_and_another_gate_take_over_without_a_failed_or_mixed_request(cluster, load, files, old, new):
    different = sum(before != after for before, after in zip(old.captions, new.captions, strict=True))
    assert different > len(old.captions) // 2, "the models must differ for this to show anything"
    replicas = cluster.replicas()
    for model in (new, old):
        cluster.deploy(routed_to(model.values, disaggregated(old.values)))
        wait_until(lambda: _version(cluster, files[0]) == model.version, RETURN_SECONDS, cluster.log)  # noqa: B023
        switched_at = time.monotonic()
        load.wait_for(lambda result: len(result.between(switched_at).answered) > 40)  # noqa: B023
        after = [sample for sample in load.result.samples if sample.started_at > switched_at]
        assert {sample.version for sample in after} == {model.version}
    check_answers(load.stop(), old, new)
    assert cluster.replicas() == replicas, "a change of user_config restarts nothing"


def _version(cluster, file):
    """The ingress has one replica, which changes for all requests at once."""
    headers = {"Content-Type": "image/png"}
    return httpx.post(f"{cluster.url}/v1/caption", content=file, headers=headers, timeout=60).json()["model_version"]


def test_a_wrong_path_changes_nothing_and_is_one_clear_line(cluster, load, old):
    replicas = cluster.replicas()
    cluster.deploy(routed_to(old.values | {"model": "/no/such/model"}, disaggregated(old.values)))
    wait_until(lambda: "refused" in _ready(cluster), RETURN_SECONDS, cluster.log)
    assert "/no/such/model" not in _ready(cluster)["refused"]
    line = (
        "models.caption.model = /no/such/model: no such directory; give a BLIP directory, s3:// prefix or hub name; "
        "the models served before go on"
    )
    logs = cluster.directory / "session_latest/logs/serve"
    assert any(line in log.read_text(errors="replace") for log in logs.glob("*.log"))
    wait_until(lambda: cluster.status()["status"] == "RUNNING", RETURN_SECONDS, cluster.log)
    cluster.deploy(routed_to(old.values, disaggregated(old.values)))
    wait_until(lambda: "refused" not in _ready(cluster), RETURN_SECONDS, cluster.log)
    check_answers(load.stop(), old)
    assert cluster.replicas() == replicas


def _ready(cluster):
    return httpx.get(f"{cluster.url}/readyz", timeout=30).json()


def test_draining_shows_in_readyz_alone(cluster, load, old):
    cluster.deploy(routed_to(old.values, disaggregated(old.values), draining=True))
    wait_until(lambda: httpx.get(f"{cluster.url}/readyz", timeout=30).status_code == 503, RETURN_SECONDS, cluster.log)
    draining_since = time.monotonic()
    load.wait_for(lambda result: len(result.between(draining_since).answered) > 20)
    cluster.deploy(routed_to(old.values, disaggregated(old.values)))
    wait_until(lambda: httpx.get(f"{cluster.url}/readyz", timeout=30).status_code == 200, RETURN_SECONDS, cluster.log)
    check_answers(load.stop(), old)


def test_changed_args_replace_every_replica_without_a_failed_request(cluster, load, old):
    """Stands last: new replicas take long to load."""
    before = {pid for pids in cluster.replicas().values() for pid in pids}
    cluster.deploy(disaggregated(old.values, decoder={"max_rows": 16}, encoder={"batch_size": 4}))

    def replaced():
        now = {pid for pids in cluster.replicas().values() for pid in pids}
        return len(now) == 4 and not now & before and cluster.status()["status"] == "RUNNING"

    wait_until(replaced, RETURN_SECONDS, cluster.log)
    check_answers(load.stop(), old)
