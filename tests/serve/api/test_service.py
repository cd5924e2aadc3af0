"""Which models are served, whether they would answer, and what is said of them."""

import pytest

from raycap.errors import UserError
from raycap.serve.api.readiness import Readiness
from raycap.serve.api.served import Served
from raycap.serve.errors import Overloaded
from raycap.serve.stages.weights import Routing


def changed(routing, name, **settings):
    models = {**routing.models, name: routing.models["tiny"].model_copy(update=settings)}
    return routing.model_copy(update={"models": models})


def test_before_any_model_requests_and_probes_are_told_to_wait(make, data_url):
    api = make(served=Served({}))
    for answer in (api.get("/readyz"), api.post(json={"image": data_url()})):
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "not_ready")
        assert answer.headers["retry-after"]
    assert api.get("/healthz").status_code == 200


def test_every_new_model_gives_a_caption_before_the_switch(make, routing):
    api = make(served=Served({}))
    seen = []

    async def before(step):
        seen.append(set(api.service.served.models))

    api.captioner.before = before
    api.run(api.service.switch(routing))
    assert seen == [set(), set()]
    assert {task.weights for task in api.captioner.tasks} == {model.weights.key for model in routing.models.values()}
    assert set(api.service.served.models) == {"tiny-rbm", "tiny"}


def test_models_that_stay_and_shares_of_traffic_need_no_new_caption(api, routing):
    api.run(api.service.switch(changed(routing, "tiny", traffic=3.0)))
    assert api.captioner.tasks == []
    assert api.service.served.models["tiny"].served.traffic == 3
    api.run(api.service.switch(changed(routing, "tiny", version="2")))
    assert len(api.captioner.tasks) == 1


def test_a_model_that_gives_no_caption_leaves_the_old_ones_serving(api, routing, data_url):
    async def fail(step):
        raise RuntimeError("shapes\ndo not fit")

    before, api.captioner.before = api.service.served, fail
    with pytest.raises(UserError, match=r"^models\.new: gives no caption \(shapes do not fit\); .* go on$"):
        api.run(api.service.switch(changed(routing, "new", version="2")))
    with pytest.raises(UserError, match=r"^models\.new\.model = /nowhere.* go on$"):
        api.run(api.service.switch(changed(routing, "new", model="/nowhere")))
    assert api.service.served is before
    api.captioner.before = None
    assert api.post(json={"image": data_url()}).status_code == 200


def test_ready_only_after_a_real_pass_which_then_counts_for_a_while(make):
    api = make(ready_seconds=60)
    assert [api.get("/readyz").status_code for _ in range(3)] == [200] * 3
    assert len(api.captioner.tasks) == 1
    assert api.captioner.tasks[0].decoding.max_new_tokens == 1
    assert api.captioner.tasks[0].digest == b"", "no cache may answer it, or keep it"


def test_a_clients_pass_counts_too(make, data_url):
    api = make(ready_seconds=60)
    api.post(json={"image": data_url()})
    assert api.get("/readyz").status_code == 200
    assert len(api.captioner.tasks) == 1


@pytest.mark.parametrize("kind", ["embeddings", "without the RBM", "embeddings that were there"])
def test_a_client_s_work_that_some_stage_had_no_part_in_proves_nothing(make, data_url, kind):
    api = make(ready_seconds=60)
    if kind == "embeddings":
        assert api.post("/v1/embeddings", json={"input": data_url()}).status_code == 200
    else:
        api.captioner.from_cache = ("encode",) if kind == "embeddings that were there" else ()
        options = {"gate": 0} if kind == "without the RBM" else {}
        assert api.post(json={"image": data_url()} | options).status_code == 200
    api.captioner.tasks.clear()
    assert api.get("/readyz").status_code == 200
    assert len(api.captioner.tasks) == 1, "a pass of its own"


def test_not_ready_while_passes_fail_which_are_tried_again_only_after_a_while(captioner, served, make):
    async def fail(step):
        raise RuntimeError

    now = [0.0]
    captioner.before = fail
    api = make()
    api.service.readiness = Readiness(captioner, fresh_seconds=5, clock=lambda: now[0])
    assert [api.get("/readyz").status_code for _ in range(3)] == [503] * 3
    assert len(captioner.tasks) == 1
    now[0], captioner.before = 4.0, None
    assert api.get("/readyz").status_code == 503
    now[0] = 6.0
    assert api.get("/readyz").status_code == 200


def test_a_clients_failed_pass_is_looked_into_at_once(make, data_url):
    async def fail(step):
        raise RuntimeError

    api = make(ready_seconds=60)
    assert api.get("/readyz").status_code == 200
    api.captioner.before = fail
    assert api.post(json={"image": data_url()}).status_code == 500
    answer = api.get("/readyz")
    assert (answer.status_code, "RuntimeError" in answer.json()["error"]["message"]) == (503, True)


GONE = "model = /srv/models/blip: no such directory; give a BLIP directory, s3:// prefix or hub name"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("line", [GONE, "decoding.length_penalty = 3: not of a request"])
def test_what_a_stage_says_of_the_server_is_logged_and_not_told(make, data_url, serve_log, line, stream):
    async def gone(step):
        raise UserError(line)

    api = make(ready_seconds=60)
    assert api.get("/readyz").status_code == 200
    api.captioner.before = gone
    answer = api.post(json={"image": data_url(), "stream": stream})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "internal_error")
    assert line.partition(":")[0] not in answer.text
    assert line in serve_log.text
    assert api.get("/readyz").status_code == 503


def test_an_option_that_only_a_stage_can_judge_is_no_proof_against_it(make, data_url):
    api = make(ready_seconds=60)
    assert api.get("/readyz").status_code == 200
    assert api.post(json={"image": data_url(), "prompt": "a " * 20, "max_new_tokens": 20}).status_code == 400
    assert api.get("/readyz").status_code == 200
    assert len(api.captioner.tasks) == 2


def test_too_much_to_do_is_no_proof_against_the_stages(make, data_url):
    async def overloaded(step):
        raise Overloaded(1)

    api = make(ready_seconds=60)
    assert api.get("/readyz").status_code == 200
    api.captioner.before = overloaded
    assert api.post(json={"image": data_url()}).status_code == 503
    assert api.get("/readyz").status_code == 200


def test_while_draining_not_ready_but_answering(api, routing, data_url):
    api.run(api.service.switch(routing.model_copy(update={"draining": True})))
    assert api.get("/readyz").status_code == 503
    assert api.post(json={"image": data_url()}).status_code == 200


def test_models_are_listed_with_their_settings(api, routing):
    listed = api.get("/v1/models").json()
    assert listed["object"] == "list"
    first = {
        "id": "tiny-rbm",
        "kind": "blip",
        "refined": True,
        "image_size": 32,
        "gate": 0.5,
        "passes": 1,
        "traffic": 1.0,
    }
    second = {
        "id": "tiny",
        "kind": "blip",
        "refined": False,
        "image_size": 32,
        "gate": 0.0,
        "passes": 1,
        "traffic": 0.0,
    }
    common = {"object": "model", "created": 0, "owned_by": "raycap", "kind": "blip"}
    assert listed["data"] == [common | first, common | second]
    assert api.get("/v1/models/tiny").json() == common | second
    missing = api.get("/v1/models/none")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "unknown_model")


def test_a_routing_without_traffic_is_refused():
    with pytest.raises(ValueError, match="traffic"):
        Routing.model_validate({"models": {"a": {"model": "blip", "traffic": 0}}})


def test_openapi_describes_every_body_and_error(api):
    paths = api.get("/openapi.json").json()["paths"]
    bodies = {
        "/v1/caption": {"multipart/form-data", "application/json", "image/*", "application/octet-stream"},
        "/v1/captions": {"multipart/form-data", "application/json"},
        "/v1/chat/completions": {"application/json"},
        "/v1/embeddings": {"application/json"},
    }
    for path, kinds in bodies.items():
        post = paths[path]["post"]
        content = post["requestBody"]["content"]
        assert set(content) == kinds
        assert all("example" in body and body["schema"] for body in content.values())
        errors = {status: answer for status, answer in post["responses"].items() if status != "200"}
        assert set(errors) == {"400", "401", "404", "413", "415", "422", "429", "431", "500", "503", "504"}
        assert all("example" in answer["content"]["application/json"] for answer in errors.values())
        assert post["description"]
    assert "assistant message" in paths["/v1/chat/completions"]["post"]["description"]
    assert api.get("/docs").status_code == 200
