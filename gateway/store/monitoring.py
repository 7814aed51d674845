"""What the monitor reads and writes, and the processes' signs of life."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import delete, func, insert, select, update

from gateway.errors import StoreError
from gateway.store.engine import Store
from gateway.store.intake import new_key
from gateway.store.schema import alarm, drift_result, prediction, process


def judged_scopes(store: Store) -> tuple[tuple[str, int, str, int, int], ...]:
    """(model name, version, device key, predictions, highest prediction id) for every device a model has read."""
    with store.read() as connection:
        rows = connection.execute(
            select(
                prediction.c.model_name,
                prediction.c.model_version,
                prediction.c.device_key,
                func.count(),
                func.max(prediction.c.prediction_id),
            ).group_by(prediction.c.model_name, prediction.c.model_version, prediction.c.device_key)
        ).all()
    return tuple((row[0], row[1], row[2], row[3], row[4]) for row in rows)


def last_rows(
    store: Store, *, model_name: str, model_version: int, device_key: str | None, limit: int
) -> tuple[npt.NDArray[np.float32], Sequence[Mapping[str, Any]]]:
    """The last `limit` gradable predictions of a model, oldest first.

    Parameters
    ----------
    device_key
        Only that device's; ``None``: all devices'.

    Returns
    -------
    embeddings
        float32 [n, D].
    rows
        Per prediction a mapping with ``prediction_id``, ``study_key``, ``explanation`` and ``statistics``.
    """
    query = (
        select(
            prediction.c.prediction_id,
            prediction.c.study_key,
            prediction.c.embedding,
            prediction.c.explanation,
            prediction.c.statistics,
            prediction.c.ungradable_reasons,
        )
        .where(prediction.c.model_name == model_name, prediction.c.model_version == model_version)
        .order_by(prediction.c.prediction_id.desc())
        .limit(limit * 2)
    )
    if device_key is not None:
        query = query.where(prediction.c.device_key == device_key)
    with store.read() as connection:
        rows = [row for row in connection.execute(query) if not row.ungradable_reasons][:limit][::-1]
    if not rows:
        return np.zeros((0, 0), np.float32), ()
    embeddings = np.stack([np.frombuffer(row.embedding, dtype="<f4") for row in rows])
    return embeddings, [
        {
            "prediction_id": row.prediction_id,
            "study_key": row.study_key,
            "explanation": row.explanation,
            "statistics": row.statistics,
        }
        for row in rows
    ]


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
