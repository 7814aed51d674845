"""Studies as they are read: by the worklist, the API, ``gateway studies`` and the demo.

A read model: rows of the store put together, nothing computed that a model or a monitor should have said. The number of
statements is the same for one study and for ten thousand.

What ran in the shadow is in none of it, but for :func:`study_detail` where an engineer asks for it by name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Select,
    Text,
    and_,
    case,
    cast,
    column,
    exists,
    func,
    or_,
    select,
)

from gateway.errors import StoreError
from gateway.store.engine import Store
from gateway.store.predictions import OUTWARD
from gateway.store.schema import alarm, delivery, drift_result, instance, model_failure, prediction, result, study
from gateway.study import StudyState

PRIORITIES = ("LOW", "MEDIUM", "HIGH")
"""By the number in the store."""
UNGRADABLE = "ungradable"
"""What ``state`` may be asked for beside the states of a study: judged, but a picture was too poor to say anything."""
ORDERS = ("urgency", "newest")
ALL_DEVICES = "all"
"""As ``drift.monitors.ALL_DEVICES``."""
EMBEDDING = "embedding"
"""As ``drift.monitors.DriftKind.EMBEDDING``."""

Row = Mapping[str, Any]
_TIMES = ("first_received_at", "last_received_at", "complete_at", "queued_at", "judged_at")
_TEXTS = (
    "study_key",
    "study_instance_uid",
    "state",
    "reason",
    "patient_name",
    "patient_id",
    "patient_birth_date",
    "patient_sex",
    "accession_number",
    "study_date",
    "study_time",
    "study_description",
    "modality",
    "instance_count",
    "revision",
)


def list_studies(
    store: Store,
    *,
    state: str | None = None,
    priority: str | None = None,
    query: str = "",
    since: datetime | None = None,
    limit: int = 100,
    offset: int = 0,
    order: str = "urgency",
) -> list[dict[str, Any]]:
    """One page of studies, most urgent first: by priority, then score, then waiting time.

    Parameters
    ----------
    state
        A state of :class:`~gateway.study.StudyState`, or :data:`UNGRADABLE`.
    priority
        ``HIGH``, ``MEDIUM`` or ``LOW``.
    query
        Words that all must occur in name, patient ID, accession number, description or a key.
    since
        Only studies of which an image came at or after this.
    order
        ``urgency``, or ``newest``: by the last image's arrival.

    Raises
    ------
    StoreError
        The store cannot be reached.
    """
    condition = _matches(state, priority, query, since)
    statement = _ordered(store, order).where(condition).limit(limit).offset(offset)
    with store.read() as connection:
        rows = connection.execute(statement).mappings().all()
        return _assemble(connection, rows, [row["study_key"] for row in rows])


def count_studies(
    store: Store,
    *,
    state: str | None = None,
    priority: str | None = None,
    query: str = "",
    since: datetime | None = None,
) -> int:
    """How many studies :func:`list_studies` would give without a limit."""
    with store.read() as connection:
        found = connection.execute(
            select(func.count()).select_from(study).where(_matches(state, priority, query, since))
        )
        return int(found.scalar_one())


def every_study(store: Store) -> list[dict[str, Any]]:
    """All studies, most urgent first."""
    with store.read() as connection:
        rows = connection.execute(_ordered(store, "urgency")).mappings().all()
        return _assemble(connection, rows, None)


def study_detail(store: Store, study_key: str, *, shadows: bool = False) -> dict[str, Any]:
    """One study with its images.

    Beside what :func:`list_studies` gives, ``images``: instance_key, sop_instance_uid, sop_class_uid, modality, rule,
    received_at, expired_at (the original was deleted; ``None``: it is there), in order of arrival. With `shadows`, for
    engineers alone: ``shadows``, predictions of versions that ran unseen, and ``failures``, versions that gave none.

    Raises
    ------
    StoreError
        There is no study of that key, or the store cannot be reached.
    """
    images = (
        select(
            *(instance.c[name] for name in ("instance_key", "sop_instance_uid", "sop_class_uid", "modality", "rule")),
            instance.c.received_at,
            instance.c.removed_at.label("expired_at"),
        )
        .where(instance.c.study_key == study_key)
        .order_by(instance.c.received_at, instance.c.instance_key)
    )
    with store.read() as connection:
        rows = connection.execute(select(study).where(study.c.study_key == study_key)).mappings().all()
        if not rows:
            raise StoreError(f"no study {study_key}")
        found = _assemble(connection, rows, [study_key])[0]
        found["images"] = [
            {**row, "received_at": row["received_at"].isoformat(), "expired_at": _iso(row["expired_at"])}
            for row in connection.execute(images).mappings()
        ]
        if shadows:
            found["shadows"] = _predictions(connection, [study_key], {}, ~OUTWARD).get(study_key, [])
            found["failures"] = _failures(connection, study_key)
    return found


def _failures(connection: Connection, study_key: str) -> list[dict[str, Any]]:
    columns = [model_failure.c[name] for name in ("model_name", "version", "role", "reason", "at")]
    rows = connection.execute(
        select(*columns).where(model_failure.c.study_key == study_key).order_by(model_failure.c.failure_id)
    )
    return [alarm_view(dict(row)) for row in rows.mappings()]


def _matches(state: str | None, priority: str | None, query: str, since: datetime | None) -> ColumnElement[bool]:
    conditions: list[ColumnElement[bool]] = [study.c.study_key.is_not(None)]
    if state == UNGRADABLE:
        too_poor = and_(
            prediction.c.study_key == study.c.study_key,
            cast(prediction.c.ungradable_reasons, Text) != "[]",
            OUTWARD,
        )
        conditions.append(exists().where(too_poor))
    elif state:
        conditions.append(study.c.state == StudyState(state))
    if priority:
        conditions.append(study.c.priority == PRIORITIES.index(priority))
    if since is not None:
        conditions.append(study.c.last_received_at >= since)
    searched = ("patient_name", "patient_id", "accession_number", "study_description", "study_instance_uid")
    for word in query.split():
        found_in = [study.c[name].icontains(word, autoescape=True) for name in (*searched, "study_key")]
        conditions.append(or_(*found_in))
    return and_(*conditions)


def _ordered(store: Store, order: str) -> Select[Any]:
    if order == "newest":
        return select(study).order_by(study.c.last_received_at.desc(), study.c.study_key)
    return select(study).order_by(
        study.c.priority.desc(), _highest_score(store).desc(), study.c.first_received_at, study.c.study_key
    )


def _highest_score(store: Store) -> ColumnElement[Any]:
    """The highest score of a finding that is present; not read for LOW priority, where nothing is present."""
    unnest = func.json_each if store.engine.dialect.name == "sqlite" else func.json_array_elements
    each = unnest(prediction.c.findings).table_valued(column("value", JSON))
    score = (
        select(func.max(each.c.value["score"].as_float()))
        .select_from(prediction.join(each, each.c.value["present"].as_boolean()))
        .where(
            prediction.c.study_key == study.c.study_key,
            cast(prediction.c.ungradable_reasons, Text) == "[]",
            OUTWARD,
        )
        .correlate(study)
        .scalar_subquery()
    )
    return case((study.c.priority > 0, func.coalesce(score, 0.0)), else_=0.0)


def _assemble(connection: Connection, rows: Sequence[Any], keys: list[str] | None) -> list[dict[str, Any]]:
    """Studies with all that belongs to them; `keys` of ``None`` means that `rows` are all studies."""
    drift = _newest_drift(connection)
    alarms = [dict(row) for row in connection.execute(select(alarm).where(alarm.c.state != "closed")).mappings()]
    predictions = _predictions(connection, keys, drift)
    deliveries = _deliveries(connection, keys)
    not_judged = _not_judged(connection, keys)
    return [
        _study(
            row,
            predictions.get(row["study_key"], []),
            deliveries.get(row["study_key"], []),
            not_judged.get(row["study_key"], []),
            alarms,
        )
        for row in rows
    ]


def _study(
    row: Row, predictions: list[dict[str, Any]], deliveries: list[Row], not_judged: list[Row], alarms: Sequence[Row]
) -> dict[str, Any]:
    concerned = {
        (each["model_name"], each["model_version"], scope)
        for each in predictions
        for scope in (ALL_DEVICES, each["device_key"])
    }
    return {
        **{name: row[name] for name in _TEXTS},
        "priority": PRIORITIES[row["priority"]],
        **{name: _iso(row[name]) for name in _TIMES},
        "hold": None
        if row["hold_reason"] is None
        else {"reason": row["hold_reason"], "by": row["held_by"], "at": _iso(row["held_at"])},
        "predictions": predictions,
        "findings": study_findings(predictions),
        "alarms": [
            alarm_view(each)
            for each in alarms
            if (each["model_name"], each["model_version"], each["scope"]) in concerned
        ],
        "deliveries": deliveries,
        "not_judged": not_judged,
    }


def study_findings(predictions: Iterable[Row]) -> list[dict[str, Any]]:
    """Findings of a study: for each model's finding the image with the highest score, then what acquisition was off.

    A picture that is ungradable asserts nothing; where all are, the finding's state is ``ungradable``.
    """
    by_model: dict[tuple[str, int, str], dict[str, Any]] = {}
    by_tag: dict[tuple[str, str, str], dict[str, Any]] = {}
    for each in predictions:
        if each["superseded"]:
            continue
        ungradable = bool(each["ungradable_reasons"])
        for finding in each["findings"]:
            made = {
                **finding,
                "kind": "model",
                "state": UNGRADABLE if ungradable else "present" if finding["present"] else "absent",
                "present": bool(finding["present"]) and not ungradable,
                "model_name": each["model_name"],
                "model_version": each["model_version"],
                "role": each["role"],
                "instance_key": each["instance_key"],
                "frame_index": each["frame_index"],
            }
            key = (each["model_name"], each["model_version"], finding["name"])
            known = by_model.get(key)
            if known is None or _weight(made) > _weight(known):
                by_model[key] = made
        for off in each["acquisition_findings"]:
            same = by_tag.setdefault((off["tag"], off["value"], off["expected"]), {**off, "kind": "acquisition"})
            same["image_count"] = same.get("image_count", 0) + 1
    return [*by_model.values(), *by_tag.values()]


def _weight(finding: Row) -> tuple[bool, float]:
    return finding["state"] != UNGRADABLE, finding["score"]


_SHOWN = (
    "instance_key",
    "frame_index",
    "model_name",
    "model_version",
    "model_sha256",
    "demonstration",
    "role",
    "probabilities",
    "findings",
    "ungradable_reasons",
    "explanation",
    "acquisition_findings",
    "device_key",
)
"""Columns of a prediction that are shown as they are."""


def _predictions(
    connection: Connection,
    keys: list[str] | None,
    drift: Mapping[tuple[str, int, str], Row],
    which: ColumnElement[bool] = OUTWARD,
) -> dict[str, list[dict[str, Any]]]:
    further = ("study_key", "prediction_id", "heat_map_path", "judged_at", "paired_version", "agrees")
    statement = (
        select(*(prediction.c[name] for name in (*_SHOWN, *further)), instance.c.sop_instance_uid)
        .join(instance, instance.c.instance_key == prediction.c.instance_key)
        .where(which)
        .order_by(instance.c.received_at, instance.c.instance_key, prediction.c.frame_index, prediction.c.model_name)
    )
    if keys is not None:
        statement = statement.where(prediction.c.study_key.in_(keys))
    rows = connection.execute(statement).mappings().all()
    newest: dict[tuple[str, int, str], int] = {}
    for row in rows:
        key = _image_and_model(row)
        newest[key] = max(newest.get(key, 0), row["prediction_id"])
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        values = {name: row[name] for name in (*_SHOWN, "sop_instance_uid")}
        values["has_heat_map"] = row["heat_map_path"] is not None
        values["heat_map_expired"] = row["heat_map_path"] is None and row["explanation"] is not None
        values["judged_at"] = row["judged_at"].isoformat()
        if which is OUTWARD:
            values["superseded"] = row["prediction_id"] != newest[_image_and_model(row)]
            values["drift"] = _drift_of(row, drift)
        else:
            values |= {"paired_version": row["paired_version"], "agrees": row["agrees"]}
        found[row["study_key"]].append(values)
    return found


def _image_and_model(row: Any) -> tuple[str, int, str]:
    """What a newer version of the same model says anew."""
    return row["instance_key"], row["frame_index"], row["model_name"]


def _drift_of(row: Any, drift: Mapping[tuple[str, int, str], Row]) -> Row:
    """The newest drift result of that device; that of all devices where the device's could not be judged."""
    model = (row["model_name"], row["model_version"])
    of_device = drift.get((*model, row["device_key"]))
    of_all = drift.get((*model, ALL_DEVICES))
    for each in (of_device, of_all):
        if each is not None and each["state"] != "not judged":
            return each
    return of_device or of_all or {"state": "not judged", "reason": "no study tested yet", "scope": ALL_DEVICES}


def _newest_drift(connection: Connection) -> dict[tuple[str, int, str], Row]:
    scope = (drift_result.c.model_name, drift_result.c.model_version, drift_result.c.scope)
    newest = select(func.max(drift_result.c.drift_result_id)).where(drift_result.c.kind == EMBEDDING).group_by(*scope)
    rows = connection.execute(select(drift_result).where(drift_result.c.drift_result_id.in_(newest))).mappings()
    return {
        (row["model_name"], row["model_version"], row["scope"]): {
            **{name: row[name] for name in ("state", "reason", "scope", "n", "p_value", "effect", "threshold_p")},
            "computed_at": row["computed_at"].isoformat(),
        }
        for row in rows
    }


def _deliveries(connection: Connection, keys: list[str] | None) -> dict[str, list[Row]]:
    columns = ("delivery_id", "destination", "state", "attempts", "last_error")
    statement = (
        select(
            *(delivery.c[name] for name in columns),
            delivery.c.study_key,
            delivery.c.delivered_at,
            delivery.c.committed_at,
            delivery.c.next_attempt_at,
            result.c.kind,
            result.c.sop_instance_uid,
        )
        .join(result, result.c.result_key == delivery.c.result_key)
        .order_by(delivery.c.delivery_id)
    )
    if keys is not None:
        statement = statement.where(delivery.c.study_key.in_(keys))
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in connection.execute(statement).mappings():
        values = {name: row[name] for name in (*columns, "kind", "sop_instance_uid")}
        values["delivered_at"] = _iso(row["delivered_at"])
        values["committed_at"] = _iso(row["committed_at"])
        values["next_attempt_at"] = _iso(row["next_attempt_at"]) if row["state"] == "pending" else None
        found[row["study_key"]].append(values)
    return found


def _not_judged(connection: Connection, keys: list[str] | None) -> dict[str, list[Row]]:
    statement = (
        select(instance.c.study_key, instance.c.instance_key, instance.c.not_judged_reason)
        .where(instance.c.not_judged_reason != "")
        .order_by(instance.c.received_at, instance.c.instance_key)
    )
    if keys is not None:
        statement = statement.where(instance.c.study_key.in_(keys))
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in connection.execute(statement).mappings():
        found[row["study_key"]].append({"instance_key": row["instance_key"], "reason": row["not_judged_reason"]})
    return found


def alarm_view(row: Row) -> dict[str, Any]:
    """An alarm with its times as text."""
    return {name: _iso(value) if isinstance(value, datetime) else value for name, value in row.items()}


def _iso(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()
