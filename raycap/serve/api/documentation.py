"""What OpenAPI tells of bodies and answers that FastAPI cannot see."""

from typing import Any

from raycap.config import Config
from raycap.serve.api.answers import ChatCompletion, EmbeddingList
from raycap.serve.api.chat_schemas import NEUTRAL, WITHOUT_EFFECT, ChatBody
from raycap.serve.api.options import CaptionOptions, StreamedOptions
from raycap.serve.api.schemas import CaptionBody, CaptionsBody
from raycap.serve.errors import ErrorResponse

# A whole file, red and of one pixel: what is copied out of the documentation is answered.
_IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mO4pKsLAAMBAS0CuUoAAAAAAElFTkSuQmCC"
)

_STATUSES = {
    400: ("malformed_request", "num_beams = 'x': Input should be a valid integer; /docs shows what each field takes"),
    401: ("missing_key", "authorization: no key; send the header `Authorization: Bearer KEY`"),
    404: ("unknown_model", "model = 'blip2': not served here; choose one of blip, blip-rbm, or leave it out"),
    413: ("image_too_large", "file: more than 20971520 bytes; send a smaller image"),
    415: ("unsupported_content_type", "content-type = text/plain: not supported; send application/json"),
    422: (
        "undecodable_image",
        "file: the file is empty or none of JPEG, PNG, WEBP, GIF, BMP, TIFF; send a whole JPEG, PNG or WebP file",
    ),
    431: ("headers_too_large", "headers: 50050 bytes with path and query; send at most 32768"),
    429: ("rate_limited", "more than 60 images a minute (or 10 at once); try again in 3 seconds"),
    500: ("internal_error", "the server failed on this request; its log says why"),
    503: ("overloaded", "the server has too much to do; try again in 1 s"),
    504: ("timeout", "the request took too long and was cancelled; send fewer or smaller images, or try again later"),
}
_DESCRIPTIONS = {
    400: "Malformed, beyond the limits, or options that contradict each other.",
    401: "No key, or an unknown one, where keys are asked for.",
    404: "No such model.",
    413: "Too many bytes or pixels.",
    415: "Another content type than those named here.",
    422: "An image that cannot be decoded, or not in time.",
    429: "Too many images of this client; Retry-After says when there may be more.",
    431: "Headers, path and query too long.",
    500: "Our own failure.",
    503: "Too much to do, or nothing loaded yet; Retry-After says when to try again.",
    504: "Not answered in time; the work was cancelled.",
}

_SECURITY_SCHEMES = {
    "HTTPBearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key that the operator gave you; not needed where the operator asks for none.",
    }
}

_HEADERS = {
    "X-Request-ID": {
        "description": "The client's own, or a new one; the server's log has it too.",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    },
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
}


def _error_example(status: int, kind: str, message: str) -> dict[str, Any]:
    field = message.partition(" ")[0].rstrip(":") if status in (400, 401, 404, 413, 415, 422) else None
    detail = {"type": kind, "message": message, "field": field, "request_id": "4f1c9d", "param": field, "code": kind}
    return {"error": detail}


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description} for status, description in _DESCRIPTIONS.items()
}

NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"model": ErrorResponse, "description": "Not ready; `message` says why."}
}

_VERSION = "0f3a9c1e+77c1d204+b9e05f63"
_CAPTION = {
    "id": "4f1c9d",
    "caption": "a red circle",
    "captions": [{"text": "a red circle", "log_probability": -1.37, "finish_reason": "stop"}],
    "model": "blip-rbm",
    "model_version": _VERSION,
    "refinement": {"gate": 0.5, "passes": 1},
    "finish_reason": "stop",
    "usage": {"completion_tokens": 4},
    "timing_ms": {"encode": 8.4, "refine": 0.6, "decode": 21.9},
    "attention": None,
}
_MODEL = {
    "id": "blip-rbm",
    "object": "model",
    "created": 0,
    "owned_by": "raycap",
    "kind": "blip",
    "refined": True,
    "image_size": 384,
    "gate": 0.5,
    "passes": 1,
    "traffic": 1.0,
}
_FAILED = _error_example(422, "undecodable_image", f"images.1: {_STATUSES[422][1].removeprefix('file: ')}")
_ANSWERS: dict[str, Any] = {
    "caption": _CAPTION,
    "captions": {"results": [_CAPTION | {"id": "4f1c9d-0"}, _FAILED]},
    "chat": {
        "id": "chatcmpl-4f1c9d",
        "object": "chat.completion",
        "created": 1750000000,
        "model": "blip-rbm",
        "system_fingerprint": _VERSION,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a red circle", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 0, "completion_tokens": 4, "total_tokens": 4},
    },
    "embeddings": {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": 0,
                "embedding": [0.12, -0.5],
                "stage": "refiner",
                "shape": [2],
                "dtype": "float32",
            }
        ],
        "model": "blip-rbm",
        "model_version": "0f3a9c1e+77c1d204",
        "usage": {"prompt_tokens": 577, "total_tokens": 577},
    },
    "list_models": {"object": "list", "data": [_MODEL]},
    "show_model": _MODEL,
}
_ERROR_EXAMPLES = {str(status): _error_example(status, *told) for status, told in _STATUSES.items()}
_NOT_READY_EXAMPLE = _error_example(503, "not_ready", "not ready: draining; send requests elsewhere")
# Of each operation's answers in JSON, by status.
_EXAMPLES: dict[str, dict[str, Any]] = {
    **{operation: _ERROR_EXAMPLES | {"200": answer} for operation, answer in _ANSWERS.items()},
    "healthz": {"200": {"status": "ok"}},
    "readyz": {"200": {"status": "ready"}, "503": _NOT_READY_EXAMPLE},
}

# Events have no schema: whether it is of the whole stream or of each event, those who read the document do not agree.
CAPTION_RESPONSES: dict[int | str, dict[str, Any]] = ERRORS | {
    200: {
        "description": "The caption; with `stream`, events.",
        "content": {
            "text/event-stream": {
                "example": 'data: {"delta": "a red "}\n\ndata: {"caption": "a red circle"}\n\ndata: [DONE]\n\n',
            }
        },
    }
}

CHAT_RESPONSES: dict[int | str, dict[str, Any]] = ERRORS | {
    200: {
        "model": ChatCompletion,
        "description": "A chat.completion; with `stream`, events of chat.completion.chunk.",
        "content": {
            "text/event-stream": {"example": 'data: {"object": "chat.completion.chunk"}\n\ndata: [DONE]\n\n'},
        },
    }
}

EMBEDDINGS_RESPONSES: dict[int | str, dict[str, Any]] = ERRORS | {
    200: {"model": EmbeddingList, "description": "A list of embeddings."}
}

EMBEDDINGS_EXAMPLE = {"input": [_IMAGE], "encoding_format": "float", "tokens": "mean"}


def json_body(config_class: type[Config], example: dict[str, Any]) -> dict[str, Any]:
    """A body in JSON only."""
    return _body({"application/json": {"schema": _schema(config_class), "example": example}})


def caption_body() -> dict[str, Any]:
    """Of /v1/caption."""
    binary = {"schema": {"type": "string", "format": "binary"}, "example": "(the bytes of a JPEG, PNG or WebP file)"}
    extra = _body(
        {
            "multipart/form-data": _form(StreamedOptions, {"file": _FILE}, {"file": "photo.jpg", "num_beams": 3}),
            "application/json": {"schema": _schema(CaptionBody), "example": {"image": _IMAGE, "num_beams": 3}},
            "image/*": binary,
            "application/octet-stream": binary,
        }
    )
    properties = _as_text(_schema(StreamedOptions))["properties"]
    extra["parameters"] = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            "description": f"With a raw body only: {schema.get('description', name)}",
        }
        for name, schema in properties.items()
    ]
    return extra


def captions_body() -> dict[str, Any]:
    """Of /v1/captions."""
    files = {"type": "array", "items": _FILE, "minItems": 1}
    example = {"files": ["a.jpg", "b.jpg"], "num_beams": 3}
    return _body(
        {
            "multipart/form-data": _form(CaptionOptions, {"files": files}, example),
            "application/json": {"schema": _schema(CaptionsBody), "example": {"images": [_IMAGE, _IMAGE]}},
        }
    )


def chat_body() -> dict[str, Any]:
    """Of /v1/chat/completions."""
    content = [
        {"type": "text", "text": "What is in this picture?"},
        {"type": "image_url", "image_url": {"url": _IMAGE}},
    ]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "a picture of"}]
    schema = _schema(ChatBody)
    inert: dict[str, Any] = {
        name: {
            "anyOf": [*map(_exactly, neutral), {"type": "null"}],
            "description": "OpenAI's; does not apply to a captioner: anything but what asks for nothing is refused.",
        }
        for name, neutral in NEUTRAL.items()
    }
    inert |= {name: {"description": "OpenAI's; accepted and without effect."} for name in sorted(WITHOUT_EFFECT)}
    schema["properties"] |= inert
    return _body({"application/json": {"schema": schema, "example": {"messages": messages, "max_tokens": 10}}})


def complete(document: dict[str, Any]) -> None:
    """Add to FastAPI's document what holds for many routes, headers and keys, and examples: FastAPI would leave out
    what is null in them.

    Args:
        document: changed in place.
    """
    document["components"] |= {"securitySchemes": _SECURITY_SCHEMES, "headers": _HEADERS}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                response["content"]["application/json"]["example"] = _EXAMPLES[operation["operationId"]][status]
                names = ("X-Request-ID", "Retry-After") if status in ("429", "503") else ("X-Request-ID",)
                response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
            if path.startswith("/v1/"):
                # The second: none, where the operator asks for no key.
                operation["security"] = [{"HTTPBearer": []}, {}]


_FILE = {"type": "string", "format": "binary", "description": "The image file."}


def _form(options: type[Config], files: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    schema = _as_text(_schema(options))
    return {
        "schema": schema | {"properties": files | schema["properties"], "required": list(files)},
        "example": example,
    }


def _as_text(schema: dict[str, Any]) -> dict[str, Any]:
    """Of a form or a query: text has no null, what is not wanted is left out."""
    properties = {}
    for name, of_option in schema["properties"].items():
        kinds = [kind for kind in of_option.get("anyOf", []) if kind != {"type": "null"}]
        rest = {key: value for key, value in of_option.items() if key != "anyOf" and (key, value) != ("default", None)}
        properties[name] = rest | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {})
    return schema | {"properties": properties}


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


def _schema(config_class: type[Config]) -> dict[str, Any]:
    """Without references: OpenAPI would look for them elsewhere than where they are."""
    schema = config_class.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return inline(definitions[node["$ref"].rpartition("/")[2]])
            return {key: inline(value) for key, value in node.items()}
        return [inline(item) for item in node] if isinstance(node, list) else node

    inlined: dict[str, Any] = inline(schema)
    return inlined


def _exactly(value: Any) -> dict[str, Any]:
    """What fits this value and no other; without `const` and untyped `enum`, at which makers of clients fail."""
    if isinstance(value, dict):
        properties = {name: _exactly(item) for name, item in value.items()}
        return {"type": "object", "properties": properties, "required": list(value), "additionalProperties": False}
    if isinstance(value, list):
        items = {"anyOf": [_exactly(item) for item in value]} if value else {}
        return {"type": "array", "items": items, "minItems": len(value), "maxItems": len(value)}
    if isinstance(value, (bool, str)):
        return {"type": "boolean" if isinstance(value, bool) else "string", "enum": [value]}
    return {"type": "number", "minimum": value, "maximum": value}
