"""Serve's log with the ids of clients' requests."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray.serve.context import _get_serve_request_context, _serve_request_context

logger = logging.getLogger("ray.serve")


def log_request(
    level: int,
    request_id: str,
    message: str,
    *args: Any,
    details: Mapping[str, Any] = {},
    error: BaseException | None = None,
) -> None:
    """Write a record that belongs to a client's request.

    Serve's handlers put the id of the call into each record, which is another where several requests share a call, and
    where the client's own id was not fit for a log.

    Args:
        details: fields of the record beside its message.
        error: whose traceback belongs to it.
    """
    if not logger.isEnabledFor(level):
        return
    context: Any = replace(_get_serve_request_context(), request_id=request_id)
    of_call = _serve_request_context.set(context)
    try:
        logger.log(level, message, *args, exc_info=error, extra={**details, "request_id": request_id})
    finally:
        _serve_request_context.reset(of_call)
