"""The pages, rendered here; the browser gets no data but what it shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment

from gateway.settings import Settings
from gateway.store import Store
from gateway.store.monitoring import alarms, drift_history, latest_drift
from gateway.store.truth import words
from gateway.studies_view import UNGRADABLE, alarm_view, count_studies, list_studies, study_detail
from gateway.study import StudyState
from gateway.web.api import SEES, PriorityName, StateName, list_quarantine
from gateway.web.health import judge_health
from gateway.web.plots import history_plot
from gateway.web.render import render
from gateway.web.rollout import hidden_versions, rollout_lines, sees_shadows, shown
from gateway.web.truth_pages import words_by_image

PAGE_SIZE = 100
PERIODS: Mapping[str, tuple[str, timedelta | None]] = {
    "": ("any time", None),
    "day": ("last 24 hours", timedelta(days=1)),
    "week": ("last 7 days", timedelta(days=7)),
}
HISTORY = 60
_SEVERITIES = ("info", "warning", "critical")


def pages_router(settings: Settings, store: Store, environment: Environment) -> APIRouter:
    """Every route that answers with a page."""
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse, dependencies=SEES)

    def page(request: Request, template: str, **values: Any) -> HTMLResponse:
        return render(environment, request, template, **values)

    @router.get("/")
    def worklist(
        request: Request,
        state: StateName | Literal[""] = "",
        priority: PriorityName | Literal[""] = "",
        q: Annotated[str, Query(max_length=200)] = "",
        since: Literal["", "day", "week"] = "",
        order: Literal["urgency", "newest"] = "urgency",
        number: Annotated[int, Query(ge=1, le=10**6, alias="page")] = 1,
    ) -> HTMLResponse:
        chosen = {"state": state, "priority": priority, "q": q, "since": since, "order": order}
        rollout = rollout_lines(store, settings.breaker.policy, shadows=sees_shadows(request))
        return page(request, "worklist.html", **worklist_values(store, chosen, number), rollout=rollout)

    @router.get("/studies/{study_key}")
    def viewer(request: Request, study_key: str) -> HTMLResponse:
        study = study_detail(store, study_key, shadows=sees_shadows(request))
        said = words_by_image(words(store, study_key=study_key))
        return page(request, "viewer.html", study=study, images=viewer_images(study), said=said, page="viewer")

    @router.get("/drift")
    def drift(request: Request) -> HTMLResponse:
        hidden = hidden_versions(store, shadows=sees_shadows(request))
        listed = [alarm_view(row) for row in shown(alarms(store), hidden)]
        return page(request, "drift.html", monitors=_monitors(store, hidden), alarms=listed, page="drift")

    @router.get("/quarantine")
    def quarantine(request: Request) -> HTMLResponse:
        rows = list_quarantine(store, limit=500, offset=0)
        return page(request, "quarantine.html", rows=rows, page="quarantine")

    @router.get("/processes")
    def processes(request: Request) -> HTMLResponse:
        return page(request, "processes.html", health=judge_health(settings, store), page="processes")

    @router.get("/docs")
    def docs(request: Request) -> HTMLResponse:
        app: FastAPI = request.app
        return page(request, "docs.html", schema=app.openapi(), routes=_described(app.openapi()), page="docs")

    @router.get("/openapi.json", response_class=JSONResponse)
    def description(request: Request) -> dict[str, Any]:
        app: FastAPI = request.app
        return app.openapi()

    return router


def worklist_values(store: Store, chosen: Mapping[str, str], page: int) -> dict[str, Any]:
    """What the worklist shows, filtered as `chosen`."""
    period = PERIODS[chosen["since"]][1]
    filters: dict[str, Any] = {
        "state": chosen["state"] or None,
        "priority": chosen["priority"] or None,
        "query": chosen["q"],
        "since": None if period is None else datetime.now(UTC) - period,
    }
    total = count_studies(store, **filters)
    pages = max(1, -(-total // PAGE_SIZE))
    page = min(page, pages)
    found = list_studies(store, **filters, limit=PAGE_SIZE, offset=(page - 1) * PAGE_SIZE, order=chosen["order"])
    kept = {name: value for name, value in chosen.items() if value and (name, value) != ("order", "urgency")}
    return {
        "rows": [study_row(study) for study in found],
        "total": total,
        "number": page,
        "pages": pages,
        "first": (page - 1) * PAGE_SIZE + 1,
        "address": lambda number: "?" + urlencode({**kept, "page": number}),
        "chosen": chosen,
        "filtered": bool(kept.keys() - {"order"}),
        "states": [*StudyState, UNGRADABLE],
        "periods": {name: title for name, (title, _) in PERIODS.items()},
        "demonstration": _is_demonstration(found),
        "page": "worklist",
    }


def _is_demonstration(studies: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a model that has no clinical validation may have spoken: as long as none other has."""
    said = [prediction["demonstration"] for study in studies for prediction in study["predictions"]]
    return not said or any(said)


def study_row(study: dict[str, Any]) -> dict[str, Any]:
    """One study as the worklist shows it; ``digest`` is another one when anything of it has changed."""
    current = [each for each in study["predictions"] if not each["superseded"]]
    model_findings = [each for each in study["findings"] if each["kind"] == "model"]
    acquisition = [each for each in study["findings"] if each["kind"] == "acquisition"]
    severities = [each["severity"] for each in acquisition]
    states = [each["state"] for each in study["deliveries"]]
    content = json.dumps(study, sort_keys=True, default=str).encode()
    return {
        **study,
        "digest": hashlib.blake2s(content, digest_size=8).hexdigest(),
        "findings": sorted(model_findings, key=lambda each: (each["state"] != "present", -each["score"])),
        "models": sorted({f"{each['model_name']} {each['model_version']}" for each in current}),
        "thumbnails": _distinct_images(current)[:2],
        "ungradable": sorted({reason for each in current for reason in each["ungradable_reasons"]}),
        "acquisition": acquisition,
        "acquisition_severity": max(severities, key=_SEVERITIES.index, default=""),
        "acquisition_counts": ", ".join(
            f"{severities.count(each)} {each}" for each in reversed(_SEVERITIES) if each in severities
        ),
        "drift": worst_drift(current),
        "delivered": states.count("delivered"),
        "pending": states.count("pending"),
        "dead": states.count("dead"),
        "delivery_errors": sorted({each["last_error"] for each in study["deliveries"] if each["last_error"]}),
    }


def _distinct_images(predictions: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: dict[tuple[str, int], dict[str, Any]] = {}
    for each in predictions:
        known = seen.setdefault((each["instance_key"], each["frame_index"]), each)
        if not known["has_heat_map"] and each["has_heat_map"]:
            seen[each["instance_key"], each["frame_index"]] = each
    return list(seen.values())


def worst_drift(predictions: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The drift state that a reader must know: drift before not judged before none."""
    order = ("no drift", "not judged", "drift")
    found = [each["drift"] for each in predictions]
    return max(found, key=lambda each: order.index(each["state"]), default=None)


def viewer_images(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each picture of a study with what models said of it; pictures that no model read come too."""
    reasons = {each["instance_key"]: each["reason"] for each in study["not_judged"]}
    made = []
    for image in study["images"]:
        said = [each for each in study["predictions"] if each["instance_key"] == image["instance_key"]]
        for frame_index in sorted({each["frame_index"] for each in said} or {0}):
            here = [each for each in said if each["frame_index"] == frame_index]
            made.append(
                {
                    **image,
                    "frame_index": frame_index,
                    "predictions": sorted(here, key=lambda each: each["superseded"]),
                    "heat": next((each for each in here if each["has_heat_map"] and not each["superseded"]), None),
                    "not_judged_reason": reasons.get(image["instance_key"], ""),
                    "shadows": [
                        each
                        for each in study.get("shadows", ())
                        if (each["instance_key"], each["frame_index"]) == (image["instance_key"], frame_index)
                    ],
                }
            )
    return made


def _monitors(store: Store, hidden: frozenset[tuple[str, int]]) -> list[dict[str, Any]]:
    """Every monitor with its newest result and a plot of those before; those that found drift come first."""
    made = []
    for row in shown(latest_drift(store), hidden):
        history = drift_history(
            store,
            model_name=row["model_name"],
            model_version=row["model_version"],
            scope=row["scope"],
            kind=row["kind"],
            limit=HISTORY,
        )
        plot = history_plot([each["p_value"] for each in history], row["threshold_p"])
        made.append({**alarm_view(row), "plot": plot})
    order = {"drift": 0, "not judged": 1, "no drift": 2}
    return sorted(
        made,
        key=lambda each: (
            order.get(each["state"], 1),
            each["model_name"],
            each["model_version"],
            each["scope"] != "all",
            each["scope"],
            each["kind"],
        ),
    )


def _described(schema: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Routes of the OpenAPI description by tag."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            name = str(body.get("$ref", "")).rsplit("/", 1)[-1]
            properties = schema.get("components", {}).get("schemas", {}).get(name, {}).get("properties", {})
            parameters = operation.get("parameters", [])
            found.setdefault(operation.get("tags", ["other"])[0], []).append(
                {
                    "path": path,
                    "method": method.upper(),
                    "summary": operation.get("summary", ""),
                    "needs": operation["x-permission"],
                    "parameters": [{**each, "type": type_words(each["schema"])} for each in parameters],
                    "body": [
                        {"name": key, "type": type_words(value), "default": value.get("default")}
                        for key, value in properties.items()
                    ],
                    "can_open": method == "get" and "{" not in path and "events" not in path,
                }
            )
    return found


def type_words(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(type_words(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return repr(schema["const"])
    words = str(schema.get("format") or schema.get("type", "any"))
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None:
        words += f" from {low}"
    if high is not None:
        words += f" to {high}"
    return words
