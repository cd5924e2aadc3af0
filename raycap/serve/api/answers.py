"""The answers in OpenAI's form, for whoever makes clients from the documentation."""

from typing import Literal

from raycap.config import Config
from raycap.serve.api.schemas import FinishReason


class ChatMessage(Config):
    """What the captioner says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Config):
    """One of the captions."""

    index: int
    message: ChatMessage
    logprobs: None
    finish_reason: FinishReason


class ChatUsage(Config):
    """Tokens; an image is none of text."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(Config):
    """The captions of an image, as a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    """Seconds since 1970."""

    model: str
    system_fingerprint: str
    """Of the models that made it."""

    choices: list[ChatChoice]
    usage: ChatUsage


class Embedding(Config):
    """Of one image after one stage."""

    object: Literal["embedding"]
    index: int
    """The image's, in the request."""

    embedding: list[float] | str
    """Numbers, or base64 of them, little-endian, row after row."""

    stage: Literal["encoder", "refiner"]
    shape: list[int]
    dtype: Literal["float32", "float16"]


class EmbeddingUsage(Config):
    """The images' tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Config):
    """The embeddings of all images."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    model_version: str
    usage: EmbeddingUsage
