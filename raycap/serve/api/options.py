"""What a request may ask of a caption, and what that means for the model that answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from raycap.config import Config, error_lines
from raycap.errors import UserError
from raycap.models.decoding import Decoding
from raycap.models.refinement import Refinement
from raycap.serve.api.served import ReadyModel
from raycap.serve.errors import RequestError
from raycap.serve.guard.limits import Limits


class RequestConfig(Config):
    """Part of a request: numbers are not booleans, nor strings numbers, and every number is finite."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


DECODING_OPTIONS = frozenset({"num_beams", "temperature", "top_p", "seed", "max_new_tokens", "prompt"})
"""Those that take the place of the model's own decoding, under the same names."""

# Of a request's fields, and of its errors that an answer names: a hostile one must not be answered by megabytes.
_MAX_NAME_CHARACTERS = 64
_MAX_ERRORS = 5

RequestT = TypeVar("RequestT", bound=RequestConfig)


class CaptionOptions(RequestConfig):
    """Options of a caption; what is left out is as the model's operator set it."""

    model: str | None = Field(default=None, examples=["blip-rbm"])
    """Name of the model, see /v1/models; by default one is drawn by the models' shares of the traffic."""

    num_captions: int | None = Field(default=None, ge=1)
    """Captions of each image, the best first: the best of a beam search, or as many draws."""

    num_beams: int | None = Field(default=None, ge=1)
    """Of beam search; 1 is greedy. Not with temperature or top_p."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    """Switches sampling on; 0 switches it off."""

    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus of sampling; switches it on."""

    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Of sampling: the same seed draws the same captions."""

    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest caption, in tokens."""

    prompt: str | None = None
    """Text the caption continues; it stands in the caption. Not of an LSTM captioner."""

    gate: float | None = Field(default=None, ge=0, le=1)
    """Share of the RBM's reconstruction in the image's embeddings; 0 is the model alone."""

    passes: int | None = Field(default=None, ge=1)
    """Through the RBM."""

    explain: bool = False
    """Whether to show where the decoder looked for each word of the first caption; of one image only."""


class StreamedOptions(CaptionOptions):
    """Options of a caption that may come piece by piece."""

    stream: bool = False
    """Whether the caption is sent as it is written, as server-sent events."""


@dataclass(frozen=True)
class Plan:
    """How each image of a request is captioned."""

    model: ReadyModel
    refinement: Refinement
    decoding: Decoding
    num_captions: int


def parse(config_class: type[RequestT], values: Mapping[str, Any], are_strings: bool = False) -> RequestT:
    """Validate a request's fields.

    Args:
        are_strings: whether they come from a form or a query, where every value is a string.

    Raises:
        RequestError: 400, one line with the first errors.
    """
    if long := [name for name in values if len(name) > _MAX_NAME_CHARACTERS]:
        name = long[0][:_MAX_NAME_CHARACTERS]
        raise RequestError.malformed(f"{name}...: unknown field; /docs shows the fields", name)
    try:
        return config_class.model_validate_strings(values) if are_strings else config_class.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else None
        lines = "; ".join(error_lines(config_class, error, _MAX_ERRORS))
        raise RequestError.malformed(f"{lines}; /docs shows what each field takes", field) from None


def make_plan(options: CaptionOptions, model: ReadyModel, limits: Limits, names: Mapping[str, str] = {}) -> Plan:
    """The model's own settings, and in their place what the request asks for.

    Args:
        names: of the options in the request, where they are others.

    Raises:
        RequestError: 400, beyond the limits, or options that contradict each other or the model.
    """

    def refuse(option: str, reason: str) -> RequestError:
        name = names.get(option, option)
        value = repr(getattr(options, option))
        value = value if len(value) <= 80 else f"{value[:77]}..."
        return RequestError(400, "invalid_option", f"{name} = {value}: {reason}", name)

    def called(option: str) -> str:
        return names.get(option, option)

    _check_limits(options, limits, refuse)
    if options.num_beams is not None and options.num_beams > 1 and options.temperature != 0:
        for sampling in ("temperature", "top_p"):
            if getattr(options, sampling) is not None:
                raise refuse(sampling, f"sampling has no beams; leave it out, or num_beams ({options.num_beams})")
    decoding = _decoding(options, model.served.decoding)
    if options.prompt and model.shape.kind == "lstm_captioner":
        raise refuse("prompt", f"model {model.name} is an LSTM captioner and continues no text; leave it out")
    refinement = choose_refinement(options.gate, options.passes, model)
    num_captions = options.num_captions or 1
    if not (decoding.do_sample and decoding.num_beams == 1) and num_captions > decoding.num_beams:
        raise refuse(
            "num_captions",
            f"a search with num_beams = {decoding.num_beams} finds no more; set num_beams to at least {num_captions}, "
            f"or sample with {called('temperature')}",
        )
    if model.served.rerank is not None:
        _check_rerank(num_captions, decoding, model, refuse)
    return Plan(model, refinement, decoding, num_captions)


def choose_refinement(gate: float | None, passes: int | None, model: ReadyModel) -> Refinement:
    """The model's own refinement, and in its place what the request asks for.

    Raises:
        RequestError: 400, the model has no RBM.
    """
    if model.served.rbm is None:
        for name, value, neutral in (("gate", gate, 0), ("passes", passes, 1)):
            if value not in (None, neutral):
                message = f"{name} = {value}: model {model.name} has no RBM; leave it out, or choose another model"
                raise RequestError(400, "invalid_option", message, name)
        return Refinement(gate=0)
    given = {"gate": gate, "passes": passes}
    return model.served.refinement.model_copy(update={name: v for name, v in given.items() if v is not None})


def _check_limits(options: CaptionOptions, limits: Limits, refuse: Any) -> None:
    most = {
        "num_captions": limits.max_captions,
        "num_beams": limits.max_beams,
        "max_new_tokens": limits.max_new_tokens,
        "passes": limits.max_passes,
    }
    for option, limit in most.items():
        value = getattr(options, option)
        if value is not None and value > limit:
            raise refuse(option, f"more than this server allows; set at most {limit}")
    if options.prompt is not None and len(options.prompt) > limits.max_prompt_characters:
        raise refuse("prompt", f"too long; give at most {limits.max_prompt_characters} characters")


def _decoding(options: CaptionOptions, decoding: Decoding) -> Decoding:
    given = options.model_dump(include=set(DECODING_OPTIONS), exclude_none=True)
    if options.temperature == 0:
        del given["temperature"]
        given["do_sample"] = False
    elif options.temperature is not None or options.top_p is not None:
        # The model's own search may have beams, which the request says nothing of.
        given |= {"do_sample": True, "num_beams": 1}
    elif options.num_beams is not None and options.num_beams > 1:
        given["do_sample"] = False
    return decoding.model_copy(update=given)


def _check_rerank(num_captions: int, decoding: Decoding, model: ReadyModel, refuse: Any) -> None:
    rerank = model.served.rerank
    assert rerank is not None  # the caller's condition
    if num_captions > rerank.num_candidates:
        raise refuse("num_captions", f"model {model.name} chooses among {rerank.num_candidates}; set at most that")
    try:
        rerank.require_candidates(decoding)
    except UserError as error:
        line = str(error).removeprefix("decoding.")
        raise RequestError(400, "invalid_option", line, line.partition(" ")[0]) from None
