"""POST /v1/embeddings: an image's embeddings before and after the RBM, in OpenAI's form."""

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from raycap.models.refinement import Refinement
from raycap.serve.api import documentation
from raycap.serve.api.bodies import BodyLimit, read_json, too_many_images
from raycap.serve.api.images import ImageInput
from raycap.serve.api.options import RequestConfig, choose_refinement, parse
from raycap.serve.api.patience import unless_gone, within_deadline
from raycap.serve.api.preparing import load_pixels, read_file
from raycap.serve.api.record import RequestRecord
from raycap.serve.api.served import ReadyModel
from raycap.serve.api.service import Service
from raycap.serve.errors import RequestError
from raycap.serve.guard.limits import Limits
from raycap.serve.stages.pipeline import Embedded, ImageTask

_POOLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda embeds: embeds.mean(0),
    "cls": lambda embeds: embeds[0],
    "all": lambda embeds: embeds,
}
"""From (N, D) float32; the class token is the first."""

# A millisecond's work.
_FLOATS_AT_ONCE = 2048


class EmbeddingsBody(RequestConfig):
    """A request for embeddings."""

    input: str | list[str] = Field(min_length=1)
    """An image, or several: base64, data URLs, or http(s) URLs where this server fetches them."""

    model: str | None = None
    """Name of the model, see /v1/models; by default one is drawn by the models' shares of the traffic."""

    encoding_format: Literal["float", "base64"] = "base64"
    """Numbers, or base64 of little-endian numbers of type `dtype`, row after row. An answer of very many numbers, as
    of all tokens of several images, comes in base64 only."""

    dtype: Literal["float32", "float16"] = "float32"
    """Of the numbers. float16 loses nothing but the mean's last bits; OpenAI's clients expect float32."""

    refined: bool | Literal["both"] | None = None
    """After the RBM, before it, or both; by default after it where the model has one."""

    tokens: Literal["mean", "all", "cls"] = "mean"
    """The mean of the image's tokens, all of them, or BLIP's class token. An LSTM captioner's tokens are regions."""

    gate: float | None = Field(default=None, ge=0, le=1)
    """Share of the RBM's reconstruction."""

    passes: int | None = Field(default=None, ge=1)
    """Through the RBM."""

    user: str | None = None
    """Accepted and without effect."""


def embedding_routes(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["OpenAI-compatible"])

    @routes.post(
        "/v1/embeddings",
        response_class=JSONResponse,
        responses=documentation.EMBEDDINGS_RESPONSES,
        openapi_extra=documentation.json_body(EmbeddingsBody, documentation.EMBEDDINGS_EXAMPLE),
    )
    async def embeddings(request: Request) -> Any:
        """Embed images. Each entry says the image's `index`, its `stage` and its `shape`; with `refined: "both"` an
        image has two entries. An image that cannot be read is an error of the whole request."""
        record = service.admit(request, None)
        async with within_deadline(request):
            body = parse(EmbeddingsBody, await read_json(request, BodyLimit.of_several(service.limits)))
            images = _images(body, service)
            body = body.model_copy(update={"input": []})
            model = service.served.pick(body.model)
            record.model = model.name
            refinement = _refinement(body, model, service)
            _require_class_token(body, model)
            _require_few_floats(body, len(images), model, service.limits)
            service.count_images(request, len(images))
            embedded = await unless_gone(request, _embed_all(service, record, images, model, refinement))
            record.version = embedded[0].version
            answer = await service.images.threads.run(lambda: _render(embedded, body, model))
            return Response(answer, media_type="application/json")

    return routes


def _images(body: EmbeddingsBody, service: Service) -> list[ImageInput]:
    if isinstance(body.input, str):
        return [ImageInput("input", body.input)]
    if len(body.input) > service.limits.max_images:
        raise too_many_images("input", len(body.input), service.limits.max_images)
    return [ImageInput(f"input.{index}", image) for index, image in enumerate(body.input)]


def _refinement(body: EmbeddingsBody, model: ReadyModel, service: Service) -> Refinement:
    if body.refined and model.served.rbm is None:
        message = f"refined = {body.refined!r}: model {model.name} has no RBM; leave it out, or choose another model"
        raise RequestError(400, "invalid_option", message, "refined")
    if body.passes is not None and body.passes > service.limits.max_passes:
        message = f"passes = {body.passes}: more than this server allows; set at most {service.limits.max_passes}"
        raise RequestError(400, "invalid_option", message, "passes")
    return choose_refinement(body.gate, body.passes, model)


async def _embed_all(
    service: Service, record: RequestRecord, images: list[ImageInput], model: ReadyModel, refinement: Refinement
) -> list[Embedded]:
    async def prepare(image: ImageInput) -> ImageTask:
        file = await read_file(service, record, image)
        pixels = await load_pixels(service, record, file, model.shape.image_size)
        return ImageTask(
            pixels, file.digest, model.weights_key, refinement, request_id=record.request_id, trace=record.trace
        )

    async def embed(image: ImageInput) -> Embedded:
        task = await prepare(image)
        with service.readiness.observe():
            embedded = await service.captioner.embed(task)
        record.add_seconds(embedded.seconds)
        return embedded

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(embed(image)) for image in images]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _stages(body: EmbeddingsBody, model: ReadyModel) -> list[str]:
    refined = model.served.rbm is not None if body.refined is None else body.refined
    return ["encoder", "refiner"] if refined == "both" else ["refiner" if refined else "encoder"]


def _require_class_token(body: EmbeddingsBody, model: ReadyModel) -> None:
    if body.tokens == "cls" and model.shape.kind != "blip":
        message = f"tokens = 'cls': model {model.name} has regions and no class token; choose mean or all"
        raise RequestError(400, "invalid_option", message, "tokens")


def _require_few_floats(body: EmbeddingsBody, num_images: int, model: ReadyModel, limits: Limits) -> None:
    if body.encoding_format != "float":
        return
    num_tokens, width = model.shape.num_tokens, model.shape.embed_dim
    numbers = num_images * len(_stages(body, model)) * (num_tokens if body.tokens == "all" else 1) * width
    if numbers > limits.max_float_numbers:
        message = (
            f"encoding_format = 'float': {numbers} numbers, more than {limits.max_float_numbers}; choose base64, or "
            "ask for fewer images or tokens"
        )
        raise RequestError(400, "invalid_option", message, "encoding_format")


def _render(embedded: list[Embedded], body: EmbeddingsBody, model: ReadyModel) -> bytes:
    """The answer in JSON, in steps that are short each: while one goes on, no other thread does, the event loop's
    neither."""
    entries = []
    for index, of_image in enumerate(embedded):
        for stage in _stages(body, model):
            embeds = (of_image.before if stage == "encoder" else of_image.after).astype(np.float32)
            embedding = _POOLED[body.tokens](embeds).astype(np.dtype(body.dtype).newbyteorder("<"))
            shape = list(embedding.shape)
            head = {"object": "embedding", "index": index, "stage": stage, "shape": shape, "dtype": body.dtype}
            numbers = _as_base64(embedding) if body.encoding_format == "base64" else _as_floats(embedding)
            entries.append(_joined(head, "embedding", numbers))
    num_tokens = sum(len(of_image.before) for of_image in embedded)
    head = {
        "object": "list",
        "model": model.name,
        "model_version": embedded[0].version,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
    return _joined(head, "data", b"[%b]" % b",".join(entries))


def _joined(head: dict[str, Any], name: str, value: bytes) -> bytes:
    """An object in JSON, whose last value is there already."""
    return b'%b,"%b":%b}' % (json.dumps(head)[:-1].encode(), name.encode(), value)


def _as_base64(embedding: np.ndarray) -> bytes:
    return b'"%b"' % base64.b64encode(embedding.tobytes())


def _as_floats(embedding: np.ndarray) -> bytes:
    numbers = embedding.ravel()
    parts = (numbers[start : start + _FLOATS_AT_ONCE].tolist() for start in range(0, numbers.size, _FLOATS_AT_ONCE))
    return b"[%b]" % b",".join(json.dumps(part, allow_nan=False)[1:-1].encode() for part in parts)
