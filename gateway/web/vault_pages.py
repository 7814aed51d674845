"""Look-ups in the vault: a page and a route for who may know whom a pseudonym stands for, and who asked before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment
from pydantic import BaseModel, StringConstraints
from starlette.exceptions import HTTPException

from gateway.errors import IdentityError
from gateway.look_up import LONGEST_REASON, LOOK_UP, look_up, plain_pseudonym, shown
from gateway.roles import Permission
from gateway.settings import VaultSettings
from gateway.store import Store
from gateway.store.audit import entries
from gateway.web.access import Caller, MayIdentify, require
from gateway.web.api import access_of
from gateway.web.render import render

SHOWN_LOOK_UPS = 50
COST = 20.0
"""Of a look-up, in requests: nobody walks through all patients at the pace of a worklist."""
MayLookUp = Annotated[Caller, Depends(require(Permission.IDENTITY, cost=COST))]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST_REASON)]


class LookUp(BaseModel):
    """Whom does a pseudonym stand for, and why must that be known?"""

    pseudonym: Annotated[str, StringConstraints(max_length=64)]
    reason: Reason


def vault_router(settings: VaultSettings, data_dir: Path, store: Store, environment: Environment) -> APIRouter:
    """Every route that leads from a pseudonym to a patient."""
    router = APIRouter()

    def found(request: Request, caller: Caller, pseudonym: str, reason: str) -> list[dict[str, Any]]:
        now = access_of(request).clock()
        identities = look_up(settings, data_dir, store, pseudonym, reason=reason, by=caller.doer, now=now)
        return [shown(each) for each in identities]

    def asked() -> list[dict[str, Any]]:
        return entries(store, limit=SHOWN_LOOK_UPS, action=LOOK_UP)

    def page(request: Request, status_code: int = 200, **values: Any) -> HTMLResponse:
        defaults = {"problem": "", "pseudonym": "", "reason": "", "studies": None, "longest_reason": LONGEST_REASON}
        values = defaults | values | {"look_ups": asked(), "page": "account"}
        return render(environment, request, "identities.html", status_code=status_code, **values)

    @router.post(
        "/api/identities", tags=["identities"], summary="Whom a pseudonym stands for; recorded with the reason"
    )
    def by_program(request: Request, caller: MayLookUp, wanted: LookUp) -> dict[str, Any]:
        if plain_pseudonym(wanted.pseudonym) is None:
            raise HTTPException(422, "body.pseudonym: 16 hexadecimal digits, as Patient ID of a de-identified object")
        studies = found(request, caller, wanted.pseudonym, wanted.reason)
        if not studies:
            raise HTTPException(404, "the vault holds nobody of that pseudonym")
        return {"pseudonym": plain_pseudonym(wanted.pseudonym), "studies": studies}

    @router.get("/api/identities/look-ups", tags=["identities"], summary="Who looked up whom, when and why")
    def look_ups(
        caller: MayIdentify,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0, le=10**7)] = 0,
    ) -> list[dict[str, Any]]:
        return entries(store, limit=limit, offset=offset, action=LOOK_UP)

    @router.get("/identities", include_in_schema=False)
    def form(request: Request, caller: MayIdentify) -> HTMLResponse:
        return page(request)

    @router.post("/identities", include_in_schema=False)
    def by_person(
        request: Request,
        caller: MayLookUp,
        pseudonym: Annotated[str, Form(max_length=64)] = "",
        reason: Annotated[str, Form(max_length=2 * LONGEST_REASON)] = "",
    ) -> HTMLResponse:
        try:
            studies = found(request, caller, pseudonym, reason)
        except IdentityError as error:
            text = str(error)
            return page(request, 422, problem=f"{text[0].upper()}{text[1:]}.", pseudonym=pseudonym, reason=reason)
        return page(request, pseudonym=plain_pseudonym(pseudonym), reason=reason, studies=studies)

    return router
