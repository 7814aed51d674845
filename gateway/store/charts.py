"""What the sequential charts have seen and where they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, exists, func, insert, select, update

from drift.alarms import Alarm
from gateway.store.engine import Store
from gateway.store.intake import new_key
from gateway.store.monitoring import JUDGED_COLUMNS, JudgedRow, alarm_subject, alarm_values, gradable
from gateway.store.schema import alarm, chart_state, chart_study, drift_result, prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartStateRow:
    """Where the charts of one scope stand, as bytes."""

    scope: str
    fingerprint: str
    studies: int
    state: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartRecord:
    """What some studies did to the charts of a model version; kept whole or not at all."""

    model_name: str
    model_version: int
    seen: Sequence[tuple[str, int]]
    """Study key and id of the prediction that counted."""
    states: Sequence[ChartStateRow]
    results: Sequence[Mapping[str, Any]]
    """Columns of ``drift_result``."""
    alarms: Sequence[tuple[str | None, Alarm]]
    """Key of the alarm that stands, ``None`` for a new one, and what it becomes."""


def highest_charted_prediction(store: Store, *, model_name: str, model_version: int) -> int:
    """Id of the newest prediction that the charts of a model version have seen; 0 where there is none."""
    query = select(func.max(chart_study.c.prediction_id)).where(
        chart_study.c.model_name == model_name, chart_study.c.model_version == model_version
    )
    with store.read() as connection:
        return connection.execute(query).scalar_one() or 0


def uncharted_rows(
    store: Store, *, model_name: str, model_version: int, after: int, limit: int
) -> tuple[tuple[JudgedRow, ...], int | None]:
    """The first gradable prediction of each study that the charts have not seen, oldest first.

    Returns
    -------
    rows
        Of the next `limit` predictions after the id `after`.
    last
        The id up to which this has looked; ``None`` where there is nothing more.
    """
    seen = exists().where(
        chart_study.c.study_key == prediction.c.study_key,
        chart_study.c.model_name == model_name,
        chart_study.c.model_version == model_version,
    )
    query = (
        select(*JUDGED_COLUMNS)
        .where(
            prediction.c.model_name == model_name,
            prediction.c.model_version == model_version,
            prediction.c.prediction_id > after,
            ~seen,
        )
        .order_by(prediction.c.prediction_id)
        .limit(limit)
    )
    with store.read() as connection:
        found = connection.execute(query).all()
    first: dict[str, JudgedRow] = {}
    for row in gradable(found):
        first.setdefault(row.study_key, row)
    return tuple(first.values()), found[-1].prediction_id if found else None


def chart_states(store: Store, *, model_name: str, model_version: int) -> tuple[ChartStateRow, ...]:
    """The states of all scopes of a model version."""
    query = select(chart_state).where(
        chart_state.c.model_name == model_name, chart_state.c.model_version == model_version
    )
    with store.read() as connection:
        return tuple(
            ChartStateRow(scope=row.scope, fingerprint=row.fingerprint, studies=row.studies, state=row.state)
            for row in connection.execute(query)
        )


def record_charts(store: Store, record: ChartRecord, now: datetime) -> tuple[str, ...]:
    """Keep it in one transaction; returns the keys of alarms that it raised.

    Raises
    ------
    StoreError
        Nothing was kept. That a study has been seen before, or has expired meanwhile, is one reason.
    """
    model = {"model_name": record.model_name, "model_version": record.model_version}
    raised = []
    with store.write() as connection:
        if record.seen:
            rows = [{"study_key": key, "prediction_id": number, **model} for key, number in record.seen]
            connection.execute(insert(chart_study), rows)
        for each in record.states:
            connection.execute(
                delete(chart_state).where(
                    chart_state.c.model_name == record.model_name,
                    chart_state.c.model_version == record.model_version,
                    chart_state.c.scope == each.scope,
                )
            )
            connection.execute(
                insert(chart_state).values(
                    **model,
                    scope=each.scope,
                    fingerprint=each.fingerprint,
                    studies=each.studies,
                    state=each.state,
                    updated_at=now,
                )
            )
        for values in record.results:
            connection.execute(insert(drift_result).values(**values))
        for key, changed in record.alarms:
            if key is None:
                raised.append(new_key())
                values = {"alarm_key": raised[-1], "state": "open", **alarm_subject(changed), **alarm_values(changed)}
                connection.execute(insert(alarm).values(**values))
            else:
                connection.execute(update(alarm).where(alarm.c.alarm_key == key).values(**alarm_values(changed)))
    return tuple(raised)
