"""GET /healthz and /readyz, for those who decide where requests go."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from raycap.serve.api import documentation
from raycap.serve.api.service import Service
from raycap.serve.errors import RequestError

# Whoever asks shows no key: paths and buckets are not for all.
_REFUSED = "the last models that were to be served are refused, those before go on; the log says why"


def health_routes(service: Service) -> APIRouter:
    """The routes; they ask for no key."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive; asks no stage."""
        return {"status": "ok"}

    @routes.get("/readyz", response_class=JSONResponse, responses=documentation.NOT_READY)
    async def readyz() -> dict[str, str]:
        """A caption went through every stage a moment ago: a client's, or one made to see. `refused`, if there, says
        that the models that were to be served last are not, and those before go on."""
        served = service.served
        if served.draining or service.door.draining:
            raise _not_ready("draining")
        if not served.models:
            raise _not_ready("no model is loaded yet")
        model = max(served.models.values(), key=lambda model: model.served.traffic)
        reason = await service.readiness.check(model)
        if reason is not None:
            raise _not_ready(reason)
        return {"status": "ready"} | ({} if service.refused is None else {"refused": _REFUSED})

    return routes


def _not_ready(reason: str) -> RequestError:
    return RequestError(503, "not_ready", f"not ready: {reason}; send requests elsewhere", headers={"Retry-After": "1"})
