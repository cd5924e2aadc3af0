"""Every error in the one form: from what was raised to what is sent."""

import math
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from raycap.errors import UserError
from raycap.serve.api.options import DECODING_OPTIONS
from raycap.serve.api.record import RequestRecord, record_of
from raycap.serve.errors import ErrorDetail, ErrorResponse, Overloaded, RequestError


def as_request_error(error: BaseException) -> RequestError:
    """What the client is told; of our own failures nothing but that it was ours."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, Overloaded):
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_seconds)))}
        return RequestError(503, "overloaded", str(error), headers=headers)
    if isinstance(error, ClientDisconnect):
        return RequestError(499, "client_gone", "the client left before its request was whole; nothing to do")
    if isinstance(error, UserError):
        # A stage's word on an option that only it can judge: whether the caption fits the decoder, say. All else that
        # a stage says is for the operator: a model that is gone, and where it was.
        line = str(error)
        option = re.match(r"decoding\.(\w+)", line)
        if option is not None and option[1] in DECODING_OPTIONS:
            return RequestError(400, "invalid_option", line.removeprefix("decoding."), option[1])
    return RequestError(500, "internal_error", "the server failed on this request; its log says why")


def error_body(error: BaseException, request_id: str) -> ErrorResponse:
    """The JSON."""
    told = as_request_error(error)
    message = " ".join(str(told).split())
    return ErrorResponse(error=ErrorDetail(type=told.kind, message=message, field=told.field, request_id=request_id))


def answer_error(error: BaseException, record: RequestRecord) -> JSONResponse:
    """The whole answer, noted in the request's record."""
    told = as_request_error(error)
    record.error = told.kind
    return JSONResponse(error_body(error, record.request_id).model_dump(), told.status, told.headers)


def add_error_handlers(api: FastAPI) -> None:
    """Every error, a wrong path's too, has the one form. What is not foreseen here, the middleware answers."""
    for kind in (RequestError, Overloaded, ClientDisconnect):
        api.add_exception_handler(kind, _answer)
    api.add_exception_handler(UserError, _answer_option)
    api.add_exception_handler(HTTPException, _answer_http_error)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    return answer_error(error, record_of(request))


async def _answer_option(request: Request, error: Exception) -> JSONResponse:
    if as_request_error(error).status == 500:
        raise error
    return answer_error(error, record_of(request))


async def _answer_http_error(request: Request, error: Any) -> JSONResponse:
    kind = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method[:20]} {request.url.path[:200]}: {error.detail}; see /docs"
    told = RequestError(error.status_code, kind, message, headers=error.headers)
    return answer_error(told, record_of(request))
