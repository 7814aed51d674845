"""What readers say, taken in from the viewer and by programs; and how versions do on it, as it was computed last.

Nothing is computed here: the web process loads neither scikit-learn nor NannyML.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment
from pydantic import BaseModel, Field, StringConstraints

from gateway.errors import TruthError
from gateway.reads import Read, Verdict, take_read
from gateway.roles import Permission
from gateway.settings import TruthSettings
from gateway.store import Store
from gateway.store.models import known_versions
from gateway.store.performance import PerformanceRow, performance_rows
from gateway.store.truth import KeptWord, words
from gateway.studies_view import study_detail
from gateway.truth import LONGEST_COMMENT, LONGEST_NAME, LONGEST_READER
from gateway.web.access import MayRead, require
from gateway.web.api import access_of
from gateway.web.render import render
from gateway.web.rollout import hidden_versions, sees_shadows

SHOWN_FIGURES: Mapping[str, str] = {
    "auc_roc": "AUC",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
}
"""Of a version, in this order: name in the stored figures -> heading."""
PAIRED_FIGURES: Mapping[str, str] = {name: SHOWN_FIGURES[name] for name in ("auc_roc", "sensitivity", "specificity")}
_SEES = [Depends(require(Permission.SEE))]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST_NAME)]


class SaidRead(BaseModel):
    """What a study or an image really shows."""

    model: Name
    finding: Name
    verdict: Verdict
    instance_key: str = Field(default="", pattern=r"^([0-9a-f]{32})?$", description="One image; empty: the study")
    laterality: Literal["", "R", "L"] = ""
    version: int | None = Field(default=None, ge=1, description="That was shown; 409 where it is another one by now")
    comment: Annotated[str, StringConstraints(strip_whitespace=True, max_length=LONGEST_COMMENT)] = ""
    reader: Annotated[str, StringConstraints(strip_whitespace=True, max_length=LONGEST_READER)] = Field(
        default="", description="Who said so; heeded for tokens only, an account speaks for itself"
    )


def truth_router(settings: TruthSettings, store: Store, environment: Environment) -> APIRouter:
    """Every route about truth and performance."""
    router = APIRouter()

    @router.get(
        "/api/studies/{study_key}/truth", dependencies=_SEES, tags=["truth"], summary="What readers said of a study"
    )
    def said(study_key: str) -> list[dict[str, Any]]:
        study_detail(store, study_key)
        return [word.view() for word in words(store, study_key=study_key)]

    @router.post(
        "/api/studies/{study_key}/truth", tags=["truth"], summary="Say what a study shows: agree, disagree, or a value"
    )
    def say(request: Request, caller: MayRead, study_key: str, body: SaidRead) -> dict[str, Any]:
        is_token = caller.kind == "token"
        if body.reader and not is_token:
            raise TruthError("an account speaks for itself; reader is for tokens")
        outcome = take_read(
            store,
            study_key,
            Read(
                model_name=body.model,
                finding_name=body.finding,
                verdict=body.verdict,
                instance_key=body.instance_key,
                laterality=body.laterality,
                version=body.version,
                comment=body.comment,
            ),
            reader=(body.reader or caller.actor) if is_token else caller.actor,
            source="api" if is_token else "viewer",
            now=access_of(request).clock(),
            actor=caller.actor,
            address=caller.address,
        )
        return {"taken": outcome, "words": [word.view() for word in words(store, study_key=study_key)]}

    @router.get(
        "/api/performance", dependencies=_SEES, tags=["truth"], summary="How versions do, as it was computed last"
    )
    def computed(request: Request, model: str | None = None) -> list[dict[str, Any]]:
        rows = performance_page_rows(store, shadows=sees_shadows(request))
        return [row for each in rows if model in (None, each["model_name"]) for row in each["versions"]]

    @router.get("/performance", include_in_schema=False, dependencies=_SEES)
    def page(request: Request) -> HTMLResponse:
        values: dict[str, Any] = {
            "findings": performance_page_rows(store, shadows=sees_shadows(request)),
            "figures": SHOWN_FIGURES,
            "paired_figures": PAIRED_FIGURES,
            "rule": settings.rule,
            "least_cases": settings.least_cases,
            "page": "performance",
        }
        return render(environment, request, "performance.html", **values)

    return router


def performance_view(row: PerformanceRow) -> dict[str, Any]:
    """A stored row as plain values."""
    return {
        "model_name": row.model_name,
        "model_version": row.model_version,
        "finding_name": row.finding_name,
        "figures": row.figures,
        "estimate": row.estimate,
        "computed_at": row.computed_at.isoformat(),
    }


def performance_page_rows(store: Store, *, shadows: bool) -> list[dict[str, Any]]:
    """By model and finding, its versions: the champion first, then what else runs, then the rest from the newest.

    Parameters
    ----------
    shadows
        With versions that have not been shown to anybody; a reader who knows how they do is no independent reader.
    """
    states = {(each.model_name, each.version): each.state.value for each in known_versions(store)}
    hidden = hidden_versions(store, shadows=shadows)
    order = ("champion", "canary", "shadow")
    grouped: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in performance_rows(store):
        state = states.get((row.model_name, row.model_version), "gone")
        if (row.model_name, row.model_version) in hidden:
            continue
        grouped[row.model_name, row.finding_name].append({**performance_view(row), "state": state})

    def place(row: Mapping[str, Any]) -> tuple[int, int]:
        state = row["state"]
        return order.index(state) if state in order else len(order), -row["model_version"]

    return [
        {
            "model_name": model_name,
            "finding_name": finding_name,
            "versions": sorted(rows, key=place),
            "computed_at": max(row["computed_at"] for row in rows),
        }
        for (model_name, finding_name), rows in grouped.items()
    ]


def words_by_image(said: Iterable[KeptWord]) -> Mapping[tuple[str, str, str], list[dict[str, Any]]]:
    """(instance key or empty, model, finding) -> words, for the viewer."""
    found: defaultdict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for word in said:
        found[word.instance_key, word.model_name, word.finding_name].append(word.view())
    return dict(found)
