"""Model versions as people and programs see them: states, who let them in, requests, comparisons, the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from gateway.lifecycle import TRANSITIONS, Action, Need, former_champion
from gateway.model_record import RecordEntry, entries
from gateway.store import Store
from gateway.store.models import (
    SERVING,
    KnownVersion,
    Request,
    RequestState,
    VersionState,
    find_version,
    known_versions,
    requests,
)
from gateway.store.monitoring import processes
from gateway.store.schema import comparison
from models.card import Card, load_bundle
from models.errors import BundleError

_LED_HERE = (Action.PROMOTE, Action.CANARY, Action.ROLL_BACK, Action.SET_UP)
_ORDER = (*SERVING, VersionState.DRAFT, VersionState.RETIRED)


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorReport:
    """What people have to know beside the versions themselves."""

    registry_error: str
    """Why the registry could not be followed; empty where it could."""
    registry_notices: tuple[str, ...]
    """Aliases that somebody moved in the registry itself."""
    record_problems: tuple[str, ...]
    """What is not as it was written in the record of model versions."""
    canaries: Mapping[tuple[str, int], Mapping[str, Any]]
    """Of each canary, ``figures``: what its guard has counted."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """All but the figures, for people."""
        away = (f"the model registry cannot be followed: {self.registry_error}; what runs goes on",)
        changed = (f"the record of model versions is not as it was written: {each}" for each in self.record_problems)
        return (*changed, *(away if self.registry_error else ()), *self.registry_notices)


def models_view(store: Store) -> list[dict[str, Any]]:
    """Every model with its versions, those that run first, then the newest; and its open requests."""
    names: dict[str, list[KnownVersion]] = {}
    for known in known_versions(store):
        names.setdefault(known.model_name, []).append(known)
    made = []
    with store.read() as connection:
        for name, versions in names.items():
            recorded = entries(connection, model_name=name)
            ordered = sorted(versions, key=lambda each: (_ORDER.index(each.state), -each.version))
            waiting = requests(connection, model_name=name, state=RequestState.OPEN)
            compared = comparisons(connection, model_name=name)
            made.append(
                {
                    "name": name,
                    "title": ordered[0].title,
                    "versions": [
                        version_view(each, recorded)
                        | {"comparisons": [row for row in compared if row["version"] == each.version][:3]}
                        for each in ordered
                    ],
                    "requests": [request_view(each, recorded) for each in waiting],
                    "former_champion": former_champion(connection, name),
                }
            )
    return made


def version_view(known: KnownVersion, recorded: tuple[RecordEntry, ...]) -> dict[str, Any]:
    """One version: what it may do, since when, and who let it."""
    last = next((each for each in reversed(recorded) if each.version == known.version and each.to_state), None)
    return {
        "model_name": known.model_name,
        "version": known.version,
        "state": str(known.state),
        "state_since": known.state_since,
        "was_champion": known.was_champion,
        "traffic": dict(known.traffic),
        "title": known.title,
        "demonstration": known.demonstration,
        "model_sha256": known.model_sha256,
        "bundle_sha256": known.bundle_sha256,
        "registered_at": known.registered_at,
        "registered_by": known.registered_by,
        "by": "" if last is None else _by(last),
        "reason": "" if last is None else last.reason,
    }


def _by(entry: RecordEntry) -> str:
    """Who is answerable for a state, in words."""
    if entry.action in _LED_HERE and "approved_by" in entry.detail:
        return f"approved by {' and '.join(entry.detail['approved_by'])}"
    if entry.action == Action.SET_UP:
        return "set up by the gateway"
    if entry.action == "register":
        return f"registered by {entry.actor}"
    return f"{entry.action} by {entry.actor}"


def request_view(request: Request, recorded: tuple[RecordEntry, ...]) -> dict[str, Any]:
    """One request, with what people said to it."""
    said = [each for each in recorded if each.request_key == request.request_key]
    signed = [each for each in said if each.action == "approve"]
    return {
        "request_key": request.request_key,
        "model_name": request.model_name,
        "version": request.version,
        "to_state": str(request.to_state),
        "traffic": dict(request.traffic),
        "comparison_key": request.comparison_key,
        "reason": request.reason,
        "proposed_by": request.proposed_by,
        "proposed_at": request.proposed_at,
        "state": str(request.state),
        "decided_at": request.decided_at,
        "approvals": [{"by": each.actor, "at": each.at, "reason": each.reason} for each in signed],
        "decision": next((entry_view(each) for each in said if each.action in ("refuse", "withdraw", "void")), None),
    }


def entry_view(entry: RecordEntry) -> dict[str, Any]:
    """One entry of the record."""
    return {name: getattr(entry, name) for name in RecordEntry.__dataclass_fields__}


def comparisons(connection: Connection, *, model_name: str, version: int | None = None) -> list[dict[str, Any]]:
    """Comparisons of a model's versions, newest first."""
    names = ("comparison_key", "version", "baseline_name", "baseline_version", "case_count", "verdict", "created_at")
    statement = select(*(comparison.c[name] for name in (*names, "bundle_sha256"))).where(
        comparison.c.model_name == model_name
    )
    if version is not None:
        statement = statement.where(comparison.c.version == version)
    return [dict(row) for row in connection.execute(statement.order_by(comparison.c.created_at.desc())).mappings()]


def version_detail(store: Store, model_name: str, version: int) -> dict[str, Any]:
    """Everything about one version: the card with its criteria, comparisons, requests, the record.

    Raises
    ------
    LifecycleError
        There is no such version.
    """
    with store.read() as connection:
        known = find_version(connection, model_name, version)
        recorded = entries(connection, model_name=model_name)
        asked = requests(connection, model_name=model_name, version=version)
        compared = comparisons(connection, model_name=model_name, version=version)
        former = former_champion(connection, model_name)
    return version_view(known, recorded) | {
        "card": card_view(known),
        "comparisons": compared,
        "requests": [request_view(each, recorded) for each in asked],
        "record": [entry_view(each) for each in reversed(recorded) if each.version == version],
        "steps": steps_of(known),
        "former_champion": former,
    }


def steps_of(known: KnownVersion) -> list[str]:
    """Actions that one person may take on a version as it stands, without a request; the way back aside."""
    allowed = [
        action for (state, action), entry in TRANSITIONS.items() if state is known.state and _is_free(entry.need)
    ]
    return [str(action) for action in allowed]


def _is_free(need: Need) -> bool:
    return need is Need.NOTHING


def card_view(known: KnownVersion) -> dict[str, Any] | None:
    """The card as JSON; ``None`` where the bundle cannot be read or was changed."""
    try:
        card: Card = load_bundle(Path(known.folder)).card
    except (BundleError, OSError):
        return None
    return card.model_dump(mode="json")


def monitor_report(store: Store) -> MonitorReport:
    """What the monitor said last of registry, record and canaries."""
    found: Mapping[str, Any] = next((row["detail"] for row in processes(store) if row["name"] == "monitor"), {})
    registry, record = found.get("registry") or {}, found.get("model_record") or {}
    return MonitorReport(
        registry_error=str(registry.get("error", "")),
        registry_notices=tuple(registry.get("notices", ())),
        record_problems=tuple(record.get("problems", ())),
        canaries={(each["model_name"], each["version"]): each for each in found.get("canaries") or ()},
    )
