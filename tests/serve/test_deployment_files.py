"""The files that deploy raycap hold together with the code, as far as that shows without Docker or Kubernetes."""

import shlex
from importlib.metadata import version
from pathlib import Path

import pytest
import ray
import yaml
from ray._common.utils import import_attr
from ray.serve.schema import ServeDeploySchema

from raycap.batch.extract import ExtractConfig
from raycap.config import load_config
from raycap.serve.app import build
from raycap.serve.config import CaptionArgs

ROOT = Path(__file__).parents[2]
SERVE_CONFIGS = sorted((ROOT / "serve_configs").glob("*.yaml"))
RAY_SERVICE = ROOT / "infra/kuberay/rayservice.yaml"
RAY_JOB = ROOT / "infra/kuberay/rayjob.yaml"


def check_serve_config(text):
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    assert config.applications
    for application in config.applications:
        assert import_attr(application.import_path) is build
        CaptionArgs.model_validate(application.args)
    return config


@pytest.mark.parametrize("path", SERVE_CONFIGS, ids=lambda path: path.name)
def test_every_serve_config_is_what_serve_and_the_builder_accept(path):
    config = check_serve_config(path.read_text())
    assert config.http_options.host == "127.0.0.1", "a server on all interfaces is for whoever asks for one"


def test_the_ray_service_holds_a_valid_serve_config_with_models_every_node_can_read():
    service = yaml.safe_load(RAY_SERVICE.read_text())
    assert service["kind"] == "RayService"
    for application in check_serve_config(service["spec"]["serveConfigV2"]).applications:
        for model in application.args["models"].values():
            assert model["model"].startswith("s3://")
            assert model["rbm"].startswith("s3://")


def test_the_ray_job_calls_a_job_with_a_configuration_it_accepts():
    job = yaml.safe_load(RAY_JOB.read_text())
    assert job["kind"] == "RayJob"
    python, script, option, config, *overrides = shlex.split(job["spec"]["entrypoint"])
    assert (python, option) == ("python", "--config")
    assert (ROOT / script).is_file()
    load_config(ExtractConfig, str(ROOT / config), overrides)


@pytest.mark.parametrize(("path", "key"), [(RAY_SERVICE, "rayClusterConfig"), (RAY_JOB, "rayClusterSpec")])
def test_clusters_run_the_ray_and_the_raycap_of_this_tree(path, key):
    cluster = yaml.safe_load(path.read_text())["spec"][key]
    assert cluster["rayVersion"] == ray.__version__
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == f"raycap:{version('raycap')}"


def test_what_the_image_copies_is_there_and_not_ignored():
    dockerfile = (ROOT / "infra/docker/Dockerfile").read_text()
    copies = [line.split()[1:-1] for line in dockerfile.splitlines() if line.startswith("COPY")]
    sources = {source for copy in copies for source in copy}
    kept = {line[1:] for line in (ROOT / "infra/docker/Dockerfile.dockerignore").read_text().split() if line[0] == "!"}
    assert sources == kept
    assert all((ROOT / source).exists() for source in sources)
