"""The ingress as Serve sees it, without Serve."""

import asyncio
import subprocess
import sys

import httpx
import pytest

from raycap.serve.config import CaptionArgs, ServeArgsError
from raycap.serve.ingress import CaptionIngress
from raycap.serve.stages.pipeline import Captioned


class Words:
    """A captioner that needs no image."""

    async def prepare(self, weights):
        pass

    async def caption(self, task):
        if "broken" in task.weights:
            raise RuntimeError("broken weights")
        return Captioned(["a star"], [-1.0], 2, [True], "v1", {})


@pytest.fixture
def routing(models):
    return {"models": {"tiny": {"model": str(models / "demo/blip/model")}}}


@pytest.fixture
def ingress(routing, monkeypatch):
    monkeypatch.setattr("raycap.serve.ingress.RemoteCaptioner", lambda captioner, _: captioner)
    # Without what serve.ingress lays around the class, which needs a replica.
    return CaptionIngress.__bases__[0](CaptionArgs.model_validate(routing), Words())


def names(ingress):
    return list(ingress.service.served.models)


def test_models_come_by_user_config_and_are_answered_over_http(ingress, routing, files):
    async def ask():
        await ingress.reconfigure(routing)
        transport = httpx.ASGITransport(ingress.__serve_build_asgi_app__())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/caption", files={"file": files[0]})

    answer = asyncio.run(ask()).json()
    assert (answer["caption"], answer["model"]) == ("a star", "tiny")


def test_draining_is_part_of_user_config(ingress, routing):
    asyncio.run(ingress.reconfigure(routing))
    assert not ingress.draining
    asyncio.run(ingress.reconfigure(routing | {"draining": True}))
    assert ingress.draining


def test_a_wrong_user_config_is_one_line_and_the_old_models_go_on(ingress, routing):
    asyncio.run(ingress.reconfigure(routing))
    model = routing["models"]["tiny"]
    wrong = {
        "no models": ({"models": {}}, "user_config: models"),
        "a misspelt key": (routing | {"drainin": True}, "did you mean draining"),
        "a model that gives no caption": (
            {"models": {"new": model | {"version": "broken"}}},
            "models.new: gives no caption",
        ),
        "more models than a stage holds": (
            {"models": {name: model | {"version": name} for name in ("one", "two", "three")}},
            "shape.captioner.max_models (2) must be at least the number of models (3)",
        ),
    }
    for user_config, line in wrong.values():
        asyncio.run(ingress.reconfigure(user_config))
        assert line in ingress.service.refused
        assert "\n" not in ingress.service.refused
        assert names(ingress) == ["tiny"]


def test_readyz_says_that_models_are_refused_and_leaves_the_reason_to_the_log(ingress, routing, serve_log):
    async def ask():
        await ingress.reconfigure(routing)
        await ingress.reconfigure({"models": {"new": {"model": "/srv/secret"}}})
        transport = httpx.ASGITransport(ingress.__serve_build_asgi_app__())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/readyz")

    answer = asyncio.run(ask())
    assert (answer.status_code, set(answer.json())) == (200, {"status", "refused"})
    assert "/srv/secret" not in answer.text
    assert "/srv/secret" in ingress.service.refused
    assert "/srv/secret" in serve_log.text


def test_a_replica_that_never_served_says_in_one_line_why_it_cannot(ingress, routing):
    broken = routing["models"]["tiny"] | {"version": "broken"}
    with pytest.raises(ServeArgsError, match="models.new: gives no caption") as refused:
        asyncio.run(ingress.reconfigure({"models": {"new": broken}}))
    assert "\n" not in str(refused.value)


def test_keys_change_with_a_new_user_config(routing, monkeypatch, tmp_path):
    monkeypatch.setattr("raycap.serve.ingress.RemoteCaptioner", lambda captioner, _: captioner)
    file = tmp_path / "keys.yaml"
    file.write_text("someone: the-first-key-of-someone\n")
    args = CaptionArgs.model_validate(routing | {"keys": {"file": str(file)}})
    ingress = CaptionIngress.__bases__[0](args, Words())
    asyncio.run(ingress.reconfigure(routing))
    file.write_text("someone: the-second-key-of-someone\n")
    asyncio.run(ingress.reconfigure(routing))
    assert ingress.service.keys.identify("Bearer the-second-key-of-someone") == "someone"
    file.write_text("someone: short\n")
    asyncio.run(ingress.reconfigure(routing))
    assert ingress.service.keys.identify("Bearer the-second-key-of-someone") == "someone"
    assert "short" not in ingress.service.refused


def test_an_rbm_that_no_refiner_would_apply_is_refused(models, routing, monkeypatch):
    monkeypatch.setattr("raycap.serve.ingress.RemoteCaptioner", lambda captioner, _: captioner)
    shape = {"kind": "disaggregated", "refiner": None}
    ingress = CaptionIngress.__bases__[0](CaptionArgs.model_validate(routing | {"shape": shape}), Words())
    model = routing["models"]["tiny"] | {"rbm": str(models / "demo/rbm/model")}
    with pytest.raises(ServeArgsError, match="models.tiny.rbm = .*: shape.refiner is null"):
        asyncio.run(ingress.reconfigure({"models": {"tiny": model}}))


def test_a_replica_without_models_does_not_wait_for_torch():
    imported = "import sys, raycap.serve.ingress; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", imported], text=True) == "set()\n"
