"""Who is asking, and may they: log-in by cookie or bearer token, permissions, CSRF, rate limits.

Every route declares what it needs by depending on :func:`require`; an application with a route that does not is not
made (:func:`check_every_route`).

References
----------
RFC 6750 (bearer tokens). OWASP Cross-Site Request Forgery Prevention Cheat Sheet, "Synchronizer Token Pattern".
RFC 6265bis section 4.1.3 (``__Host-``).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote, urlsplit

from anyio import to_thread
from fastapi import Depends, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Mount

from gateway.accounts import Accounts, SessionHolder
from gateway.roles import PERMISSIONS, Permission, Role
from gateway.settings import WebSettings
from gateway.store import Store
from gateway.store.accounts import Doer
from gateway.store.audit import record
from gateway.web.limits import RateLimit, address_key, retry_after
from gateway.web.security import SAFE_METHODS, STATIC, wants_page

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf_token"
BACKGROUND_HEADER = "X-Background"
"""On requests by which a page keeps itself up to date: they do not keep a session from ending."""
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_LONGEST_SECRET = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks."""

    kind: Literal["account", "token", "anyone", "nobody"]
    """``anyone``: log-in is off; ``nobody``: not logged in, on a route that needs none."""
    actor: str
    """For the record of who did what: an account's name, ``token:PURPOSE``, ``anyone`` or ``nobody``."""
    address: str
    permissions: frozenset[Permission]
    role: Role | None = None
    holder: SessionHolder | None = None
    csrf_token: str = ""

    def may(self, permission: str) -> bool:
        """Whether the caller has `permission`."""
        return permission in self.permissions

    @property
    def doer(self) -> Doer:
        """For functions of the store that keep the record themselves."""
        return Doer(actor=self.actor, address=self.address)


class Access:
    """Log-in, permissions and limits of one web process."""

    def __init__(self, settings: WebSettings, accounts: Accounts, store: Store, clock: Clock = utc_now) -> None:
        self.settings = settings
        self.accounts = accounts
        self.clock = clock
        self.requests = RateLimit(settings.requests_per_minute)
        self.log_ins = RateLimit(settings.login_attempts_per_minute)
        self._store = store

    @property
    def is_on(self) -> bool:
        """Whether a log-in is asked for."""
        return self.settings.authentication == "on"

    async def admit(self, request: Request, permission: Permission, cost: float) -> Caller:
        """The caller, where it may do what needs `permission`.

        Raises
        ------
        HTTPException
            303 to the log-in or the change of password for a page, 401 for a program, 403 where the role does not allow
            it or the CSRF token is missing, 429 where too much was asked.
        """
        caller = await self.identify(request)
        if caller.kind != "anyone":
            key = address_key(caller.address) if caller.kind == "nobody" else caller.actor
            self.spend(self.requests, key, cost, "too many requests")
        if permission is Permission.OPEN:
            return caller
        if caller.kind == "nobody":
            raise _log_in_needed(request)
        if caller.holder is not None:
            if caller.holder.must_change and permission is not Permission.OWN:
                if wants_page(request):
                    raise HTTPException(303, headers={"Location": "/account"})
                raise HTTPException(403, "change the password first, on the page /account")
            if request.method not in SAFE_METHODS:
                await _check_csrf(request, caller)
        if not caller.may(permission) or (permission is Permission.OWN and caller.holder is None):
            raise HTTPException(403, _refusal(caller, permission))
        return caller

    async def identify(self, request: Request) -> Caller:
        """Who asks: by bearer token where one is sent, else by cookie."""
        address = request.client.host if request.client else ""
        if not self.is_on:
            # Who may change accounts with nobody asked who they are would be in still when log-in is on again.
            # A look-up of an identity says who asked, and a read whose it is.
            allowed = frozenset(Permission) - {
                Permission.ADMINISTER,
                Permission.OWN,
                Permission.IDENTITY,
                Permission.READS,
            }
            return Caller(kind="anyone", actor="anyone", address=address, permissions=allowed)
        authorization = request.headers.get("authorization")
        cookie = request.cookies.get(cookie_name(request), "")
        if authorization is None and not cookie:
            return _nobody(address)
        return await to_thread.run_sync(self._look_up, request, authorization, cookie, address)

    def _look_up(self, request: Request, authorization: str | None, cookie: str, address: str) -> Caller:
        if authorization is not None:
            scheme, _, secret = authorization.partition(" ")
            fits = scheme.lower() == "bearer" and len(secret) <= _LONGEST_SECRET
            token = self.accounts.bearer(secret.strip(), now=self.clock()) if fits else None
            if token is None:
                return _nobody(address)
            return Caller(
                kind="token",
                actor=f"token:{token.purpose}",
                address=address,
                permissions=PERMISSIONS[token.role],
                role=token.role,
            )
        if len(cookie) > _LONGEST_SECRET:
            return _nobody(address)
        holder = self.accounts.holder(cookie, now=self.clock(), active=is_active(request))
        if holder is None:
            return _nobody(address)
        return Caller(
            kind="account",
            actor=holder.name,
            address=address,
            permissions=PERMISSIONS[holder.role],
            role=holder.role,
            holder=holder,
            csrf_token=csrf_token(cookie),
        )

    def spend(self, limit: RateLimit, key: str, cost: float, reason: str) -> None:
        """Count a request. Raises :class:`HTTPException` 429 where there were too many."""
        wait_s = limit.take(key, cost)
        if wait_s:
            headers = retry_after(wait_s)
            raise HTTPException(429, f"{reason}; try again in {headers['Retry-After']} s", headers)

    def note(self, caller: Caller, action: str, subject: str, detail: str = "") -> None:
        """Write down what `caller` did."""
        record(
            self._store,
            now=self.clock(),
            actor=caller.actor,
            action=action,
            subject=subject,
            address=caller.address,
            detail=detail,
        )

    def set_cookie(self, request: Request, response: Response, value: str) -> None:
        """Give the browser its session."""
        response.set_cookie(
            cookie_name(request),
            value,
            max_age=round(timedelta(hours=self.settings.session_hours).total_seconds()),
            path="/",
            httponly=True,
            secure=is_secure(request),
            samesite="strict",
        )


@dataclass(frozen=True)
class Require:
    """A route's dependency: what its caller must be allowed, and how much of the caller's rate it takes."""

    permission: Permission
    cost: float = 1.0

    async def __call__(self, request: Request) -> Caller:
        access: Access = request.app.state.access
        caller = await access.admit(request, self.permission, self.cost)
        request.state.caller = caller
        return caller


def require(permission: Permission, *, cost: float = 1.0) -> Require:
    """The dependency of a route whose caller needs `permission`; gives the :class:`Caller`.

    ``@router.post(..., dependencies=[Depends(require(Permission.STORE))])``, or as a parameter
    ``caller: Annotated[Caller, Depends(require(Permission.STORE))]``.
    """
    return Require(permission, cost)


Anyone = Annotated[Caller, Depends(require(Permission.OPEN))]
MayOwn = Annotated[Caller, Depends(require(Permission.OWN))]
MaySee = Annotated[Caller, Depends(require(Permission.SEE))]
MayActOnStudies = Annotated[Caller, Depends(require(Permission.STUDIES))]
MayActOnAlarms = Annotated[Caller, Depends(require(Permission.ALARMS))]
MayActOnModels = Annotated[Caller, Depends(require(Permission.MODELS))]
MayRead = Annotated[Caller, Depends(require(Permission.READS))]
MayIdentify = Annotated[Caller, Depends(require(Permission.IDENTITY))]
MayAdminister = Annotated[Caller, Depends(require(Permission.ADMINISTER))]


def _nobody(address: str) -> Caller:
    return Caller(kind="nobody", actor="nobody", address=address, permissions=frozenset())


def _refusal(caller: Caller, permission: Permission) -> str:
    if caller.kind == "anyone" and permission is Permission.IDENTITY:
        return "log-in is off (web.authentication), and a look-up says who asked; `gateway vault find` does meanwhile"
    if caller.kind == "anyone" and permission is Permission.READS:
        return "log-in is off (web.authentication), and a read says whose it is; `gateway truth import` does meanwhile"
    if caller.kind == "anyone":
        return "log-in is off (web.authentication); accounts are managed by the command line meanwhile"
    if caller.kind == "token" and permission is Permission.OWN:
        return "a token has no account"
    return f"the role {caller.role} does not allow this; it needs {permission.value!r}"


def _log_in_needed(request: Request) -> HTTPException:
    if not wants_page(request):
        return HTTPException(401, "log in, or send a token", {"WWW-Authenticate": 'Bearer realm="gateway"'})
    location = "/login"
    if request.method in SAFE_METHODS and request.url.path != "/":
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        location += f"?next={quote(here, safe='/')}"
    return HTTPException(303, headers={"Location": location})


async def _check_csrf(request: Request, caller: Caller) -> None:
    shown: str | UploadFile | None = request.headers.get(CSRF_HEADER)
    if shown is None and request.headers.get("content-type", "").startswith(_FORMS):
        form = await request.form()
        shown = form.get(CSRF_FIELD)
        await form.close()
    if not isinstance(shown, str) or not hmac.compare_digest(shown.encode(), caller.csrf_token.encode()):
        raise HTTPException(403, f"the page is out of date: no valid {CSRF_HEADER}; load it again")


def csrf_token(cookie: str) -> str:
    """What a page of the session shows with every change; who cannot read the page cannot know it."""
    return hmac.new(cookie.encode(), b"csrf", hashlib.sha256).hexdigest()


def is_secure(request: Request) -> bool:
    """Whether the browser came by HTTPS, here or at a proxy that is believed."""
    return request.url.scheme == "https"


def cookie_name(request: Request) -> str:
    """``__Host-``: a browser takes it by HTTPS only, and from no other host of the domain."""
    return "__Host-gateway-session" if is_secure(request) else "gateway-session"


def is_active(request: Request) -> bool:
    """Whether a person asked for it, as far as a request tells."""
    quiet = BACKGROUND_HEADER in request.headers or request.url.path == "/api/events"
    return not quiet and request.headers.get("sec-fetch-dest") != "image"


def safe_next(wanted: str) -> str:
    """`wanted` where it is a path of this gateway, else the worklist.

    Browsers read a backslash as a slash and drop control characters, so that ``/\\host`` and ``/<tab>/host`` would be
    other hosts (WHATWG URL, "relative slash state").
    """
    try:
        parts = urlsplit(wanted)
    except ValueError:
        return "/"
    strange = any(character in "\\" or ord(character) < 33 or ord(character) == 127 for character in wanted)
    inside = wanted.startswith("/") and not wanted.startswith("//") and not parts.scheme and not parts.netloc
    known = unquote(parts.path) not in ("/login", "/logout")
    return wanted if inside and known and not strange and len(wanted) <= 2000 else "/"


# --- every route says what it needs ---


def routes_of(routes: Iterable[Any]) -> Iterator[Any]:
    """All routes, also of routers that are included (which newer versions of FastAPI keep as such)."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route
        else:
            yield from routes_of(inner.routes)


def needs_of(route: APIRoute) -> list[Permission]:
    """The permissions that `route` asks for."""
    found = [each.call for each in route.dependant.dependencies]
    return [call.permission for call in found if isinstance(call, Require)]


def check_every_route(app: FastAPI) -> None:
    """Raise :class:`RuntimeError` where a route of `app` does not say by :func:`require` what it needs."""
    for route in routes_of(app.routes):
        if isinstance(route, Mount) and f"{route.path}/" == STATIC:
            continue
        if not isinstance(route, APIRoute) or len(needs_of(route)) != 1:
            raise RuntimeError(f"the route {getattr(route, 'path', route)} must say by require() what it needs, once")


def describe_access(app: FastAPI, schema: dict[str, Any]) -> dict[str, Any]:
    """Add to an OpenAPI description who may call what."""
    schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["token"] = {"type": "http", "scheme": "bearer", "description": "A machine's token: gw_..."}
    for route in routes_of(app.routes):
        for method in getattr(route, "methods", None) or ():
            operation = schema["paths"].get(route.path, {}).get(method.lower())
            if operation is None:
                continue
            (needed,) = needs_of(route)
            operation["x-permission"] = needed.value
            if needed is Permission.OPEN:
                operation["security"] = []
                continue
            operation["security"] = [{"token": []}]
            operation["responses"].setdefault("401", {"description": "Not logged in, and no valid token"})
            operation["responses"].setdefault("403", {"description": f"Needs the permission {needed.value!r}"})
            operation["responses"].setdefault("429", {"description": "Too many requests; see Retry-After"})
    return schema
