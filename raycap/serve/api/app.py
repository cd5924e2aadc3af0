"""The whole HTTP interface."""

from typing import Any

from fastapi import FastAPI

from raycap.serve.api import documentation
from raycap.serve.api.captions import caption_routes
from raycap.serve.api.chat import chat_routes
from raycap.serve.api.door import PassDoor
from raycap.serve.api.embeddings import embedding_routes
from raycap.serve.api.errors import add_error_handlers
from raycap.serve.api.health import health_routes
from raycap.serve.api.middleware import RecordRequests
from raycap.serve.api.models import model_routes
from raycap.serve.api.service import Service
from raycap.serve.page import mount_page

_DESCRIPTION = """Image captions from BLIP, its embeddings refined by an RBM, and from LSTM captioners.

Every error has one form, `{"error": {"type", "message", "field", "request_id", ...}}`, and every answer its
`X-Request-ID`: the client's own, where it gave one of at most 128 letters, digits, `.`, `_` and `-`."""


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Made once; the document of all routes."""
        if self.openapi_schema is None:
            documentation.complete(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema


def make_api(service: Service, echoes_id: bool = True) -> FastAPI:
    """The HTTP interface of a service.

    Args:
        service: it may begin to serve models, or change them, at any time.
        echoes_id: False behind a proxy that sends back the X-Request-ID itself.
    """
    # A path with a slash too many is none of ours; a redirect would lead to whatever host the request names.
    api = _Api(
        title="raycap",
        description=_DESCRIPTION,
        version="1",
        redirect_slashes=False,
        # Clients made from the document call their methods by it.
        generate_unique_id_function=lambda route: route.name,
    )
    add_error_handlers(api)
    api.add_middleware(PassDoor, door=service.door)
    api.add_middleware(RecordRequests, limits=service.limits, telemetry=service.telemetry, echoes_id=echoes_id)
    for routes in (caption_routes, chat_routes, embedding_routes, model_routes, health_routes):
        api.include_router(routes(service))
    mount_page(api)
    return api
