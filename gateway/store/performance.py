"""What was computed last of how versions do: written by the computation, read by pages, command and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, insert, select

from gateway.store.engine import Store
from gateway.store.schema import alarm, performance, prediction, truth


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceRow:
    """One finding of one version. ``docs/truth.md`` lists what is in `figures` and `estimate`."""

    model_name: str
    model_version: int
    finding_name: str
    figures: Mapping[str, Any]
    estimate: Mapping[str, Any] | None
    """``None``: not asked for."""
    computed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Where truth and predictions stood: another mark means that something is to be computed anew."""

    truth_id: int
    superseded_at: datetime | None
    prediction_id: int


def performance_rows(store: Store, model_name: str | None = None) -> tuple[PerformanceRow, ...]:
    """All that was computed, by model, version and finding."""
    statement = select(performance).order_by(*performance.primary_key)
    if model_name is not None:
        statement = statement.where(performance.c.model_name == model_name)
    with store.read() as connection:
        return tuple(PerformanceRow(**row) for row in connection.execute(statement).mappings())


def replace_performance(store: Store, model_name: str, rows: Sequence[PerformanceRow]) -> None:
    """Put what was computed of one model in the place of what had been."""
    with store.write() as connection:
        connection.execute(delete(performance).where(performance.c.model_name == model_name))
        for row in rows:
            connection.execute(
                insert(performance).values(
                    model_name=row.model_name,
                    model_version=row.model_version,
                    finding_name=row.finding_name,
                    figures=dict(row.figures),
                    estimate=None if row.estimate is None else dict(row.estimate),
                    computed_at=row.computed_at,
                )
            )


def last_mark(store: Store) -> Mark:
    """Where truth and predictions stand."""
    with store.read() as connection:
        truth_id, superseded_at = connection.execute(
            select(func.max(truth.c.truth_id), func.max(truth.c.superseded_at))
        ).one()
        prediction_id = connection.execute(select(func.max(prediction.c.prediction_id))).scalar_one()
    return Mark(truth_id=truth_id or 0, superseded_at=superseded_at, prediction_id=prediction_id or 0)


def open_alarm_count(store: Store, model_name: str, model_version: int) -> int:
    """Alarms of a version that nobody has closed."""
    with store.read() as connection:
        found = connection.execute(
            select(func.count())
            .select_from(alarm)
            .where(
                alarm.c.model_name == model_name,
                alarm.c.model_version == model_version,
                alarm.c.state != "closed",
            )
        )
        return int(found.scalar_one())
