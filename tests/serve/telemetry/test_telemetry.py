"""What a request leaves behind in metrics, traces and logs, from the HTTP interface to the decoder."""

import asyncio
import base64
import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from ray._common.formatters import JSONFormatter
from ray.serve._private.logging_utils import ServeContextFilter
from ray.serve.context import _RequestContext, _serve_request_context
from serve.telemetry_fakes import Remembering, collector

from raycap.errors import UserError
from raycap.models.refinement import Refinement
from raycap.serve.api.app import make_api
from raycap.serve.api.service import Service
from raycap.serve.config import CaptionerOptions
from raycap.serve.stages.captioning import Decoder
from raycap.serve.stages.embedding import Encoder, Refiner
from raycap.serve.stages.pipeline import CaptionTask
from raycap.serve.stages.weights import Routing
from raycap.serve.telemetry.telemetry import Telemetry
from raycap.serve.telemetry.tracing import Tracer, Tracing

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACED = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
STAGES = {"prepare", "encode", "refine", "decode"}


@pytest.fixture
def routing(models):
    blip, rbm = str(models / "demo/blip/model"), str(models / "demo/rbm/model")
    return Routing.model_validate({"models": {"demo": {"model": blip, "rbm": rbm, "precision": "fp32"}}})


def captioner_of(telemetry, options=CaptionerOptions(batch_size=4)):  # noqa: B008 - frozen
    executor = ThreadPoolExecutor(1)
    refiner = Refiner(Encoder(options, executor, telemetry), options, executor, telemetry)
    return Decoder(refiner, options, ThreadPoolExecutor(1), telemetry)


def post(telemetry, routing, files, headers=None):
    """Answers to all files at once, after those that the start itself makes were forgotten."""

    async def post():
        service = Service(captioner_of(telemetry), telemetry=telemetry)
        await service.switch(routing)
        if isinstance(telemetry.recorder, Remembering):
            telemetry.recorder.counts.clear()
            telemetry.recorder.sums.clear()
        transport = httpx.ASGITransport(make_api(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            bodies = [{"image": base64.b64encode(file).decode()} for file in files]
            return await asyncio.gather(
                *(client.post("/v1/caption", json=body, headers=headers) for body in bodies),
            )

    return asyncio.run(post())


@contextmanager
def tracing_to(endpoint, **settings):
    telemetry = Telemetry(Remembering(), Tracer(Tracing(endpoint=endpoint, **settings)))
    try:
        yield telemetry
    finally:
        telemetry.close()


def test_a_request_is_counted_once_in_every_stage(routing, files):
    recorder = Remembering()
    answers = post(Telemetry(recorder), routing, [*files[:4], b"no image"])
    assert [answer.status_code for answer in answers] == [200] * 4 + [422]
    sums, counts = recorder.sums, recorder.counts
    assert sums["raycap_requests_total", "/v1/caption", "200", "demo"] == 4
    assert sums["raycap_requests_total", "/v1/caption", "422", "demo"] == 1
    assert sums["raycap_rejected_total", "undecodable_image"] == 1
    assert counts["raycap_request_seconds", "/v1/caption"] == 5
    assert sums["raycap_batch_size", "encode"] == sums["raycap_batch_size", "refine"] == 4
    for stage in ("encode", "refine"):
        assert counts["raycap_stage_seconds", stage] == counts["raycap_batch_size", stage]
    assert counts["raycap_stage_seconds", "prepare"] == counts["raycap_stage_seconds", "decode"] == 4
    assert sums["raycap_cache_total", "captions", "miss"] == 5
    assert sums["raycap_cache_total", "embeddings", "miss"] == 4
    assert sums["raycap_tokens_total",] == sum(answer.json()["usage"]["completion_tokens"] for answer in answers[:4])
    assert {key: read() for key, read in recorder.gauges.items()} == {
        ("raycap_queue_length", "encode"): 0,
        ("raycap_queue_length", "refine"): 0,
        ("raycap_queue_length", "decode"): 0,
        ("raycap_decoder_rows",): 0,
        ("raycap_models_loaded",): 1,
    }


def test_a_client_s_trace_has_the_request_and_below_it_every_stage(routing, files):
    with collector() as (collected, endpoint):
        with tracing_to(endpoint, sample_ratio=0, service_name="captions") as telemetry:
            (answer,) = post(telemetry, routing, files[:1], TRACED | {"x-request-id": "mine"})
        assert answer.status_code == 200
        by_name = {span.name: span for span in collected.spans}
        assert set(by_name) == STAGES | {"POST /v1/caption"}
        assert {span.trace_id.hex() for span in collected.spans} == {TRACE_ID}
        request = by_name["POST /v1/caption"]
        assert request.parent_span_id.hex() == PARENT_ID
        assert {by_name[stage].parent_span_id for stage in STAGES} == {request.span_id}
        assert all(
            request.start_time_unix_nano <= by_name[stage].start_time_unix_nano
            and by_name[stage].end_time_unix_nano <= request.end_time_unix_nano
            for stage in STAGES
        )
        assert collected.services == {"captions"}
        assert collected.attributes("POST /v1/caption")["raycap.request_id"] == "mine"
        encode = collected.attributes("encode")
        assert (encode["cache"], encode["batch_size"]) == ("miss", 1)
        assert collected.attributes("decode")["tokens"] == answer.json()["usage"]["completion_tokens"]
        assert collected.attributes("decode")["model_version"] == answer.json()["model_version"]


def test_requests_in_one_batch_keep_their_own_traces(routing, files):
    with collector() as (collected, endpoint):
        with tracing_to(endpoint, sample_ratio=1) as telemetry:
            post(telemetry, routing, files[:4])
        assert len({span.trace_id for span in collected.spans}) == 4
        roots = {span.span_id for span in collected.spans if not span.parent_span_id}
        assert len(roots) == 4
        for stage in STAGES:
            assert {span.parent_span_id for span in collected.spans if span.name == stage} == roots


def test_what_is_not_sampled_is_not_traced_in_any_stage(routing, files):
    with collector() as (collected, endpoint):
        with tracing_to(endpoint, sample_ratio=0) as telemetry:
            post(telemetry, routing, files[:1])
            post(telemetry, routing, files[:1], {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"})
        assert collected.spans == []


def test_a_stage_in_another_process_is_part_of_the_trace(tmp_path):
    script = """if True:
        import sys
        from raycap.serve.telemetry.telemetry import Telemetry
        from raycap.serve.telemetry.tracing import Tracer, Tracing
        telemetry = Telemetry(tracer=Tracer(Tracing(endpoint=sys.argv[1])))
        with telemetry.stage("encode", "id", {"traceparent": sys.argv[2]}):
            pass
        telemetry.close()
        """
    with collector() as (collected, endpoint):
        with tracing_to(endpoint) as telemetry:
            span, trace = telemetry.start_request("POST", TRACED)
            subprocess.run([sys.executable, "-c", script, endpoint, trace["traceparent"]], check=True, timeout=120)
            span.end()
        encode, request = sorted(collected.spans, key=lambda span: span.name != "encode")
        assert (encode.trace_id, encode.parent_span_id) == (request.trace_id, request.span_id)


def test_a_collector_that_is_gone_delays_no_answer(routing, files):
    with tracing_to("http://127.0.0.1:9/v1/traces", sample_ratio=1) as telemetry:
        assert post(telemetry, routing, files[:1])[0].status_code == 200


@pytest.fixture
def records():
    """Serve's log records as they would stand in its files, of requests that came in one call of another id."""
    handler, logger = logging.Handler(), logging.getLogger("ray.serve")
    handler.addFilter(ServeContextFilter())
    of_call = _serve_request_context.set(_RequestContext(request_id="of the call", app_name="caption"))
    formatter, level, records = JSONFormatter(), logger.level, []
    handler.emit = lambda record: records.append(json.loads(formatter.format(record)))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield records
    _serve_request_context.reset(of_call)
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_the_ingress_and_every_stage_log_the_client_s_request_id(routing, files, records):
    post(Telemetry(), routing, files[:1], {"x-request-id": "mine"})
    mine = [record for record in records if record.get("request_id") == "mine"]
    assert {record["stage"] for record in mine if "stage" in record} == STAGES
    (of_ingress,) = [record for record in mine if record["levelname"] == "INFO"]
    assert (of_ingress["endpoint"], of_ingress["status"]) == ("/v1/caption", 200)
    (of_decoder,) = [record for record in mine if record.get("stage") == "decode"]
    assert of_decoder["model_version"] == of_ingress["version"]


def test_a_failure_names_its_stage_and_its_request(routing, records):
    key = routing.models["demo"].absolute().weights.key
    decoding = routing.models["demo"].decoding

    async def caption(task):
        await captioner_of(Telemetry()).caption(task)

    task = CaptionTask("no pixels", b"digest", key, Refinement(), decoding, request_id="mine")
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever NumPy says
        asyncio.run(caption(task))
    (failed,) = [record for record in records if record["levelname"] == "ERROR"]
    assert (failed["request_id"], failed["stage"]) == ("mine", "encode")


def test_an_id_that_no_log_can_bear_is_replaced_in_the_log_too(routing, files, records):
    (answer,) = post(Telemetry(), routing, files[:1], {"x-request-id": "a b"})
    (of_ingress,) = [record for record in records if record["levelname"] == "INFO"]
    assert of_ingress["request_id"] == answer.headers["x-request-id"] != "a b"


def test_tracing_without_its_package_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^tracing: no exporter is installed; run `pip install 'raycap\[tracing\]'`"):
        Tracing().require_exporter()
