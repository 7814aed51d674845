"""What pages and API say of shadows, canaries and circuit breakers, and to whom.

What a version says in the shadow is for engineers: who may choose which versions run. Everybody else sees no
prediction, heat map, alarm or drift test of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import Request
from sqlalchemy import func, select

from gateway.errors import StoreError
from gateway.roles import Permission
from gateway.store import Store
from gateway.store.models import VersionState, known_versions, served_versions
from gateway.store.monitoring import processes
from gateway.store.predictions import OUTWARD
from gateway.store.schema import prediction
from gateway.web.health import is_up

Versions = frozenset[tuple[str, int]]


def sees_shadows(request: Request) -> bool:
    """Whether the caller may choose which versions run, and so see what those say that only run beside."""
    return bool(request.state.caller.may(Permission.MODELS))


def hidden_versions(store: Store, *, shadows: bool) -> Versions:
    """Versions that nobody outside has seen a prediction of; none where `shadows` may be seen."""
    if shadows:
        return frozenset()
    unseen = [
        (entry.model_name, entry.version)
        for entry in known_versions(store)
        if entry.state in (VersionState.DRAFT, VersionState.SHADOW) and not entry.was_champion
    ]
    with store.read() as connection:
        return frozenset(
            (name, version)
            for name, version in unseen
            if connection.execute(
                select(prediction.c.prediction_id)
                .where(
                    prediction.c.role.in_(("canary", "champion")),
                    prediction.c.model_name == name,
                    prediction.c.model_version == version,
                )
                .limit(1)
            ).first()
            is None
        )


def shown(rows: Iterable[Mapping[str, Any]], hidden: Versions) -> list[Mapping[str, Any]]:
    """Rows of alarms or drift tests without those of versions that the caller may not know of."""
    return [row for row in rows if (row["model_name"], row["model_version"]) not in hidden]


def refuse_shadow(
    request: Request, store: Store, instance_key: str, frame_index: int, model_name: str, version: int
) -> None:
    """Raise :class:`StoreError`, as if it were not there, for the heat map of a shadow that the caller may not see."""
    if sees_shadows(request):
        return
    said = select(prediction.c.role).where(
        prediction.c.instance_key == instance_key,
        prediction.c.frame_index == frame_index,
        prediction.c.model_name == model_name,
        prediction.c.model_version == version,
    )
    with store.read() as connection:
        role = connection.execute(said).scalar_one_or_none()
    if role == "shadow":
        raise StoreError("no such picture")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing that whoever reads the worklist has to know of the versions that run."""

    kind: str
    """``breaker``, ``canary`` or ``shadow``."""
    text: str
    detail: str = ""


def open_breakers(store: Store, now: datetime) -> list[dict[str, Any]]:
    """Breakers that are not closed, as workers last reported them, each with the worker's name."""
    return [
        {**each, "worker": row["name"]}
        for row in processes(store)
        if is_up(row["name"], row["seen_at"], now)
        for each in row["detail"].get("breakers", ())
        if each["state"] != "closed"
    ]


def rollout_lines(store: Store, policy: str, *, shadows: bool) -> list[Line]:
    """Open breakers and canaries, and for engineers shadows, with their figures; `policy` is the breakers'."""
    now = datetime.now(UTC)
    lines = [breaker_line(each, policy) for each in open_breakers(store, now) if shadows or each["role"] != "shadow"]
    pairs = pair_counts(store) if shadows else {}  # reads an index of all that shadows said
    for entry in served_versions(store):
        if entry.state is VersionState.CANARY:
            lines.append(
                Line(
                    kind="canary",
                    text=f"{entry.model_name} {entry.version} is a canary: it judges {traffic_words(entry.traffic)}.",
                )
            )
        elif entry.state is VersionState.SHADOW and shadows:
            count, disagreeing = pairs.get((entry.model_name, entry.version), (0, 0))
            part = f", {disagreeing / count:.1%}" if count else ""
            pictures = f"{count} {'picture' if count == 1 else 'pictures'} paired with what was said"
            lines.append(
                Line(
                    kind="shadow",
                    text=f"{entry.model_name} {entry.version} runs in the shadow: {pictures}, {disagreeing} decided "
                    f"otherwise{part}.",
                )
            )
    return lines


def rollout_token(store: Store) -> str:
    """A text that is another one after what :func:`rollout_lines` says has changed, figures aside."""
    breakers = [
        (each["worker"], each["model"], each["version"], each["state"])
        for each in open_breakers(store, datetime.now(UTC))
    ]
    served = [(each.model_name, each.version, each.state.value, dict(each.traffic)) for each in served_versions(store)]
    return repr((breakers, served))


def breaker_line(each: Mapping[str, Any], policy: str) -> Line:
    """One breaker that is not closed, for a reader."""
    version = f"{each['model']} {each['version']}"
    then = "is being tried again" if each["state"] == "half open" else f"is tried again in {each['wait_s']:.0f} s"
    meanwhile = {
        "champion": "studies wait" if policy == "wait" else "studies go on without it, marked as not judged",
        "canary": "the champion judges its studies",
        "shadow": "it misses studies",
    }[each["role"]]
    return Line(
        kind="breaker",
        text=f"{version} is left alone by {each['worker']} after failures and {then}; meanwhile {meanwhile}.",
        detail=str(each["reason"]),
    )


def traffic_words(traffic: Mapping[str, Any]) -> str:
    """Who gets a canary."""
    parts = []
    fraction = float(traffic.get("fraction") or 0.0)
    if fraction:
        parts.append(f"{fraction:.3g} of all studies" if fraction < 0.01 else f"{fraction:.0%} of all studies")
    devices = list(traffic.get("devices") or ())
    if devices:
        parts.append(f"those of {', '.join(devices)}")
    return " and ".join(parts) or "no studies"


def pair_counts(store: Store) -> dict[tuple[str, int], tuple[int, int]]:
    """Model name and version -> pictures that it read in the shadow of another's judgement, and decided otherwise."""
    columns = (prediction.c.model_name, prediction.c.model_version, prediction.c.agrees)
    statement = select(*columns, func.count()).where(~OUTWARD, prediction.c.agrees.is_not(None)).group_by(*columns)
    found: dict[tuple[str, int], tuple[int, int]] = {}
    with store.read() as connection:
        for name, version, agrees, count in connection.execute(statement):
            pairs, otherwise = found.get((name, version), (0, 0))
            found[name, version] = (pairs + count, otherwise + (0 if agrees else count))
    return found
