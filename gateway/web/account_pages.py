"""Pages of log-in, one's own account, and those of administrators: accounts, tokens, the record of who did what."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment
from starlette.exceptions import HTTPException

from gateway.accounts import LEAST_PASSWORD_LENGTH, Accounts, SessionHolder, fitting_password, random_password
from gateway.errors import AccountError
from gateway.roles import PEOPLE, PERMISSIONS, Role
from gateway.store import Store
from gateway.store.audit import entries
from gateway.web.access import Anyone, Caller, MayAdminister, MayOwn, cookie_name, is_secure, safe_next
from gateway.web.api import access_of
from gateway.web.limits import address_key
from gateway.web.render import render

ENTRIES_PER_PAGE = 200
TOKEN_DAYS = {"30": "30 days", "90": "90 days", "365": "a year", "0": "without end"}
TOO_MANY = "too many attempts to log in"

Short = Annotated[str, Form(max_length=200)]
Password = Annotated[str, Form(max_length=1000)]


class Step(StrEnum):
    """What an administrator does to an account."""

    DISABLE = "disable"
    ENABLE = "enable"
    PASSWORD = "password"


def account_pages_router(store: Store, accounts: Accounts, environment: Environment) -> APIRouter:
    """Every route of log-in and administration."""
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

    def page(request: Request, template: str, **values: Any) -> HTMLResponse:
        return render(environment, request, template, page="account", **values)

    _add_log_in(router, accounts, page)
    _add_own_account(router, accounts, page)
    _add_accounts(router, accounts, page)
    _add_tokens(router, accounts, page)
    _add_audit(router, store, page)
    return router


Page = Callable[..., HTMLResponse]


def _add_log_in(router: APIRouter, accounts: Accounts, page: Page) -> None:
    @router.get("/login")
    def form(
        request: Request, caller: Anyone, wanted: Annotated[str, Query(alias="next", max_length=4000)] = ""
    ) -> Response:
        if caller.kind in ("account", "anyone"):
            return RedirectResponse(safe_next(wanted), 303)
        return page(request, "login.html", next=safe_next(wanted), name="", problem="")

    @router.post("/login")
    def log_in(
        request: Request,
        caller: Anyone,
        name: Short = "",
        password: Password = "",
        wanted: Annotated[str, Form(alias="next", max_length=4000)] = "",
    ) -> Response:
        access = access_of(request)
        taken = [f"address {address_key(caller.address)}", f"name {name.strip().lower()}"]
        try:
            for key in taken:
                access.spend(access.log_ins, key, 1, TOO_MANY)
        except HTTPException as error:
            values = {"next": safe_next(wanted), "name": name, "problem": f"{error.detail}."}
            return page(request, "login.html", status_code=error.status_code, headers=error.headers, **values)
        now = access.clock()
        cookie = accounts.log_in(name.strip(), password, now=now, address=caller.address)
        if cookie is None:
            values = {
                "next": safe_next(wanted),
                "name": name,
                "problem": "That name and password do not belong together.",
            }
            return page(request, "login.html", status_code=401, **values)
        for key in taken:
            access.log_ins.give_back(key)
        if caller.holder is not None:
            accounts.log_out(caller.holder.session_hash, now=now, by=caller.doer)
        response = RedirectResponse(safe_next(wanted), 303)
        access.set_cookie(request, response, cookie)
        return response

    @router.post("/logout")
    def log_out(request: Request, caller: MayOwn) -> Response:
        accounts.log_out(_holder(caller).session_hash, now=access_of(request).clock(), by=caller.doer)
        response = RedirectResponse("/login", 303)
        # The worklist's filters stand in the tab's storage, and may name a patient.
        response.headers["Clear-Site-Data"] = '"storage"'
        secure = is_secure(request)
        response.delete_cookie(cookie_name(request), path="/", secure=secure, httponly=True, samesite="strict")
        return response


def _add_own_account(router: APIRouter, accounts: Accounts, page: Page) -> None:
    def shown(request: Request, caller: Caller, problem: str = "", done: str = "", status: int = 200) -> HTMLResponse:
        must_change = _holder(caller).must_change and not done
        values = {"must_change": must_change, "least_length": LEAST_PASSWORD_LENGTH}
        return page(request, "account.html", status_code=status, problem=problem, done=done, **values)

    @router.get("/account")
    def account(request: Request, caller: MayOwn) -> HTMLResponse:
        return shown(request, caller)

    @router.post("/account")
    def change(
        request: Request, caller: MayOwn, old: Password = "", new: Password = "", again: Password = ""
    ) -> Response:
        access, holder = access_of(request), _holder(caller)
        key = f"name {holder.name}"
        if new != again:
            return shown(request, caller, "The two new passwords differ.", status=422)
        try:
            fitting_password(new, holder.name)
            access.spend(access.log_ins, key, 1, TOO_MANY)
            accounts.change_own_password(holder, old, new, now=access.clock(), by=caller.doer)
        except AccountError as error:
            return shown(request, caller, _sentence(error), status=422)
        access.log_ins.give_back(key)
        if holder.must_change:
            return RedirectResponse("/", 303)
        return shown(request, caller, done="The password is changed; other sessions of this account have ended.")


def _add_accounts(router: APIRouter, accounts: Accounts, page: Page) -> None:
    def shown(request: Request, problem: str = "", made: tuple[str, str] | None = None) -> HTMLResponse:
        values = {"accounts": accounts.accounts(), "roles": PEOPLE, "permissions": PERMISSIONS, "made": made}
        return page(request, "accounts.html", status_code=422 if problem else 200, problem=problem, **values)

    @router.get("/admin/accounts")
    def listed(request: Request, caller: MayAdminister) -> HTMLResponse:
        return shown(request)

    @router.post("/admin/accounts")
    def make(request: Request, caller: MayAdminister, name: Short, role: Annotated[Role, Form()]) -> HTMLResponse:
        password = random_password()
        try:
            made = accounts.make(name, password, role, now=access_of(request).clock(), by=caller.doer, must_change=True)
        except AccountError as error:
            return shown(request, _sentence(error))
        return shown(request, made=(made, password))

    @router.post("/admin/accounts/{name}/role")
    def set_role(request: Request, caller: MayAdminister, name: str, role: Annotated[Role, Form()]) -> Response:
        try:
            accounts.set_role(name, role, now=access_of(request).clock(), by=caller.doer)
        except AccountError as error:
            return shown(request, _sentence(error))
        return RedirectResponse("/admin/accounts", 303)

    @router.post("/admin/accounts/{name}/{step}")
    def change(request: Request, caller: MayAdminister, name: str, step: Step) -> Response:
        now = access_of(request).clock()
        password = random_password()
        try:
            if step is Step.PASSWORD:
                accounts.set_password(name, password, now=now, by=caller.doer, must_change=True)
                # Who gave this account a new password has ended the session that asks.
                return shown(request, made=(name, password))
            (accounts.disable if step is Step.DISABLE else accounts.enable)(name, now=now, by=caller.doer)
        except AccountError as error:
            return shown(request, _sentence(error))
        return RedirectResponse("/admin/accounts", 303)


def _add_tokens(router: APIRouter, accounts: Accounts, page: Page) -> None:
    def shown(request: Request, problem: str = "", secret: str = "") -> HTMLResponse:
        now = access_of(request).clock()
        values = {"tokens": accounts.tokens(), "roles": list(Role), "days": TOKEN_DAYS, "now": now, "secret": secret}
        return page(request, "tokens.html", status_code=422 if problem else 200, problem=problem, **values)

    @router.get("/admin/tokens")
    def listed(request: Request, caller: MayAdminister) -> HTMLResponse:
        return shown(request)

    @router.post("/admin/tokens")
    def make(
        request: Request,
        caller: MayAdminister,
        purpose: Short,
        role: Annotated[Role, Form()],
        days: Annotated[int, Form(ge=0, le=3650)] = 365,
    ) -> HTMLResponse:
        lifetime = timedelta(days=days) if days else None
        try:
            _, secret = accounts.make_token(
                purpose, role, lifetime=lifetime, now=access_of(request).clock(), by=caller.doer
            )
        except AccountError as error:
            return shown(request, _sentence(error))
        return shown(request, secret=secret)

    @router.post("/admin/tokens/{token_key}/revoke")
    def revoke(request: Request, caller: MayAdminister, token_key: str) -> Response:
        try:
            accounts.revoke_token(token_key, now=access_of(request).clock(), by=caller.doer)
        except AccountError as error:
            return shown(request, _sentence(error))
        return RedirectResponse("/admin/tokens", 303)


def _add_audit(router: APIRouter, store: Store, page: Page) -> None:
    @router.get("/admin/audit")
    def audit(
        request: Request, caller: MayAdminister, number: Annotated[int, Query(ge=1, le=10**6, alias="page")] = 1
    ) -> HTMLResponse:
        rows = entries(store, limit=ENTRIES_PER_PAGE + 1, offset=(number - 1) * ENTRIES_PER_PAGE)
        return page(
            request, "audit.html", rows=rows[:ENTRIES_PER_PAGE], number=number, more=len(rows) > ENTRIES_PER_PAGE
        )


def _holder(caller: Caller) -> SessionHolder:
    assert caller.holder is not None, "Permission.OWN is given to sessions alone"
    return caller.holder


def _sentence(error: AccountError) -> str:
    text = str(error)
    return f"{text[0].upper()}{text[1:]}."
