"""What the monitor reads and writes, and the processes' signs of life."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import delete, func, insert, select, update

from drift.alarms import Alarm, AlarmState
from drift.monitors import DriftKind, DriftResult
from gateway.errors import StoreError
from gateway.store.engine import Store
from gateway.store.intake import new_key
from gateway.store.schema import alarm, drift_result, prediction, process


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRow:
    """What a monitor needs of one gradable prediction."""

    prediction_id: int
    study_key: str
    model_name: str
    model_version: int
    device_key: str
    embedding: npt.NDArray[np.float32]
    """[D]."""
    explanation: Mapping[str, Any] | None
    statistics: Mapping[str, float]
    judged_at: datetime


JUDGED_COLUMNS = (
    prediction.c.prediction_id,
    prediction.c.study_key,
    prediction.c.model_name,
    prediction.c.model_version,
    prediction.c.device_key,
    prediction.c.embedding,
    prediction.c.explanation,
    prediction.c.statistics,
    prediction.c.ungradable_reasons,
    prediction.c.judged_at,
)


def judged_scopes(store: Store) -> tuple[tuple[str, int, str, int], ...]:
    """(model name, version, device key, studies) for each device a model version has read; reads an index whole."""
    columns = (prediction.c.model_name, prediction.c.model_version, prediction.c.device_key)
    with store.read() as connection:
        rows = connection.execute(select(*columns, func.count(prediction.c.study_key.distinct())).group_by(*columns))
        return tuple((row[0], row[1], row[2], row[3]) for row in rows)


def last_rows(
    store: Store, *, model_name: str, model_version: int, device_key: str | None, limit: int
) -> tuple[JudgedRow, ...]:
    """The last `limit` gradable predictions of a model version, of one device or of all, oldest first."""
    query = (
        select(*JUDGED_COLUMNS)
        .where(prediction.c.model_name == model_name, prediction.c.model_version == model_version)
        .order_by(prediction.c.prediction_id.desc())
        .limit(limit)
    )
    if device_key is not None:
        query = query.where(prediction.c.device_key == device_key)
    with store.read() as connection:
        return gradable(connection.execute(query))[::-1]


def rows_after(store: Store, prediction_id: int, *, limit: int) -> tuple[tuple[JudgedRow, ...], int]:
    """The gradable predictions that came after one, oldest first, and the id up to which this has looked."""
    query = (
        select(*JUDGED_COLUMNS)
        .where(prediction.c.prediction_id > prediction_id)
        .order_by(prediction.c.prediction_id)
        .limit(limit)
    )
    with store.read() as connection:
        rows = connection.execute(query).all()
    return gradable(rows), rows[-1].prediction_id if rows else prediction_id


def gradable(rows: Iterable[Any]) -> tuple[JudgedRow, ...]:
    """Rows of `JUDGED_COLUMNS` as values, without those that were not gradable."""
    return tuple(
        JudgedRow(
            prediction_id=row.prediction_id,
            study_key=row.study_key,
            model_name=row.model_name,
            model_version=row.model_version,
            device_key=row.device_key,
            embedding=np.frombuffer(row.embedding, dtype="<f4"),
            explanation=row.explanation,
            statistics=row.statistics,
            judged_at=row.judged_at,
        )
        for row in rows
        if not row.ungradable_reasons
    )


def highest_prediction_id(store: Store) -> int:
    """Id of the newest prediction; 0 where there is none."""
    with store.read() as connection:
        return connection.execute(select(func.max(prediction.c.prediction_id))).scalar_one() or 0


def add_drift_result(store: Store, values: Mapping[str, Any]) -> None:
    """Keep one drift test; `values` are the columns of ``drift_result``."""
    with store.write() as connection:
        connection.execute(insert(drift_result).values(**values))


def latest_drift(store: Store) -> tuple[Mapping[str, Any], ...]:
    """The newest drift result of every (model, version, scope, kind)."""
    newest = select(func.max(drift_result.c.drift_result_id)).group_by(
        drift_result.c.model_name, drift_result.c.model_version, drift_result.c.scope, drift_result.c.kind
    )
    with store.read() as connection:
        rows = connection.execute(select(drift_result).where(drift_result.c.drift_result_id.in_(newest)))
        return tuple(dict(row._mapping) for row in rows)


def drift_history(
    store: Store, *, model_name: str, model_version: int, scope: str, kind: str, limit: int = 200
) -> tuple[Mapping[str, Any], ...]:
    """Drift results of one monitor, oldest first."""
    with store.read() as connection:
        rows = connection.execute(
            select(drift_result)
            .where(
                drift_result.c.model_name == model_name,
                drift_result.c.model_version == model_version,
                drift_result.c.scope == scope,
                drift_result.c.kind == kind,
            )
            .order_by(drift_result.c.drift_result_id.desc())
            .limit(limit)
        )
        return tuple(dict(row._mapping) for row in rows)[::-1]


def alarms(store: Store, *, closed: bool = True) -> tuple[Mapping[str, Any], ...]:
    """Alarms, newest first; without the closed ones where ``closed`` is false."""
    query = select(alarm).order_by(alarm.c.last_seen_at.desc())
    if not closed:
        query = query.where(alarm.c.state != "closed")
    with store.read() as connection:
        return tuple(dict(row._mapping) for row in connection.execute(query))


def open_alarm(store: Store, *, model_name: str, model_version: int, scope: str, kind: str) -> Mapping[str, Any] | None:
    """The alarm of that monitor that is not closed, if there is one."""
    with store.read() as connection:
        row = connection.execute(
            select(alarm)
            .where(
                alarm.c.model_name == model_name,
                alarm.c.model_version == model_version,
                alarm.c.scope == scope,
                alarm.c.kind == kind,
                alarm.c.state != "closed",
            )
            .order_by(alarm.c.first_seen_at.desc())
        ).first()
        return None if row is None else dict(row._mapping)


def alarm_values(changed: Alarm) -> dict[str, Any]:
    """The columns that a result changes, of a new alarm or of one that stands."""
    return {
        "message": changed.reason,
        "count": changed.count,
        "p_value": changed.p_value,
        "effect": changed.effect,
        "largest_effect": changed.largest_effect,
        "last_seen_at": changed.last_seen,
    }


def alarm_subject(raised: Alarm) -> dict[str, Any]:
    """The columns of a new alarm that never change."""
    return {
        "model_name": raised.model_name,
        "model_version": raised.model_version,
        "scope": raised.scope,
        "kind": raised.kind,
        "first_seen_at": raised.first_seen,
    }


def result_values(made: DriftResult, *, seen: int) -> dict[str, Any]:
    """The columns of ``drift_result``."""
    return {
        "model_name": made.model_name,
        "model_version": made.model_version,
        "scope": made.scope,
        "kind": made.kind,
        "state": made.state,
        "reason": made.reason,
        "n": made.n,
        "statistic": made.statistic,
        "p_value": made.p_value,
        "effect": made.effect,
        "threshold_p": made.threshold_p,
        "backend": made.backend,
        "seen": seen,
        "drivers": [asdict(driver) for driver in made.drivers],
        "computed_at": made.computed_at,
    }


def alarm_of(row: Mapping[str, Any]) -> Alarm:
    """The drift room's value of a stored alarm."""

    def number(column: str) -> float:
        return math.nan if row[column] is None else float(row[column])

    return Alarm(
        kind=DriftKind(row["kind"]),
        model_name=row["model_name"],
        model_version=row["model_version"],
        scope=row["scope"],
        state=AlarmState(row["state"]),
        count=row["count"],
        first_seen=row["first_seen_at"],
        last_seen=row["last_seen_at"],
        p_value=number("p_value"),
        effect=number("effect"),
        largest_effect=number("largest_effect"),
        reason=row["message"],
        changed_at=row["handled_at"] or row["first_seen_at"],
        changed_by=row["handled_by"],
        cause=row["handling"],
    )


def raise_alarm(store: Store, values: Mapping[str, Any]) -> str:
    """Open a new alarm; returns its key."""
    key = new_key()
    with store.write() as connection:
        connection.execute(insert(alarm).values(alarm_key=key, state="open", **values))
    return key


def change_alarm(store: Store, alarm_key: str, values: Mapping[str, Any]) -> None:
    """Change columns of an alarm. Raises :class:`StoreError` when there is none of that key."""
    with store.write() as connection:
        changed = connection.execute(update(alarm).where(alarm.c.alarm_key == alarm_key).values(**values))
        if changed.rowcount == 0:
            raise StoreError(f"no alarm {alarm_key}")


def report_process(store: Store, *, name: str, pid: int, now: datetime, detail: Mapping[str, Any]) -> None:
    """A process's sign of life, with what it wants shown (providers in use, models loaded)."""
    with store.write() as connection:
        changed = connection.execute(
            update(process).where(process.c.name == name, process.c.pid == pid).values(seen_at=now, detail=dict(detail))
        )
        if changed.rowcount == 0:
            connection.execute(delete(process).where(process.c.name == name))
            connection.execute(
                insert(process).values(name=name, pid=pid, started_at=now, seen_at=now, detail=dict(detail))
            )


def processes(store: Store) -> tuple[Mapping[str, Any], ...]:
    """All processes that ever reported, by name."""
    with store.read() as connection:
        rows = connection.execute(select(process).order_by(process.c.name))
        return tuple(dict(row._mapping) for row in rows)


def forget_processes(store: Store) -> None:
    """Forget the processes of an earlier run."""
    with store.write() as connection:
        connection.execute(delete(process))
