"""GET /v1/models: what is served, in OpenAI's form and more."""

from typing import Literal

from fastapi import APIRouter, Request

from raycap.checkpoint.captioner_shape import CaptionerKind
from raycap.config import Config
from raycap.serve.api import documentation
from raycap.serve.api.served import ReadyModel
from raycap.serve.api.service import Service


class ModelInfo(Config):
    """A model being served."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    """Not known."""

    owned_by: str = "raycap"

    kind: CaptionerKind

    refined: bool
    """Whether an RBM refines the embeddings."""

    image_size: int
    """Pixels of the square to which images are resized."""

    gate: float
    """Unless the request says otherwise; 0 without an RBM."""

    passes: int

    traffic: float
    """Share of the requests that name no model, 0 to 1."""


class ModelList(Config):
    """All models being served."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


def model_routes(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["models"], responses=documentation.ERRORS)

    @routes.get("/v1/models")
    async def list_models(request: Request) -> ModelList:
        """All models."""
        service.admit(request, None)
        models = service.served.models.values()
        total = sum(model.served.traffic for model in models)
        return ModelList(data=[_info(model, total) for model in models])

    @routes.get("/v1/models/{name:path}")
    async def show_model(request: Request, name: str) -> ModelInfo:
        """One model."""
        service.admit(request, None)
        total = sum(model.served.traffic for model in service.served.models.values())
        return _info(service.served.pick(name), total)

    return routes


def _info(model: ReadyModel, total_traffic: float) -> ModelInfo:
    served = model.served
    refined = served.rbm is not None
    return ModelInfo(
        id=model.name,
        kind=model.shape.kind,
        refined=refined,
        image_size=model.shape.image_size,
        gate=served.refinement.gate if refined else 0.0,
        passes=served.refinement.passes if refined else 1,
        traffic=served.traffic / total_traffic,
    )
