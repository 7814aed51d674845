"""The JSON API, health and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import AwareDatetime, BaseModel, Field, StringConstraints
from sqlalchemy import select

from drift.alarms import AlarmState, change_state
from gateway.errors import StoreError
from gateway.roles import Permission
from gateway.settings import Settings
from gateway.store import Store
from gateway.store import deliveries as delivery_store
from gateway.store.models import known_versions
from gateway.store.monitoring import alarm_of, alarms, change_alarm, latest_drift
from gateway.store.retention import hold, release
from gateway.store.schema import alarm, quarantine
from gateway.store.studies import complete_now
from gateway.studies_view import PRIORITIES, UNGRADABLE, alarm_view, count_studies, list_studies, study_detail
from gateway.study import StudyState
from gateway.web.access import Access, Caller, MayActOnAlarms, MayActOnStudies, MayOwn, require
from gateway.web.health import judge_health
from gateway.web.metrics import CONTENT_TYPE, metrics_text
from gateway.web.rollout import hidden_versions, sees_shadows, shown

StateName = Literal["receiving", "queued", "processing", "judged", "not matched", "failed", "ungradable"]
PriorityName = Literal["HIGH", "MEDIUM", "LOW"]
assert {*StateName.__args__} == {*StudyState, UNGRADABLE} and {*PriorityName.__args__} == {*PRIORITIES}  # type: ignore[attr-defined]


SEES = [Depends(require(Permission.SEE))]
ANYONE = [Depends(require(Permission.OPEN))]


class Step(BaseModel):
    """A person's step on an alarm."""

    by: str = Field(default="", max_length=128, description="Who; needed, and heeded, only while log-in is off")
    cause: str = Field(default="", max_length=2000)


class Hold(BaseModel):
    """Why nothing of a study may expire."""

    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


def api_router(settings: Settings, store: Store) -> APIRouter:
    """Every route that answers with data."""
    router = APIRouter()
    _add_state_routes(router, settings, store)
    _add_study_routes(router, store)
    _add_monitoring_routes(router, store)
    return router


def _add_state_routes(router: APIRouter, settings: Settings, store: Store) -> None:
    @router.get(
        "/health", dependencies=ANYONE, tags=["state"], summary="Whether every process runs and the store answers"
    )
    def health() -> JSONResponse:
        found = judge_health(settings, store)
        return JSONResponse(found, 503 if found["status"] == "failing" else 200)

    @router.get("/metrics", dependencies=ANYONE, tags=["state"], summary="For Prometheus")
    def metrics() -> Response:
        return Response(metrics_text(store), media_type=CONTENT_TYPE)

    @router.get("/api/models", dependencies=SEES, tags=["state"], summary="Every model version, and what it may do")
    def models() -> list[dict[str, Any]]:
        hidden = {"folder"}
        return [
            {name: value for name, value in asdict(entry).items() if name not in hidden}
            for entry in known_versions(store)
        ]

    @router.get("/api/session", tags=["state"], summary="Who is logged in, and what they may do")
    def session(caller: MayOwn) -> dict[str, Any]:
        return {"name": caller.actor, "role": caller.role, "permissions": sorted(caller.permissions)}

    @router.get(
        "/api/events", dependencies=SEES, tags=["state"], summary="Server-sent events: the worklist has changed"
    )
    async def events(request: Request) -> StreamingResponse:
        access: Access = request.app.state.access

        async def still_allowed() -> bool:
            return (await access.identify(request)).may(Permission.SEE)

        return StreamingResponse(
            request.app.state.hub.stream(still_allowed),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )


def _add_study_routes(router: APIRouter, store: Store) -> None:
    @router.get("/api/studies", dependencies=SEES, tags=["studies"], summary="Studies, most urgent first")
    def studies(
        state: StateName | None = None,
        priority: PriorityName | None = None,
        q: Annotated[str, Query(max_length=200)] = "",
        since: AwareDatetime | None = None,
        order: Literal["urgency", "newest"] = "urgency",
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    ) -> dict[str, Any]:
        total = count_studies(store, state=state, priority=priority, query=q, since=since)
        found = list_studies(
            store, state=state, priority=priority, query=q, since=since, limit=limit, offset=offset, order=order
        )
        return {"studies": found, "total": total}

    @router.get("/api/studies/{study_key}", dependencies=SEES, tags=["studies"], summary="One study")
    def study(request: Request, study_key: str) -> dict[str, Any]:
        return study_detail(store, study_key, shadows=sees_shadows(request))

    @router.post("/api/studies/{study_key}/complete", tags=["studies"], summary="Judge a study now, or again")
    def complete(request: Request, caller: MayActOnStudies, study_key: str) -> dict[str, Any]:
        study_detail(store, study_key)
        complete_now(store, study_key, datetime.now(UTC))
        access_of(request).note(caller, "judge now", study_key)
        return study_detail(store, study_key)

    @router.post("/api/studies/{study_key}/hold", tags=["studies"], summary="Let nothing of a study expire")
    def hold_study(caller: MayActOnStudies, study_key: str, why: Hold) -> dict[str, Any]:
        hold(store, study_key, by=caller.actor, reason=why.reason, now=datetime.now(UTC))
        return study_detail(store, study_key)

    @router.post("/api/studies/{study_key}/release", tags=["studies"], summary="Let a study expire again")
    def release_study(caller: MayActOnStudies, study_key: str) -> dict[str, Any]:
        release(store, study_key, by=caller.actor, now=datetime.now(UTC))
        return study_detail(store, study_key)

    @router.post("/api/deliveries/{delivery_id}/resend", tags=["studies"], summary="Send a result again")
    def resend(request: Request, caller: MayActOnStudies, delivery_id: int) -> dict[str, Any]:
        if not 0 < delivery_id < 2**31:
            raise StoreError(f"no delivery {delivery_id}")
        delivery_store.resend(store, delivery_id, datetime.now(UTC))
        access_of(request).note(caller, "resend", str(delivery_id))
        return {"delivery_id": delivery_id, "state": "pending"}


def _add_monitoring_routes(router: APIRouter, store: Store) -> None:
    @router.get("/api/alarms", dependencies=SEES, tags=["monitoring"], summary="Alarms, newest first")
    def list_alarms(request: Request, closed: bool = True) -> list[dict[str, Any]]:
        hidden = hidden_versions(store, shadows=sees_shadows(request))
        return [alarm_view(row) for row in shown(alarms(store, closed=closed), hidden)]

    @router.post("/api/alarms/{alarm_key}/acknowledge", tags=["monitoring"], summary="Take an alarm on")
    def acknowledge(request: Request, caller: MayActOnAlarms, alarm_key: str, step: Step) -> dict[str, Any]:
        changed = take_step(store, alarm_key, AlarmState.ACKNOWLEDGED, by=_by(caller, step), cause=step.cause)
        access_of(request).note(caller, "alarm acknowledged", alarm_key, step.cause)
        return changed

    @router.post("/api/alarms/{alarm_key}/close", tags=["monitoring"], summary="Close an alarm, with its cause")
    def close(request: Request, caller: MayActOnAlarms, alarm_key: str, step: Step) -> dict[str, Any]:
        changed = take_step(store, alarm_key, AlarmState.CLOSED, by=_by(caller, step), cause=step.cause)
        access_of(request).note(caller, "alarm closed", alarm_key, step.cause)
        return changed

    @router.get(
        "/api/drift",
        dependencies=SEES,
        tags=["monitoring"],
        summary="The newest drift test of every model, scope and kind",
    )
    def drift(request: Request) -> list[dict[str, Any]]:
        hidden = hidden_versions(store, shadows=sees_shadows(request))
        return [alarm_view(row) for row in shown(latest_drift(store), hidden)]

    @router.get(
        "/api/quarantine",
        dependencies=SEES,
        tags=["monitoring"],
        summary="Objects that were not accepted, newest first",
    )
    def quarantined(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100, offset: Annotated[int, Query(ge=0, le=2**31)] = 0
    ) -> list[dict[str, Any]]:
        return list_quarantine(store, limit=limit, offset=offset)


def list_quarantine(store: Store, *, limit: int, offset: int) -> list[dict[str, Any]]:
    """Objects that were not accepted, newest first."""
    columns = [quarantine.c[name] for name in ("quarantine_key", "reason", "size_bytes", "calling_ae_title")]
    statement = select(*columns, quarantine.c.peer_address, quarantine.c.received_at)
    statement = statement.order_by(quarantine.c.received_at.desc()).limit(limit).offset(offset)
    with store.read() as connection:
        return [alarm_view(dict(row)) for row in connection.execute(statement).mappings()]


def access_of(request: Request) -> Access:
    """The application's log-in."""
    access: Access = request.app.state.access
    return access


def _by(caller: Caller, step: Step) -> str:
    """Who takes the step: who is logged in, and the name that was typed only where nobody is."""
    if caller.kind != "anyone":
        return caller.actor
    if not step.by:
        raise HTTPException(422, "body.by: say who, while log-in is off")
    return step.by


def take_step(store: Store, alarm_key: str, to: AlarmState, *, by: str, cause: str) -> dict[str, Any]:
    """A person's step on an alarm.

    Raises
    ------
    StoreError
        There is no alarm of that key.
    AlarmError
        It is not in a state that allows the step, or closes without a cause.
    """
    row = _alarm_row(store, alarm_key)
    changed = change_state(alarm_of(row), to, by=by, at=datetime.now(UTC), cause=cause)
    change_alarm(
        store,
        alarm_key,
        {
            "state": changed.state,
            "handled_by": changed.changed_by,
            "handling": changed.cause,
            "handled_at": changed.changed_at,
        },
    )
    return alarm_view(_alarm_row(store, alarm_key))


def _alarm_row(store: Store, alarm_key: str) -> Mapping[str, Any]:
    with store.read() as connection:
        row = connection.execute(select(alarm).where(alarm.c.alarm_key == alarm_key)).mappings().one_or_none()
    if row is None:
        raise StoreError(f"no alarm {alarm_key}")
    return dict(row)
