"""The pages of model versions: which may judge and who let them, each version's card and record, and the steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment
from starlette.exceptions import HTTPException

from gateway.errors import LifecycleError
from gateway.lifecycle import REQUESTED, TRANSITIONS, Action
from gateway.models_view import models_view, monitor_report, version_detail
from gateway.promotion import NUMBER_LIMITS, unmet_needs
from gateway.roles import Permission
from gateway.signatures import LONGEST_REASON
from gateway.store import Store
from gateway.store.models import VersionState, find_request
from gateway.web.access import Caller, MayActOnModels, MaySee, require
from gateway.web.model_steps import ModelSteps
from gateway.web.render import render

SEES = [Depends(require(Permission.SEE))]
Text = Annotated[str, Form(max_length=2 * LONGEST_REASON)]
Password = Annotated[str, Form(max_length=1000)]
STEP_WORDS = {
    Action.SHADOW: ("Start shadow", "It runs beside the champion; nobody outside sees its results."),
    Action.STOP_SHADOW: ("Stop shadow", "It runs no more."),
    Action.END_CANARY: ("End canary", "Its studies go to the champion; it goes on as shadow."),
    Action.STOP_CANARY: ("Stop canary", "Its studies go to the champion; it runs no more."),
    Action.RETIRE: ("Retire", "It runs no more."),
    Action.REOPEN: ("Reopen", "It becomes a draft, to be compared and approved anew."),
}
LIMIT_WORDS = {
    "error_fraction": "failing studies, as a fraction",
    "latency_ratio": "time, times the champion's",
    "disagreement_fraction": "studies decided otherwise, as a fraction",
    "least_studies": "studies before it is judged",
}

Page = Callable[..., HTMLResponse]


def model_pages_router(store: Store, data_dir: Path, steps: ModelSteps, environment: Environment) -> APIRouter:
    """Every page about model versions."""
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

    def shown(
        request: Request, caller: Caller, model_name: str, version: int, problem: str = "", **typed: Any
    ) -> HTMLResponse:
        values = version_values(store, data_dir, model_name, version, deciding=caller.may(Permission.MODELS))
        status = 422 if problem else 200
        typed = {"reason": "", "form": ""} | typed
        return render(
            environment,
            request,
            "model.html",
            status_code=status,
            problem=problem,
            typed=typed,
            page="models",
            **values,
        )

    @router.get("/models")
    def listed(request: Request, caller: MaySee) -> HTMLResponse:
        values: dict[str, Any] = {"models": models_view(store), "monitor": monitor_report(store)}
        return render(environment, request, "models.html", page="models", **values)

    @router.get("/models/{model_name}/{version}")
    def version(request: Request, caller: MaySee, model_name: str, version: int) -> HTMLResponse:
        return shown(request, caller, model_name, version)

    _add_steps(router, steps, shown)
    _add_requests(router, store, steps, shown)
    return router


def _add_steps(router: APIRouter, steps: ModelSteps, shown: Page) -> None:
    @router.post("/models/{model_name}/{version}/step")
    def step(
        request: Request, caller: MayActOnModels, model_name: str, version: int, action: Text = "", reason: Text = ""
    ) -> Response:
        try:
            if action not in {str(each) for each in STEP_WORDS}:
                raise LifecycleError(f"there is no step {action!r}")
            steps.step(request, caller, model_name=model_name, version=version, action=Action(action), reason=reason)
        except LifecycleError as error:
            return shown(request, caller, model_name, version, sentence(error), form=action, reason=reason)
        return _back(model_name, version)

    @router.post("/models/{model_name}/{version}/rollback")
    def roll_back(
        request: Request, caller: MayActOnModels, model_name: str, version: int, reason: Text = ""
    ) -> Response:
        try:
            done = steps.roll_back(request, caller, model_name=model_name, reason=reason)
        except LifecycleError as error:
            return shown(request, caller, model_name, version, sentence(error), form="rollback", reason=reason)
        return _back(model_name, done.to_version)

    @router.post("/models/{model_name}/{version}/propose")
    def propose(
        request: Request,
        caller: MayActOnModels,
        model_name: str,
        version: int,
        to: Text = "",
        report: Text = "",
        reason: Text = "",
        percent: Text = "",
        devices: Text = "",
        error_fraction: Text = "",
        latency_ratio: Text = "",
        disagreement_fraction: Text = "",
        least_studies: Text = "",
        drift: Text = "",
    ) -> Response:
        given = dict(zip(NUMBER_LIMITS, (error_fraction, latency_ratio, disagreement_fraction), strict=True))
        given["least_studies"] = least_studies
        try:
            canary = to == VersionState.CANARY
            share = number("the share", percent) if canary else None
            limits: dict[str, float | bool] = {}
            for name, text in given.items() if canary else ():
                value = number(LIMIT_WORDS[name], text)
                if value is not None:
                    limits[name] = value
            if canary and drift:
                limits["drift"] = drift == "true"
            steps.propose(
                request,
                caller,
                model_name=model_name,
                version=version,
                to_state=VersionState(to) if to in {str(each) for each in REQUESTED} else VersionState.DRAFT,
                comparison_key=report,
                reason=reason,
                fraction=None if share is None else share / 100,
                devices=re.split(r"[\n,]", devices) if canary else (),
                limits=limits,
            )
        except LifecycleError as error:
            typed = {"to": to, "report": report, "percent": percent, "devices": devices, "drift": drift, **given}
            return shown(request, caller, model_name, version, sentence(error), form="propose", reason=reason, **typed)
        return _back(model_name, version)


def _add_requests(router: APIRouter, store: Store, steps: ModelSteps, shown: Page) -> None:
    def version_of(request_key: str) -> tuple[str, int]:
        with store.read() as connection:
            found = find_request(connection, request_key)
        return found.model_name, found.version

    @router.post("/models/requests/{request_key}/approve")
    def approve(
        request: Request, caller: MayActOnModels, request_key: str, password: Password = "", reason: Text = ""
    ) -> Response:
        model_name, version = version_of(request_key)
        try:
            steps.approve(request, caller, request_key=request_key, password=password, reason=reason)
        except LifecycleError as error:
            return shown(request, caller, model_name, version, sentence(error), form=request_key, reason=reason)
        except HTTPException as error:
            if error.status_code != 429:
                raise
            return shown(request, caller, model_name, version, f"{error.detail}.", form=request_key, reason=reason)
        return _back(model_name, version)

    def end(request: Request, caller: Caller, request_key: str, reason: str, *, withdraw: bool) -> Response:
        model_name, version = version_of(request_key)
        try:
            steps.end_request(request, caller, request_key=request_key, reason=reason, withdraw=withdraw)
        except LifecycleError as error:
            return shown(request, caller, model_name, version, sentence(error), form=request_key, reason=reason)
        return _back(model_name, version)

    @router.post("/models/requests/{request_key}/refuse")
    def refuse(request: Request, caller: MayActOnModels, request_key: str, reason: Text = "") -> Response:
        return end(request, caller, request_key, reason, withdraw=False)

    @router.post("/models/requests/{request_key}/withdraw")
    def withdraw(request: Request, caller: MayActOnModels, request_key: str, reason: Text = "") -> Response:
        return end(request, caller, request_key, reason, withdraw=True)


def version_values(store: Store, data_dir: Path, model_name: str, version: int, *, deciding: bool) -> dict[str, Any]:
    """What the page of one version shows.

    Parameters
    ----------
    deciding
        Whether the reader may decide, so that what a request would lack is said.
    """
    detail = version_detail(store, model_name, version)
    state = VersionState(detail["state"])
    asks = [str(to) for to, action in REQUESTED.items() if (state, action) in TRANSITIONS]
    met = next((each["comparison_key"] for each in detail["comparisons"] if each["verdict"] == "met"), None)
    unmet: dict[str, tuple[str, ...]] = {}
    if deciding and asks:
        with store.read() as connection:
            for to in asks:
                unmet[to] = unmet_needs(
                    connection,
                    data_dir=data_dir,
                    model_name=model_name,
                    version=version,
                    to_state=VersionState(to),
                    comparison_key=met,
                )
    steps = [(name, *STEP_WORDS[Action(name)]) for name in detail["steps"]]
    return {
        "version": detail,
        "asks": asks,
        "unmet": unmet,
        "steps": steps,
        "monitor": monitor_report(store),
        "limit_words": LIMIT_WORDS,
        "demonstration": detail["demonstration"],
    }


def number(what: str, text: str) -> float | None:
    """A number that was typed; ``None`` where none was. Raises :class:`LifecycleError` where it is none."""
    text = text.strip().rstrip("%")
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise LifecycleError(f"{what}: a number is expected") from None


def sentence(error: Exception) -> str:
    """What an error says, as a sentence each."""
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in str(error).split("; ") if part)


def _back(model_name: str, version: int) -> Response:
    return RedirectResponse(f"/models/{model_name}/{version}", 303)
