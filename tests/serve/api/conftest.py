"""The HTTP interface without Ray, around the tiny BLIP in this process."""

import asyncio
import base64
import io

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from raycap.models.joint import score_captions
from raycap.models.written_caption import Attention
from raycap.predictor import CaptionPredictor
from raycap.serve.api.app import make_api
from raycap.serve.api.served import Served
from raycap.serve.api.service import Service
from raycap.serve.guard.limits import Limits
from raycap.serve.stages.pipeline import Captioned, Embedded
from raycap.serve.stages.weights import Routing, Weights

LIMITS = Limits(max_image_bytes=4000, max_pixels=3000, max_images=3, max_body_bytes=40_000, max_new_tokens=20)


class LocalCaptioner:
    """The predictor's stages; ``before`` is awaited ahead of every answer, ``tasks`` are all that were asked."""

    def __init__(self, loaded):
        self.tasks, self.before, self.loaded, self.cancelled, self.closed = [], None, loaded, 0, 0
        self.from_cache = ()

    async def prepare(self, weights):
        """Nothing to prepare: a model is loaded with its first task."""

    async def caption(self, task):
        await self._begin(task)
        return self._caption(task)

    async def stream(self, task):
        try:
            await self._begin(task)
            captioned = self._caption(task)
            if task.num_captions == 1 and task.decoding.num_beams == 1:
                words = captioned.captions[0].split()
                for index, word in enumerate(words):
                    await self._wait(index + 1)
                    yield word if index == 0 else f" {word}"
            yield captioned
        finally:
            self.closed += 1

    async def embed(self, task):
        await self._begin(task)
        before, after = self._embed(task)
        return Embedded(before[0].half().numpy(), after[0].half().numpy(), "e1+r1", {"encode": 0.001})

    async def _begin(self, task):
        self.tasks.append(task)
        await self._wait(0)

    async def _wait(self, step):
        if self.before is not None:
            try:
                await self.before(step)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

    def _predictor(self, key):
        if key not in self.loaded:
            weights = Weights.from_key(key)
            self.loaded[key] = CaptionPredictor.from_pretrained(weights.model, weights.rbm)
        return self.loaded[key]

    def _embed(self, task):
        predictor = self._predictor(task.weights)
        encoded = predictor.encode(np.stack([task.pixels]))
        return encoded, predictor.refine(encoded, task.refinement)

    def _caption(self, task):
        predictor = self._predictor(task.weights)
        decoder, embeds = predictor.decoder.decoder, self._embed(task)[1]
        decoder.require_room(task.decoding)
        ids = decoder.propose(embeds, task.decoding, task.num_captions)
        texts = decoder.tokenizer.batch_decode(ids[0, :, 1:], skip_special_tokens=True)
        scores = score_captions(decoder, embeds, ids)
        words = texts[0].split()
        refines = predictor.refiner is not None and task.refinement.gate > 0
        stages = ("encode", "refine", "decode") if refines else ("encode", "decode")
        rows = task.pixels.shape[0] // 8
        maps = torch.full((len(words), rows, rows), 1 / rows**2).numpy()
        return Captioned(
            captions=texts,
            log_probabilities=scores.log_probability[0].tolist(),
            num_tokens=int(scores.num_tokens.sum()),
            finished=(ids[0] == decoder.eos_id).any(-1).tolist(),
            version="e1-d1" if predictor.refiner is None else "e1-r1-d1",
            seconds={stage: 0.001 for stage in stages if stage not in self.from_cache},
            attention=Attention(words, maps) if task.explain else None,
        )


@pytest.fixture(scope="session")
def loaded():
    """Predictors by their weights, for all tests."""
    return {}


@pytest.fixture
def captioner(loaded):
    return LocalCaptioner(loaded)


@pytest.fixture
def limits():
    return LIMITS


@pytest.fixture(scope="session")
def routing(models):
    """Two models; requests that name none go to the first."""
    blip, rbm = str(models / "demo/blip/model"), str(models / "demo/rbm/model")
    refinement = {"gate": 0.5}
    return Routing.model_validate(
        {
            "models": {
                "tiny-rbm": {"model": blip, "rbm": rbm, "refinement": refinement, "decoding": {"max_new_tokens": 8}},
                "tiny": {"model": blip, "decoding": {"max_new_tokens": 8}, "traffic": 0},
            }
        }
    )


@pytest.fixture(scope="session")
def served(routing):
    """As after a switch to them."""
    return Served.read(routing)


class Api:
    """Asks the interface in an event loop of its own, request by request."""

    def __init__(self, captioner, served, **options):
        self.runner = asyncio.Runner()
        self.captioner = captioner
        self.service = Service(captioner, **{"limits": LIMITS} | options)
        self.app = make_api(self.service)
        self.service.served = served

    def run(self, work):
        return self.runner.run(work)

    async def send(self, method, path, **options):
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    def post(self, path="/v1/caption", **options):
        return self.run(self.send("POST", path, **options))

    def get(self, path, **options):
        return self.run(self.send("GET", path, **options))


@pytest.fixture
def make(captioner, served):
    """Makes interfaces with other options."""
    made = []

    def make(served=served, **options):
        made.append(Api(captioner, served, **options))
        return made[-1]

    yield make
    for api in made:
        api.runner.close()


@pytest.fixture
def api(make):
    return make()


def png(width=20, height=10, colour="teal"):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session", name="png")
def png_fixture():
    return png


@pytest.fixture(scope="session")
def data_url():
    def data_url(data=None):
        return f"data:image/png;base64,{base64.b64encode(png() if data is None else data).decode()}"

    return data_url


@pytest.fixture
def hold(captioner):
    """Lets the captioner wait for ever at a step, and tells when it does."""

    def hold(at_step=0):
        waiting = asyncio.Event()

        async def before(step):
            if step == at_step:
                waiting.set()
                await asyncio.Event().wait()

        captioner.before = before
        return waiting

    return hold
