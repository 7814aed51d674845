"""What the guard of a canary reads: its studies, its failures, and how it compares with the champion on the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from gateway.store.engine import Store
from gateway.store.schema import alarm, model_failure, prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One frame that the canary judged and the champion read in its shadow."""

    prediction_id: int
    """Of the champion's."""
    study_key: str
    agrees: bool | None
    canary_ms: float | None
    champion_ms: float | None


def canary_studies_after(
    store: Store, *, model_name: str, version: int, since: datetime, after: int, limit: int
) -> tuple[tuple[int, str], ...]:
    """(prediction id, study key) of what a canary judged since then, after an id, in order."""
    statement = (
        select(prediction.c.prediction_id, prediction.c.study_key)
        .where(
            prediction.c.model_name == model_name,
            prediction.c.model_version == version,
            prediction.c.role == "canary",
            prediction.c.prediction_id > after,
            prediction.c.judged_at >= since,
        )
        .order_by(prediction.c.prediction_id)
        .limit(limit)
    )
    with store.read() as connection:
        return tuple((row.prediction_id, row.study_key) for row in connection.execute(statement))


def pairs_after(
    store: Store, *, model_name: str, canary: int, champion: int, since: datetime, after: int, limit: int
) -> tuple[Pair, ...]:
    """Frames that the champion read in the canary's shadow since then, after an id, in order."""
    judged = prediction.alias("judged")
    statement = (
        select(
            prediction.c.prediction_id,
            prediction.c.study_key,
            prediction.c.agrees,
            judged.c.inference_ms.label("canary_ms"),
            prediction.c.inference_ms.label("champion_ms"),
        )
        .join(
            judged,
            (judged.c.instance_key == prediction.c.instance_key)
            & (judged.c.frame_index == prediction.c.frame_index)
            & (judged.c.model_name == prediction.c.model_name)
            & (judged.c.model_version == prediction.c.paired_version),
        )
        .where(
            prediction.c.model_name == model_name,
            prediction.c.model_version == champion,
            prediction.c.role == "shadow",
            prediction.c.paired_version == canary,
            prediction.c.prediction_id > after,
            prediction.c.judged_at >= since,
        )
        .order_by(prediction.c.prediction_id)
        .limit(limit)
    )
    with store.read() as connection:
        return tuple(Pair(**row) for row in connection.execute(statement).mappings())


def failed_studies(store: Store, *, model_name: str, version: int, since: datetime) -> frozenset[str]:
    """Studies in which the canary gave no prediction since then, so that the champion judged."""
    statement = (
        select(model_failure.c.study_key)
        .where(
            model_failure.c.model_name == model_name,
            model_failure.c.version == version,
            model_failure.c.at >= since,
            model_failure.c.role == "canary",
        )
        .distinct()
    )
    with store.read() as connection:
        return frozenset(connection.execute(statement).scalars())


def alarms_since(store: Store, *, model_name: str, version: int, since: datetime) -> tuple[Mapping[str, Any], ...]:
    """Alarms of a version that were seen since then and that nobody has taken on."""
    statement = (
        select(alarm.c.alarm_key, alarm.c.kind, alarm.c.scope, alarm.c.message)
        .where(
            alarm.c.model_name == model_name,
            alarm.c.model_version == version,
            alarm.c.state == "open",
            alarm.c.last_seen_at >= since,
        )
        .order_by(alarm.c.first_seen_at)
    )
    with store.read() as connection:
        return tuple(dict(row) for row in connection.execute(statement).mappings())
