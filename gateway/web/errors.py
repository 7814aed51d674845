"""What a browser or a program is told of an error: a status, and JSON with ``error``, or a page with the same words.

============================  ======
StoreError, no such row       404
StoreError, cannot be read    503
UnreadableError, PixelError   422
TransitionError, AlarmError   409
LifecycleError                409
AccountError, TruthError      422
BusyError                     503, with Retry-After
a request that does not fit   422
anything else                 500, without detail, by :class:`gateway.web.security.Guard`
============================  ======
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from jinja2 import Environment
from starlette.exceptions import HTTPException

from drift.errors import AlarmError
from gateway.errors import (
    AccountError,
    BusyError,
    GatewayError,
    IdentityError,
    LifecycleError,
    StoreError,
    TransitionError,
    TruthError,
    UnreadableError,
    VaultError,
)
from gateway.web.limits import retry_after
from gateway.web.render import render
from gateway.web.security import wants_page
from models.errors import PixelError

logger = logging.getLogger(__name__)

STATUSES: Mapping[type[Exception], int] = {
    StoreError: 503,
    BusyError: 503,
    AccountError: 422,
    TruthError: 422,
    IdentityError: 409,
    VaultError: 503,
    TransitionError: 409,
    LifecycleError: 409,
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


def add_error_handlers(app: FastAPI, environment: Environment) -> None:
    """Make every error of `app` an answer; `environment` holds the template of the page."""

    def answer(request: Request, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
        if not wants_page(request):
            return JSONResponse({"error": message}, status, headers)
        values = {"page": "error", "status": status, "message": message}
        return render(environment, request, "error.html", status_code=status, headers=headers, **values)

    def known(request: Request, error: Exception) -> Response:
        status = status_of(error)
        if status >= 500:
            logger.error("%s: %s", _route(request), error)
        return answer(request, status, str(error), retry_after(5) if isinstance(error, BusyError) else None)

    def unfit(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        # Without `input` and `ctx`, which repeat what was sent.
        wrong = [{"where": ".".join(map(str, each["loc"])), "what": each["msg"]} for each in error.errors()]
        return answer(request, 422, "; ".join(f"{each['where']}: {each['what']}" for each in wrong))

    def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code < 400:
            return Response(status_code=error.status_code, headers=error.headers)
        return answer(request, error.status_code, error.detail, error.headers)

    for cls in (GatewayError, AlarmError, PixelError):
        app.add_exception_handler(cls, known)
    app.add_exception_handler(RequestValidationError, unfit)
    app.add_exception_handler(HTTPException, of_http)


def _route(request: Request) -> str:
    """The route's pattern: an address may carry a search for a patient."""
    route: Any = request.scope.get("route")
    return f"{request.method} {getattr(route, 'path', '(no route)')}"
