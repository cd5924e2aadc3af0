"""The models being served, as requests meet them."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from raycap.checkpoint.captioner_shape import CaptionerShape
from raycap.serve.errors import RequestError
from raycap.serve.stages.weights import Routing, ServedModel


@dataclass(frozen=True)
class ReadyModel:
    """A model under its name."""

    name: str
    served: ServedModel
    shape: CaptionerShape

    @classmethod
    def read(cls, name: str, served: ServedModel) -> "ReadyModel":
        """With what the model's files say; it may block.

        Raises:
            UserError: there is no such model.
        """
        return cls(name, served, served.read_shape(f"models.{name}."))

    @cached_property
    def weights_key(self) -> str:
        return self.served.weights.key

    @cached_property
    def stages(self) -> frozenset[str]:
        """That compute for a caption by its own settings."""
        refines = self.served.rbm is not None and self.served.refinement.gate > 0
        return frozenset({"encode", "refine", "decode"} if refines else {"encode", "decode"})


@dataclass(frozen=True)
class Served:
    """All of them; replaced as a whole, so that a request meets one state only."""

    models: Mapping[str, ReadyModel]
    draining: bool = False

    @classmethod
    def read(cls, routing: Routing) -> "Served":
        """With what the models' files say; it may block.

        Raises:
            UserError: there is no such model.
        """
        models = {name: ReadyModel.read(name, model) for name, model in routing.models.items()}
        return cls(models, routing.draining)

    def pick(self, name: str | None) -> ReadyModel:
        """The model that a request names, or one drawn by the shares of the traffic.

        Raises:
            RequestError: 404, no such model; 503, none at all yet.
        """
        if not self.models:
            raise RequestError(503, "not_ready", "no model is loaded yet; try again", headers={"Retry-After": "1"})
        if name is None:
            models = list(self.models.values())
            return random.choices(models, [model.served.traffic for model in models])[0]
        if name not in self.models:
            known = ", ".join(self.models)
            message = f"model = {name[:80]!r}: not served here; choose one of {known}, or leave it out"
            raise RequestError(404, "unknown_model", message, "model")
        return self.models[name]
