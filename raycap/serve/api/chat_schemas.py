"""What /v1/chat/completions takes: OpenAI's form, as far as it applies to a captioner."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from raycap.models.decoding import Decoding
from raycap.serve.api.images import ImageInput
from raycap.serve.api.options import CaptionOptions, RequestConfig, parse
from raycap.serve.errors import RequestError

# Of OpenAI's fields those that do not apply, each with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "web_search_options": (),
}

# Of what a captioner does they change nothing, whatever they say.
WITHOUT_EFFECT = frozenset(
    {"metadata", "prompt_cache_retention", "reasoning_effort", "service_tier", "store", "verbosity"}
)

# OpenAI's own, where a request for several choices names none.
_TEMPERATURE = 1.0

_ROLES = ("system", "developer", "user", "assistant")

# Where an option has another name here.
OPTION_NAMES = {"num_captions": "n", "prompt": "messages"}


class StreamOptions(RequestConfig):
    """Of a streamed answer."""

    include_usage: bool = False
    """Whether one more chunk tells the number of tokens."""

    include_obfuscation: bool = False
    """Accepted and without effect: chunks are never padded."""


class ChatBody(RequestConfig):
    """A request for a caption in the form of a chat."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    """The last user message that has an image (one `image_url` part: data URL, or http(s) URL where this server fetches
    them) says what is captioned; images before it are history. A captioner follows no instructions: texts of system and
    user messages are ignored. Only an assistant message at the end has an effect: it is the text that the caption
    continues, and stands in the answer."""

    model: str | None = None
    """Name of the model, see /v1/models; by default one is drawn by the models' shares of the traffic."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Longest caption, in tokens; more than this server allows is as much as it allows."""

    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The same under its newer name."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    """Switches sampling on; 0 switches it off."""

    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus of sampling; switches it on."""

    n: int | None = Field(default=None, ge=1)
    """Captions, the best first. Where the model's own search finds fewer they are drawn at temperature 1."""

    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """Of sampling: the same seed draws the same captions."""

    stream: bool | None = None
    """Whether the caption is sent as it is written, as server-sent events."""

    stream_options: StreamOptions | None = None

    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    """Captions have one line: what contains a line break ends none, anything else is refused."""

    user: str | None = None
    """Accepted and without effect, as are safety_identifier and prompt_cache_key."""

    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    gate: float | None = Field(default=None, ge=0, le=1)
    """raycap's own: share of the RBM's reconstruction; 0 is plain BLIP."""

    passes: int | None = Field(default=None, ge=1)
    """raycap's own: through the RBM."""

    num_beams: int | None = Field(default=None, ge=1)
    """raycap's own: of beam search; not with temperature or top_p."""


def parse_chat(values: Mapping[str, Any], max_new_tokens: int) -> tuple[ChatBody, ImageInput, CaptionOptions]:
    """Read a request.

    Args:
        max_new_tokens: the longest caption that may be asked for.

    Returns:
        the request without its messages, its image, and what its fields say in the captioner's terms.

    Raises:
        RequestError: 400.
    """
    for name, neutral in NEUTRAL.items():
        value = values.get(name)
        if value is not None and value not in neutral:
            message = f"{name} = {repr(value)[:80]}: does not apply to a captioner; leave it out"
            raise RequestError(400, "unsupported_field", message, name)
    left_out = NEUTRAL.keys() | WITHOUT_EFFECT
    body = parse(ChatBody, {name: value for name, value in values.items() if name not in left_out})
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if not all("\n" in stop for stop in stops):
        message = f"stop = {repr(body.stop)[:80]}: a caption ends by itself; leave it out, or set max_tokens"
        raise RequestError(400, "unsupported_field", message, "stop")
    if body.stream_options is not None and not body.stream:
        raise RequestError.malformed("stream_options: given without stream; set stream to true", "stream_options")
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        message = f"max_tokens = {body.max_tokens}: differs from max_completion_tokens; give one of them"
        raise RequestError.malformed(message, "max_tokens")
    image, prompt = _read_messages(body.messages)
    longest = body.max_completion_tokens or body.max_tokens
    options = CaptionOptions(
        model=body.model,
        num_captions=body.n,
        num_beams=body.num_beams,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=None if body.seed is None else body.seed % 2**63,
        max_new_tokens=None if longest is None else min(longest, max_new_tokens),
        prompt=prompt,
        gate=body.gate,
        passes=body.passes,
    )
    return body.model_copy(update={"messages": []}), image, options


def with_choices(options: CaptionOptions, decoding: Decoding) -> CaptionOptions:
    """As OpenAI's models draw their choices: where nothing is said of the search, and the model's own finds fewer."""
    if (options.num_captions or 1) <= decoding.num_beams or decoding.do_sample:
        return options
    if (options.num_beams, options.temperature, options.top_p) != (None, None, None):
        return options
    return options.model_copy(update={"temperature": _TEMPERATURE})


def _read_messages(messages: list[dict[str, Any]]) -> tuple[ImageInput, str | None]:
    """The image, and the text that the caption continues."""
    images: list[list[ImageInput]] = []
    for index, message in enumerate(messages):
        role = message.get("role")
        if role not in _ROLES:
            raise _wrong(
                f"messages.{index}.role", f"= {repr(role)[:40]}: not one of {', '.join(_ROLES)}; use one of them"
            )
        images.append(_read_images(f"messages.{index}.content", message.get("content"), role))
    shown = [of_message for of_message in images if of_message]
    if not shown:
        raise _wrong("messages", ": no image; give the last user message an image_url part")
    if len(shown[-1]) > 1:
        raise _wrong("messages", f": {len(shown[-1])} images; send one, or all of them to /v1/captions")
    last = messages[-1]
    prompt = _text(last["content"]) if last["role"] == "assistant" else None
    return shown[-1][0], prompt


def _read_images(field: str, content: Any, role: str) -> list[ImageInput]:
    """Check a message's content, a text or a list of parts."""
    if isinstance(content, str) or (content is None and role == "assistant"):
        return []
    if not isinstance(content, list):
        raise _wrong(field, f": a {type(content).__name__}; give a text or a list of parts")
    images = []
    for index, part in enumerate(content):
        where = f"{field}.{index}"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            continue
        if kind != "image_url":
            raise _wrong(where, ": neither a text part nor an image_url part; leave it out")
        if role != "user":
            raise _wrong(where, f": an image in a message of role {role}; put it into the last user message")
        url = part["image_url"].get("url") if isinstance(part.get("image_url"), dict) else None
        if not isinstance(url, str) or not url:
            raise _wrong(
                where, ': no URL; write {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'
            )
        images.append(ImageInput(f"{where}.image_url", url))
    return images


def _text(content: str | list[dict[str, Any]] | None) -> str | None:
    """An assistant's message has texts only."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content


def _wrong(field: str, reason: str) -> RequestError:
    return RequestError.malformed(f"{field}{' ' if reason[0] == '=' else ''}{reason}", field)
