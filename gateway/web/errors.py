"""What a browser or a program is told of an error: a status, and JSON with ``error``.

============================  ======
StoreError, no such row       404
StoreError, cannot be read    503
UnreadableError, PixelError   422
TransitionError, AlarmError   409
a request that does not fit   422
anything else                 500, without detail; the log has it
============================  ======
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from drift.errors import AlarmError
from gateway.errors import GatewayError, StoreError, TransitionError, UnreadableError
from models.errors import PixelError

logger = logging.getLogger(__name__)

STATUSES: Mapping[type[Exception], int] = {
    StoreError: 503,
    TransitionError: 409,
    AlarmError: 409,
    UnreadableError: 422,
    PixelError: 422,
}


def status_of(error: Exception) -> int:
    """The HTTP status of an error; a :class:`StoreError` that no database error caused says "no such row"."""
    if isinstance(error, StoreError) and error.__cause__ is None:
        return 404
    for cls in type(error).__mro__:
        if cls in STATUSES:
            return STATUSES[cls]
    return 500


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of `app` an answer."""

    def known(request: Request, error: Exception) -> JSONResponse:
        status = status_of(error)
        if status >= 500:
            logger.error("%s: %s", _route(request), error)
        return JSONResponse({"error": str(error)}, status)

    def unfit(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        # Without `input` and `ctx`, which repeat what was sent.
        wrong = [{"where": ".".join(map(str, each["loc"])), "what": each["msg"]} for each in error.errors()]
        return JSONResponse({"error": "; ".join(f"{each['where']}: {each['what']}" for each in wrong)}, 422)

    def of_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    def last(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s: %s", _route(request), type(error).__name__)
        return JSONResponse({"error": "internal error; the gateway's log has it"}, 500)

    for cls in (GatewayError, AlarmError, PixelError):
        app.add_exception_handler(cls, known)
    app.add_exception_handler(RequestValidationError, unfit)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, last)


def _route(request: Request) -> str:
    """The route's pattern: an address may carry a search for a patient."""
    route: Any = request.scope.get("route")
    return f"{request.method} {getattr(route, 'path', '(no route)')}"
