"""The models an application serves: what a request may name, and what the stages load for it."""

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import Field, field_validator, model_validator
from ray import serve
from ray.serve.exceptions import RayServeException

from raycap import storage
from raycap.checkpoint.captioner_shape import CaptionerShape, read_captioner_shape
from raycap.checkpoint.directory import absolute_source
from raycap.config import Config
from raycap.errors import UserError
from raycap.hardware import Precision
from raycap.models.decoding import Decoding
from raycap.models.refinement import Refinement
from raycap.rerank import Rerank

LoadedT = TypeVar("LoadedT")

# Headers bear it, which take no other characters.
_MODEL_NAME = re.compile("[!-~]{1,64}")


class Weights(Config):
    """Everything a stage loads for a model. Its key travels with each request, so that a request meets the same
    weights in every stage, also while a deployment changes from one model to another."""

    model: str
    """BLIP or an LSTM captioner: a directory, an s3:// prefix or, of a BLIP, a hub name."""

    rbm: str | None = None
    """RBM refiner trained on this BLIP's embeddings: a directory or an s3:// prefix. Without it, the model alone."""

    rerank: Rerank | None = None
    """How BLIP's decoder chooses among candidate captions; without it, the search's own best."""

    precision: Precision = Precision.AUTO
    """Of the model's weights; between the stages embeddings are float16 in any case."""

    version: str | None = None
    """A name for these weights; change it when the files behind the same path have changed."""

    @property
    def key(self) -> str:
        return self.model_dump_json()

    @classmethod
    def from_key(cls, key: str) -> "Weights":
        return _parsed(key)

    def read_shape(self, prefix: str = "") -> CaptionerShape:
        """What the model's files say of it; it may block.

        Args:
            prefix: of these settings' names, for errors.

        Raises:
            UserError: there is no such model, or one that takes no RBM is given one.
        """
        shape = read_captioner_shape(self.model, f"{prefix}model")
        for name in ("rbm", "rerank"):
            if shape.kind == "lstm_captioner" and getattr(self, name) is not None:
                raise UserError(f"{prefix}{name}: {self.model} is an LSTM captioner, which takes none; leave it out")
        return shape


@functools.lru_cache(maxsize=64)
def _parsed(key: str) -> Weights:
    # Every request brings its key to every stage.
    return Weights.model_validate_json(key)


class ServedModel(Weights):
    """A model under the name that requests give, with what they leave open."""

    refinement: Refinement = Refinement()
    decoding: Decoding = Decoding()

    traffic: float = Field(default=1.0, ge=0)
    """Weight among the models when a request names none; 0 answers only requests that name it."""

    @property
    def weights(self) -> Weights:
        return Weights.model_validate(self.model_dump(include=set(Weights.model_fields)))

    @model_validator(mode="after")
    def _search_gives_candidates(self) -> "ServedModel":
        if self.rerank is not None:
            try:
                self.rerank.require_candidates(self.decoding)
            except UserError as error:
                raise ValueError(str(error)) from None
        return self

    def absolute(self) -> "ServedModel":
        """The same with paths as any process of the cluster finds them."""
        changed: dict[str, Any] = {"model": absolute_source(self.model)}
        if self.rbm is not None:
            changed["rbm"] = storage.absolute(self.rbm)
        if self.rerank is not None:
            changed["rerank"] = self.rerank.absolute()
        return self.model_copy(update=changed)


class Routing(Config):
    """Which models are served, and how requests are shared among them: the ingress's ``user_config``, changed
    without restarting anything."""

    models: dict[str, ServedModel] = Field(min_length=1)
    """By the name that clients see."""

    draining: bool = False
    """Not ready for new requests any more, while those in flight are answered."""

    @field_validator("models")
    @classmethod
    def _headers_can_name_each(cls, models: dict[str, ServedModel]) -> dict[str, ServedModel]:
        for name in models:
            if _MODEL_NAME.fullmatch(name) is None:
                raise ValueError(f"name {name[:80]!r}: give 1 to 64 visible ASCII characters, without spaces")
        return models

    @model_validator(mode="after")
    def _some_model_takes_requests(self) -> "Routing":
        if not any(model.traffic for model in self.models.values()):
            raise ValueError("models: every model's traffic is 0; give one of them more")
        return self


def resident(load: Callable[[Weights], LoadedT], max_models: int) -> Callable[[str], Awaitable[LoadedT]]:
    """From a weights key to what is loaded for it; the least recently used of more than ``max_models`` is dropped.

    In a replica Serve's multiplexing does this, and sends further requests for a model to replicas that hold it;
    elsewhere, in one process, all stay.
    """

    async def load_key(key: str) -> LoadedT:
        # Beside the thread that computes: requests for other models go on meanwhile. Torch's helpers end with it.
        thread = ThreadPoolExecutor(1, "loading")
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, load, Weights.from_key(key))
        finally:
            thread.shutdown(wait=False)

    if in_replica():
        multiplexed: Callable[[str], Awaitable[LoadedT]] = serve.multiplexed(max_num_models_per_replica=max_models)(
            load_key
        )
        return multiplexed
    loaded: dict[str, LoadedT] = {}

    async def keep(key: str) -> LoadedT:
        if key not in loaded:
            loaded[key] = await load_key(key)
        return loaded[key]

    return keep


def in_replica() -> bool:
    """Whether this process is a replica of a deployment."""
    try:
        serve.get_replica_context()
    except RayServeException:
        return False
    return True
