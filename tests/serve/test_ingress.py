"""The ingress as Serve sees it, without Serve."""

import asyncio

import httpx
import pytest

from raycap.serve.config import ServeArgsError
from raycap.serve.ingress import CaptionIngress
from raycap.serve.pipeline import Captioned


class Words:
    """A captioner that needs no image."""

    async def caption(self, task):
        if "broken" in task.weights:
            raise RuntimeError("broken weights")
        return Captioned(["a star"], [-1.0], 2, True, "v1", {})


@pytest.fixture
def ingress():
    # Without what serve.ingress lays around the class, which needs a replica.
    return CaptionIngress.__bases__[0](Words())


@pytest.fixture
def routing(models):
    return {"models": {"tiny": {"model": str(models / "demo/blip/model")}}}


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
    }
    for user_config, line in wrong.values():
        with pytest.raises(ServeArgsError, match=line) as refused:
            asyncio.run(ingress.reconfigure(user_config))
        assert "\n" not in str(refused.value)
        assert names(ingress) == ["tiny"]
