"""POST /v1/chat/completions: captions for clients made for OpenAI's API.

The form is that of https://platform.openai.com/docs/api-reference/chat.
"""

import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from raycap.serve.api import documentation
from raycap.serve.api.bodies import BodyLimit, read_json
from raycap.serve.api.captioning import Answer, caption_image, stream_caption
from raycap.serve.api.chat_schemas import OPTION_NAMES, parse_chat, with_choices
from raycap.serve.api.options import make_plan
from raycap.serve.api.patience import unless_gone, within_deadline
from raycap.serve.api.schemas import FinishReason, finish_reason
from raycap.serve.api.service import Service
from raycap.serve.api.sse import stream_events
from raycap.serve.stages.pipeline import Captioned


def chat_routes(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["OpenAI-compatible"])

    @routes.post(
        "/v1/chat/completions",
        response_class=JSONResponse,
        responses=documentation.CHAT_RESPONSES,
        openapi_extra=documentation.chat_body(),
    )
    async def chat(request: Request) -> Any:
        """Caption the last image of a user message, for clients of OpenAI's API. A captioner follows no instructions:
        texts of system and user messages are ignored. An assistant message at the end is the text that the caption
        continues; it stands in the answer."""
        record = service.admit(request)
        async with within_deadline(request):
            limit = BodyLimit.of_one(service.limits, "messages", in_base64=True)
            body, image, options = parse_chat(await read_json(request, limit), service.limits.max_new_tokens)
            model = service.served.pick(options.model)
            record.model = model.name
            plan = make_plan(with_choices(options, model.served.decoding), model, service.limits, OPTION_NAMES)
        head = {"id": f"chatcmpl-{record.request_id}", "created": int(time.time()), "model": model.name}
        if body.stream:
            items = stream_caption(service, record, image, plan, explain=False)
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            return await stream_events(request, _chunks(items, head, include_usage))
        async with within_deadline(request):
            answer = await unless_gone(request, caption_image(service, record, image, plan, explain=False))
        return _completion(head, answer.captioned)

    return routes


def _completion(head: dict[str, Any], captioned: Captioned) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": caption, "refusal": None},
            "logprobs": None,
            "finish_reason": finish_reason(finished),
        }
        for index, (caption, finished) in enumerate(zip(captioned.captions, captioned.finished, strict=True))
    ]
    return head | {
        "object": "chat.completion",
        "system_fingerprint": captioned.version,
        "choices": choices,
        "usage": _usage(captioned),
    }


async def _chunks(
    items: AsyncGenerator[str | Answer, None], head: dict[str, Any], include_usage: bool
) -> AsyncGenerator[dict[str, Any], None]:
    def chunk(index: int, delta: dict[str, Any], reason: FinishReason | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if include_usage else {}
        return head | {"object": "chat.completion.chunk", "choices": [choice]} | usage

    has_pieces = False
    try:
        async for item in items:
            if isinstance(item, str):
                # Not before the first piece: until then an error can still have its own status.
                if not has_pieces:
                    yield chunk(0, {"role": "assistant", "content": ""})
                has_pieces = True
                yield chunk(0, {"content": item})
                continue
            captioned = item.captioned
            # Of several captions none comes in pieces, and a search may find fewer than were asked for.
            if not has_pieces:
                for index, caption in enumerate(captioned.captions):
                    yield chunk(index, {"role": "assistant", "content": ""})
                    yield chunk(index, {"content": caption})
            head |= {"system_fingerprint": captioned.version}
            for index, finished in enumerate(captioned.finished):
                yield chunk(index, {}, finish_reason(finished))
            if include_usage:
                yield head | {"object": "chat.completion.chunk", "choices": [], "usage": _usage(captioned)}
    finally:
        await items.aclose()


def _usage(captioned: Captioned) -> dict[str, int]:
    # An image is no tokens of text.
    return {"prompt_tokens": 0, "completion_tokens": captioned.num_tokens, "total_tokens": captioned.num_tokens}
