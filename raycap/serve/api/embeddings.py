"""POST /v1/embeddings: an image's embeddings before and after the RBM, in OpenAI's form."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from raycap.predictor import Refinement
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
from raycap.serve.stages.pipeline import Encoded, ImageTask, version_name

_POOLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda embeds: embeds.mean(0),
    "cls": lambda embeds: embeds[0],
    "all": lambda embeds: embeds,
}
"""From (N, D) float32; the class token is the first."""


class EmbeddingsBody(RequestConfig):
    """A request for embeddings."""

    input: str | list[str] = Field(min_length=1)
    """An image, or several: base64, data URLs, or http(s) URLs where this server fetches them."""

    model: str | None = None
    """Name of the model, see /v1/models; by default one is drawn by the models' shares of the traffic."""

    encoding_format: Literal["float", "base64"] = "base64"
    """Numbers, or base64 of little-endian numbers of type `dtype`, row after row."""

    dtype: Literal["float32", "float16"] = "float32"
    """Of the numbers. float16 loses nothing but the mean's last bits; OpenAI's clients expect float32."""

    refined: bool | Literal["both"] | None = None
    """After the RBM, before it, or both; by default after it where the model has one."""

    tokens: Literal["mean", "all", "cls"] = "mean"
    """The mean of the image's tokens, all of them, or the class token."""

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
            service.count_images(request, len(images))
            model = service.served.pick(body.model)
            record.model = model.name
            refinement = _refinement(body, model, service)
            embedded = await unless_gone(request, _embed_all(service, record, images, model, refinement))
            return JSONResponse(await asyncio.to_thread(_answer, embedded, body, model, record))

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
) -> list[tuple[Encoded, Encoded]]:
    async def embed(image: ImageInput) -> tuple[Encoded, Encoded]:
        file = await read_file(service, record, image)
        pixels = await load_pixels(service, record, file, model.image_size)
        task = ImageTask(
            pixels, file.digest, model.weights_key, refinement, request_id=record.request_id, trace=record.trace
        )
        with service.readiness.observe():
            before, after = await service.captioner.embed(task)
        record.add_seconds(before.seconds | after.seconds)
        return before, after

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(embed(image)) for image in images]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _answer(
    embedded: list[tuple[Encoded, Encoded]], body: EmbeddingsBody, model: ReadyModel, record: RequestRecord
) -> dict[str, Any]:
    refined = model.served.rbm is not None if body.refined is None else body.refined
    stages = ["encoder", "refiner"] if refined == "both" else ["refiner" if refined else "encoder"]
    entries = []
    for index, (before, after) in enumerate(embedded):
        for stage in stages:
            embeds = (before if stage == "encoder" else after).image_embeds.float().cpu().numpy()
            embedding = _POOLED[body.tokens](embeds).astype(np.dtype(body.dtype).newbyteorder("<"))
            entries.append(
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": _encode(embedding, body.encoding_format),
                    "stage": stage,
                    "shape": list(embedding.shape),
                    "dtype": body.dtype,
                }
            )
    record.version = version_name(embedded[0][0].versions | embedded[0][1].versions)
    num_tokens = sum(len(before.image_embeds) for before, _ in embedded)
    return {
        "object": "list",
        "data": entries,
        "model": model.name,
        "model_version": record.version,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def _encode(embedding: np.ndarray, encoding_format: str) -> str | list[float]:
    if encoding_format == "base64":
        return base64.b64encode(embedding.tobytes()).decode()
    numbers: list[float] = embedding.ravel().tolist()
    return numbers
