"""Deliveries: what the sender has to send, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update

from gateway.errors import StoreError
from gateway.store.engine import Store
from gateway.store.schema import delivery, instance, result

STOPPED = "stopped"
"""With it begins the last error of a delivery that did not leave because it may be another patient's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One result object on its way to one destination."""

    delivery_id: int
    study_key: str
    destination: str
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    path: str
    attempts: int
    created_at: datetime


def due_deliveries(store: Store, now: datetime, *, destinations: Sequence[str], limit: int) -> tuple[Delivery, ...]:
    """Pending deliveries to `destinations` whose time has come, longest waiting first."""
    with store.read() as connection:
        rows = connection.execute(
            select(delivery, result.c.kind, result.c.sop_class_uid, result.c.sop_instance_uid, result.c.path)
            .join(result, result.c.result_key == delivery.c.result_key)
            .where(
                delivery.c.state == "pending",
                delivery.c.next_attempt_at <= now,
                delivery.c.destination.in_(destinations),
            )
            .order_by(delivery.c.next_attempt_at, delivery.c.delivery_id)
            .limit(limit)
        ).all()
    return tuple(
        Delivery(
            delivery_id=row.delivery_id,
            study_key=row.study_key,
            destination=row.destination,
            kind=row.kind,
            sop_class_uid=row.sop_class_uid,
            sop_instance_uid=row.sop_instance_uid,
            path=row.path,
            attempts=row.attempts,
            created_at=row.created_at,
        )
        for row in rows
    )


def judged_sources(store: Store, study_key: str, *, limit: int) -> list[str]:
    """Relative paths of the study's images that a rule chose and whose files have not expired."""
    with store.read() as connection:
        return list(
            connection.execute(
                select(instance.c.path)
                .where(instance.c.study_key == study_key, instance.c.removed_at.is_(None), instance.c.rule.is_not(None))
                .order_by(instance.c.sop_instance_uid)
                .limit(limit)
            ).scalars()
        )


def source_path(store: Store, instance_key: str) -> str | None:
    """Relative path of an image, or ``None`` where its file has expired or its row is gone."""
    with store.read() as connection:
        row = connection.execute(
            select(instance.c.path).where(instance.c.instance_key == instance_key, instance.c.removed_at.is_(None))
        ).first()
    return None if row is None else str(row.path)


def mark_delivered(store: Store, delivery_ids: Sequence[int], now: datetime) -> None:
    """The destination answered with Success, or has it already."""
    with store.write() as connection:
        connection.execute(
            update(delivery)
            .where(delivery.c.delivery_id.in_(delivery_ids))
            .values(
                state="delivered",
                delivered_at=now,
                attempts=delivery.c.attempts + 1,
                last_error="",
                committed_at=None,
                commitment_key=None,  # what was sent again is asked for again
            )
        )


def mark_failed(store: Store, delivery_ids: Sequence[int], *, error: str, next_attempt_at: datetime | None) -> None:
    """An attempt failed; ``next_attempt_at`` of ``None`` makes it a dead letter, which only a person resends."""
    with store.write() as connection:
        values: dict[str, object] = {"attempts": delivery.c.attempts + 1, "last_error": error[:500]}
        if next_attempt_at is None:
            values["state"] = "dead"
        else:
            values["next_attempt_at"] = next_attempt_at
        connection.execute(update(delivery).where(delivery.c.delivery_id.in_(delivery_ids)).values(**values))


def resend(store: Store, delivery_id: int, now: datetime) -> None:
    """Send a dead letter, or a delivered object, again: a fresh count of tries from now.

    Raises
    ------
    StoreError
        There is no such delivery, or its object has expired.
    """
    gone = (
        select(result.c.removed_at)
        .join(delivery, delivery.c.result_key == result.c.result_key)
        .where(delivery.c.delivery_id == delivery_id)
    )
    with store.write() as connection:
        if connection.execute(gone).scalar_one_or_none() is not None:
            raise StoreError("the result has expired and cannot be sent again; judging the study again makes it anew")
        changed = connection.execute(
            update(delivery)
            .where(delivery.c.delivery_id == delivery_id)
            .values(state="pending", attempts=0, next_attempt_at=now, created_at=now, last_error="")
        )
        if changed.rowcount == 0:
            raise StoreError(f"no delivery {delivery_id}")
