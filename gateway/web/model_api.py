"""Model versions for programs: what each may do and why, and the steps of their life."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field, StringConstraints

from gateway.lifecycle import Action
from gateway.model_record import entries
from gateway.models_view import entry_view, request_view, version_detail
from gateway.roles import Permission
from gateway.signatures import LONGEST_REASON
from gateway.store import Store
from gateway.store.models import Request as ModelRequest
from gateway.store.models import RequestState, VersionState, requests
from gateway.web.access import MayActOnModels, require
from gateway.web.model_steps import ModelSteps

SEES = [Depends(require(Permission.SEE))]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST_REASON)]
Name = Annotated[str, StringConstraints(max_length=64)]


class Why(BaseModel):
    """A step that needs a reason alone."""

    reason: Reason


class Proposal(BaseModel):
    """That a version become canary or champion."""

    to: Literal["canary", "champion"]
    report: str = Field(max_length=64, description="Key of the comparison that meets the card's criteria")
    reason: Reason
    fraction: float | None = Field(default=None, description="Of a canary: share of the studies")
    devices: list[Annotated[str, StringConstraints(max_length=192)]] = Field(default_factory=list, max_length=100)
    limits: dict[str, float | bool] = Field(default_factory=dict, description="Of a canary; it ends beyond them")


class Signature(BaseModel):
    """Of the account that is logged in."""

    password: str = Field(max_length=1000)
    reason: Reason


class Step(BaseModel):
    """A step that one person may take."""

    action: Literal["shadow", "stop shadow", "end canary", "stop canary", "retire", "reopen"]
    reason: Reason


def model_api_router(store: Store, steps: ModelSteps) -> APIRouter:
    """Every route about versions that answers with data, beside the list ``/api/models``."""
    router = APIRouter(tags=["models"])
    _add_reading(router, store)
    _add_requests(router, store, steps)
    _add_steps(router, store, steps)
    return router


def _add_reading(router: APIRouter, store: Store) -> None:
    @router.get("/api/models/record", dependencies=SEES, summary="Who did what with which version, newest first")
    def record(
        model: Annotated[str | None, Query(max_length=64)] = None,
        version: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> list[dict[str, Any]]:
        with store.read() as connection:
            found = entries(connection, model_name=model, version=version, limit=limit)
        return [entry_view(each) for each in reversed(found)]

    @router.get("/api/models/requests", dependencies=SEES, summary="Requests to let a version judge, newest first")
    def list_requests(state: RequestState | None = None) -> list[dict[str, Any]]:
        with store.read() as connection:
            found = requests(connection, state=state)
            recorded = entries(connection)
        return [request_view(each, recorded) for each in found]

    @router.get("/api/models/{model_name}/{version}", dependencies=SEES, summary="One version, its card and record")
    def version(model_name: str, version: int) -> dict[str, Any]:
        return version_detail(store, model_name, version)


def _add_requests(router: APIRouter, store: Store, steps: ModelSteps) -> None:
    def shown(found: ModelRequest) -> dict[str, Any]:
        with store.read() as connection:
            return request_view(found, entries(connection, request_key=found.request_key))

    @router.post("/api/models/{model_name}/{version}/propose", summary="Ask that a version become canary or champion")
    def propose(
        request: Request, caller: MayActOnModels, model_name: str, version: int, wanted: Proposal
    ) -> dict[str, Any]:
        made = steps.propose(
            request,
            caller,
            model_name=model_name,
            version=version,
            to_state=VersionState(wanted.to),
            comparison_key=wanted.report,
            reason=wanted.reason,
            fraction=wanted.fraction,
            devices=wanted.devices,
            limits=wanted.limits,
        )
        return shown(made)

    @router.post("/api/models/requests/{request_key}/approve", summary="Sign; the second signature carries it out")
    def approve(request: Request, caller: MayActOnModels, request_key: str, signature: Signature) -> dict[str, Any]:
        done = steps.approve(
            request, caller, request_key=request_key, password=signature.password, reason=signature.reason
        )
        return shown(done.request)

    @router.post("/api/models/requests/{request_key}/refuse", summary="End a request")
    def refuse(request: Request, caller: MayActOnModels, request_key: str, why: Why) -> dict[str, Any]:
        ended = steps.end_request(request, caller, request_key=request_key, reason=why.reason, withdraw=False)
        return shown(ended)

    @router.post("/api/models/requests/{request_key}/withdraw", summary="Take one's own request back")
    def withdraw(request: Request, caller: MayActOnModels, request_key: str, why: Why) -> dict[str, Any]:
        ended = steps.end_request(request, caller, request_key=request_key, reason=why.reason, withdraw=True)
        return shown(ended)


def _add_steps(router: APIRouter, store: Store, steps: ModelSteps) -> None:
    @router.post("/api/models/{model_name}/{version}/step", summary="Shadow, end a canary, retire or reopen a version")
    def step(request: Request, caller: MayActOnModels, model_name: str, version: int, wanted: Step) -> dict[str, Any]:
        steps.step(
            request, caller, model_name=model_name, version=version, action=Action(wanted.action), reason=wanted.reason
        )
        return version_detail(store, model_name, version)

    @router.post("/api/models/{model_name}/rollback", summary="Let the last former champion judge again, at once")
    def roll_back(request: Request, caller: MayActOnModels, model_name: str, why: Why) -> dict[str, Any]:
        done = steps.roll_back(request, caller, model_name=model_name, reason=why.reason)
        return {"model_name": model_name, "from_version": done.from_version, "to_version": done.to_version}
