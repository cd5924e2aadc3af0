"""The HTTP door: an image file in, a caption out. Embeddings never come through here.

Images are decoded and resized here, in threads: a bad one is refused before it takes a place in a
batch, the CPU work grows with the ingress's replicas and not with those that hold a GPU, and what goes
on to the encoder is at most 442 kB (384 x 384 pixels) whatever came in.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from raycap.data.images import ImageError, decode_image, resize_image
from raycap.serve.config import Limits
from raycap.serve.requests import (
    CaptionRequest,
    CaptionResponse,
    ErrorDetail,
    ErrorResponse,
    ModelInfo,
    ModelList,
    RequestError,
    read_image,
)

logger = logging.getLogger("ray.serve")


@serve.ingress()
class CaptionIngress:
    """Sends pixels through encoder, refiner (if any) and decoder.

    Args:
        info: what is served.
        limits: of a request's image.
        encoder, refiner, decoder: handles of the stages; the refiner's is None without an RBM.
    """

    def __init__(
        self,
        info: ModelInfo,
        limits: Limits,
        encoder: DeploymentHandle,
        refiner: DeploymentHandle | None,
        decoder: DeploymentHandle,
    ) -> None:
        self.info, self.limits = info, limits
        self.encoder, self.refiner, self.decoder = encoder, refiner, decoder

    async def caption(self, pixels: np.ndarray) -> str:
        """(H, W, 3) uint8 to its caption."""
        # A response handed on unawaited travels as a reference: the next stage fetches the value itself.
        encoded: Any = self.encoder.remote(pixels)
        if self.refiner is not None:
            encoded = self.refiner.remote(encoded)
        caption: str = await self.decoder.remote(encoded)
        return caption

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_api(self.caption, self.info, self.limits)


def make_api(caption: Callable[[np.ndarray], Awaitable[str]], info: ModelInfo, limits: Limits) -> FastAPI:
    """The HTTP interface around any function from pixels to a caption."""
    api = FastAPI(title="raycap", description="Image captions.", version="1")
    # Every error, a wrong path's too, has the one form.
    api.add_exception_handler(RequestError, _answer_request_error)
    api.add_exception_handler(HTTPException, _answer_http_error)
    api.add_exception_handler(Exception, _answer_own_error)

    # The body is read by read_image, under the limits, and so documented by hand.
    @api.post("/v1/caption", response_model=CaptionResponse, responses=_ERRORS, openapi_extra=_REQUEST_BODY)
    async def caption_image(request: Request) -> CaptionResponse:
        data, field = await read_image(request, limits)
        try:
            pixels = await asyncio.to_thread(_load_pixels, data, info.image_size, limits.max_pixels)
        except ImageError as error:
            raise RequestError.of_image(error, field) from None
        return CaptionResponse(caption=await caption(pixels), model=info.id)

    @api.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(models=[info])

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return api


def _load_pixels(data: bytes, image_size: int, max_pixels: int) -> np.ndarray:
    return resize_image(decode_image(data, max_pixels), image_size)


def _answer(status: int, kind: str, message: str, field: str | None, headers: Any = None) -> JSONResponse:
    detail = ErrorDetail(type=kind, message=message, field=field)
    return JSONResponse(ErrorResponse(error=detail).model_dump(), status, headers)


async def _answer_request_error(_: Request, error: Any) -> JSONResponse:
    return _answer(error.status, error.kind, str(error), error.field)


async def _answer_http_error(request: Request, error: Any) -> JSONResponse:
    kind = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path}: {error.detail}; see /docs"
    return _answer(error.status_code, kind, message, None, error.headers)


async def _answer_own_error(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(500, "internal_error", "the server failed on this request; its log says why", None)


_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in (400, 413, 415, 422, 500)}

_REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary", "description": "The image file."}},
                }
            },
            "application/json": {"schema": CaptionRequest.model_json_schema()},
        },
    }
}
