"""POST /v1/caption and /v1/captions."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from raycap.serve.api import documentation
from raycap.serve.api.attention import draw_attention
from raycap.serve.api.bodies import (
    REMEDY,
    BodyLimit,
    Form,
    content_type,
    read_form,
    read_json,
    read_raw,
    too_many_images,
    unsupported_content_type,
)
from raycap.serve.api.captioning import Answer, caption_image, stream_caption
from raycap.serve.api.errors import error_body
from raycap.serve.api.images import ImageInput
from raycap.serve.api.options import CaptionOptions, Plan, StreamedOptions, make_plan, parse
from raycap.serve.api.patience import unless_gone, within_deadline
from raycap.serve.api.record import RequestRecord
from raycap.serve.api.schemas import (
    AttentionPictures,
    CaptionBody,
    CaptionResponse,
    CaptionsBody,
    CaptionsResponse,
    ImageFailed,
    RefinementUsed,
    ScoredCaption,
    Usage,
    finish_reason,
)
from raycap.serve.api.service import Service
from raycap.serve.api.sse import stream_events
from raycap.serve.errors import RequestError
from raycap.serve.guard.limits import Limits


def caption_routes(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["captions"])

    # Bodies are read under the limits, and so documented by hand.
    @routes.post(
        "/v1/caption",
        response_model=CaptionResponse,
        responses=documentation.CAPTION_RESPONSES,
        openapi_extra=documentation.caption_body(),
    )
    async def caption(request: Request) -> Any:
        """Caption an image. With `stream`, events: `{"delta": "..."}` for each piece, then this response, then
        `[DONE]`; an error after the start is an event `error`."""
        record = service.admit(request)
        async with within_deadline(request):
            image, options = await _read_one(request, service.limits)
            plan = _plan(service, record, options)
        if options.stream:
            return await stream_events(request, _messages(service, record, image, plan, options.explain))
        async with within_deadline(request):
            work = _respond(service, record, image, plan, options.explain, record.request_id)
            return _as_json(await unless_gone(request, work))

    @routes.post(
        "/v1/captions",
        response_model=CaptionsResponse,
        responses=documentation.ERRORS,
        openapi_extra=documentation.captions_body(),
    )
    async def captions(request: Request) -> Any:
        """Caption several images, all at once. One that cannot be captioned has an error in its place; wrong options
        are an error of the whole request. `explain` is for one image only: its pictures are megabytes."""
        record = service.admit(request, None)
        async with within_deadline(request):
            images, options = await _read_several(request, service.limits)
            if options.explain and len(images) > 1:
                message = f"explain = true: {len(images)} images; send one, or each by itself to /v1/caption"
                raise RequestError(400, "invalid_option", message, "explain")
            plan = _plan(service, record, options)
            service.count_images(request, len(images))
            results = await unless_gone(request, _caption_all(service, record, images, plan, options.explain))
            return _as_json(CaptionsResponse(results=results))

    return routes


async def _read_one(request: Request, limits: Limits) -> tuple[ImageInput, StreamedOptions]:
    kind = content_type(request)
    if kind == "application/json":
        body = parse(CaptionBody, await read_json(request, BodyLimit.of_one(limits, "image", in_base64=True)))
        return ImageInput("image", body.image), body.model_copy(update={"image": ""})
    if kind == "multipart/form-data":
        form = await read_form(request, BodyLimit.of_one(limits, "file", in_base64=False), "file", 1)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        form = await read_raw(request, BodyLimit.of_one(limits, "body", in_base64=False))
    else:
        raise unsupported_content_type(request, REMEDY)
    return form.images[0], parse(StreamedOptions, form.options, are_strings=True)


async def _read_several(request: Request, limits: Limits) -> tuple[list[ImageInput], CaptionOptions]:
    kind, limit = content_type(request), BodyLimit.of_several(limits)
    if kind == "multipart/form-data":
        form: Form = await read_form(request, limit, "files", limits.max_images)
        return form.images, parse(CaptionOptions, form.options, are_strings=True)
    if kind != "application/json":
        remedy = "send multipart/form-data with images in field `files`, or application/json with base64 in `images`"
        raise unsupported_content_type(request, remedy)
    body = parse(CaptionsBody, await read_json(request, limit))
    if len(body.images) > limits.max_images:
        raise too_many_images("images", len(body.images), limits.max_images)
    images = [ImageInput(f"images.{index}", image) for index, image in enumerate(body.images)]
    return images, body.model_copy(update={"images": []})


def _plan(service: Service, record: RequestRecord, options: CaptionOptions) -> Plan:
    model = service.served.pick(options.model)
    record.model = model.name
    return make_plan(options, model, service.limits)


async def _caption_all(
    service: Service, record: RequestRecord, images: list[ImageInput], plan: Plan, explain: bool
) -> list[CaptionResponse | ImageFailed]:
    async def caption_one(index: int, image: ImageInput) -> CaptionResponse | ImageFailed:
        try:
            return await _respond(service, record, image, plan, explain, f"{record.request_id}-{index}")
        except RequestError as error:
            return ImageFailed(error=error_body(error, record.request_id).error)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(caption_one(index, image)) for index, image in enumerate(images)]
    except ExceptionGroup as failed:
        # What is no fault of an image fails the request; the first tells why, the others were cancelled.
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def _messages(
    service: Service, record: RequestRecord, image: ImageInput, plan: Plan, explain: bool
) -> AsyncGenerator[Any, None]:
    items = stream_caption(service, record, image, plan, explain)
    try:
        async for item in items:
            if isinstance(item, Answer):
                yield await _response(service, item, plan, record.request_id)
            else:
                yield {"delta": item}
    finally:
        await items.aclose()


async def _respond(
    service: Service, record: RequestRecord, image: ImageInput, plan: Plan, explain: bool, response_id: str
) -> CaptionResponse:
    answer = await caption_image(service, record, image, plan, explain)
    return await _response(service, answer, plan, response_id)


async def _response(service: Service, answer: Answer, plan: Plan, response_id: str) -> CaptionResponse:
    captioned = answer.captioned
    pictures: AttentionPictures | None = None
    if captioned.attention is not None and answer.pixels is not None:
        pixels, attention = answer.pixels, captioned.attention
        pictures = await service.images.threads.run(lambda: draw_attention(pixels, attention))
    scored = zip(captioned.captions, captioned.log_probabilities, captioned.finished, strict=True)
    return CaptionResponse(
        id=response_id,
        caption=captioned.captions[0],
        captions=[
            ScoredCaption(text=text, log_probability=log_probability, finish_reason=finish_reason(finished))
            for text, log_probability, finished in scored
        ],
        model=plan.model.name,
        model_version=captioned.version,
        refinement=RefinementUsed(gate=plan.refinement.gate, passes=plan.refinement.passes),
        finish_reason=finish_reason(captioned.finished[0]),
        usage=Usage(completion_tokens=captioned.num_tokens),
        timing_ms={stage: round(1000 * seconds, 2) for stage, seconds in captioned.seconds.items()},
        attention=pictures,
    )


def _as_json(response: CaptionResponse | CaptionsResponse) -> Response:
    # Validated when it was made: FastAPI need not do so again.
    return Response(response.model_dump_json(), media_type="application/json")
