"""The life of a study: completion, claims by workers, and the one function that changes a state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, select, update

from gateway.errors import StoreError, TransitionError
from gateway.store.engine import Store
from gateway.store.schema import delivery, instance, study
from gateway.study import TRANSITIONS, UNFINISHED, ReceivedInstance, Study, StudyState

EXPIRED = "the images have expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedStudy:
    """A study that a worker holds until its lease ends."""

    study: Study
    revision: int
    """How many instances it had been given when claimed; more at the end mean that images came late."""
    attempts: int
    queued_at: datetime


def move_study(connection: Connection, study_key: str, to: StudyState, **values: object) -> None:
    """Take a study from whatever state it is in to `to`: the only place where a state changes after arrival.

    Raises
    ------
    TransitionError
        :data:`~gateway.study.TRANSITIONS` does not allow it; nothing was changed.
    """
    allowed = [state for state, following in TRANSITIONS.items() if to in following]
    moved = connection.execute(
        update(study).where(study.c.study_key == study_key, study.c.state.in_(allowed)).values(state=to, **values)
    )
    if moved.rowcount == 0:
        found = connection.execute(select(study.c.state).where(study.c.study_key == study_key)).scalar_one_or_none()
        raise TransitionError(f"study {study_key} cannot go from {found or 'nowhere'} to {to}")


def queue_complete_studies(store: Store, now: datetime) -> int:
    """Queue every study whose quiet time has passed; returns how many."""
    due = (study.c.state == StudyState.RECEIVING) & (study.c.complete_at <= now)
    with store.read() as connection:
        if connection.execute(select(study.c.study_key).where(due).limit(1)).first() is None:
            return 0
    with store.write() as connection:
        keys = (
            connection.execute(select(study.c.study_key).where(due).with_for_update(skip_locked=True)).scalars().all()
        )
        for key in keys:
            move_study(connection, key, StudyState.QUEUED, queued_at=now, not_before=now, attempts=0)
    return len(keys)


def complete_now(store: Store, study_key: str, now: datetime) -> None:
    """Queue a study without waiting for its quiet time, or judge it again.

    Raises
    ------
    TransitionError
        It is queued or being judged already, all its images have expired, or there is no such study.
    """
    left = select(instance.c.instance_key).where(instance.c.study_key == study_key, instance.c.removed_at.is_(None))
    with store.write() as connection:
        move_study(connection, study_key, StudyState.QUEUED, queued_at=now, not_before=now, attempts=0)
        if connection.execute(left.limit(1)).first() is None:
            raise TransitionError(f"study {study_key} cannot be judged: {EXPIRED}")


def claim_studies(
    store: Store, *, owner: str, now: datetime, lease: timedelta, limit: int, objects: Path
) -> tuple[ClaimedStudy, ...]:
    """Take up to `limit` queued studies, most urgent first, then longest waiting.

    A study whose lease ended (its worker was killed) is put back first. `objects` is the object folder, to which stored
    paths are relative.
    """
    ready = (study.c.state == StudyState.QUEUED) & (study.c.not_before <= now)
    lapsed = (study.c.state == StudyState.PROCESSING) & (study.c.lease_until < now)
    with store.read() as connection:
        if connection.execute(select(study.c.study_key).where(ready | lapsed).limit(1)).first() is None:
            return ()
    with store.write() as connection:
        for key in connection.execute(select(study.c.study_key).where(lapsed)).scalars().all():
            move_study(connection, key, StudyState.QUEUED, lease_owner=None, lease_until=None)
        rows = connection.execute(
            select(study.c.study_key, study.c.revision, study.c.attempts, study.c.queued_at)
            .where(ready)
            .order_by(study.c.priority.desc(), study.c.queued_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        for row in rows:
            move_study(
                connection,
                row.study_key,
                StudyState.PROCESSING,
                lease_owner=owner,
                lease_until=now + lease,
                attempts=study.c.attempts + 1,
            )
        claimed = []
        for row in rows:
            loaded = _load(connection, row.study_key, objects)
            if not loaded.instances:
                move_study(
                    connection, row.study_key, StudyState.FAILED, reason=EXPIRED, lease_owner=None, lease_until=None
                )
                continue
            claimed.append(
                ClaimedStudy(study=loaded, revision=row.revision, attempts=row.attempts + 1, queued_at=row.queued_at)
            )
        return tuple(claimed)


def load_study(store: Store, study_key: str, objects: Path) -> Study:
    """The study as received, without images that have expired. Raises :class:`StoreError` when nothing is left."""
    with store.read() as connection:
        loaded = _load(connection, study_key, objects)
    if not loaded.instances:
        raise StoreError(f"no study {study_key}, or its images have expired")
    return loaded


def _load(connection: Connection, study_key: str, objects: Path) -> Study:
    rows = connection.execute(
        select(instance, study.c.study_instance_uid)
        .join(study, study.c.study_key == instance.c.study_key)
        .where(instance.c.study_key == study_key, instance.c.removed_at.is_(None))
        .order_by(instance.c.received_at, instance.c.instance_key)
    ).all()
    return Study(
        study_key=study_key,
        instances=tuple(
            ReceivedInstance(
                instance_key=row.instance_key,
                path=objects / row.path,
                sop_class_uid=row.sop_class_uid,
                sop_instance_uid=row.sop_instance_uid,
                series_instance_uid=row.series_instance_uid,
                study_instance_uid=row.study_instance_uid,
                transfer_syntax_uid=row.transfer_syntax_uid,
                calling_ae_title=row.calling_ae_title,
                received_at=row.received_at,
            )
            for row in rows
        ),
    )


def renew_leases(store: Store, *, owner: str, now: datetime, lease: timedelta) -> None:
    """Say that `owner` is alive and still holds what it holds."""
    with store.write() as connection:
        connection.execute(update(study).where(study.c.lease_owner == owner).values(lease_until=now + lease))


def release_leases(store: Store, *, owner: str) -> int:
    """Put back at once what a process that died had held; returns how many studies that were."""
    with store.write() as connection:
        keys: Sequence[str] = (
            connection.execute(
                select(study.c.study_key).where(study.c.state == StudyState.PROCESSING, study.c.lease_owner == owner)
            )
            .scalars()
            .all()
        )
        for key in keys:
            move_study(connection, key, StudyState.QUEUED, lease_owner=None, lease_until=None)
    return len(keys)


def give_back(
    store: Store,
    study_key: str,
    *,
    to: StudyState,
    reason: str,
    now: datetime,
    delay: timedelta,
    was_attempt: bool = True,
) -> None:
    """End a claim without a judgement: QUEUED to try again after `delay`, FAILED for a person to see.

    `was_attempt`: whether the claim counts among those that a study may use up; not where nothing was tried.
    """
    attempts = {} if was_attempt else {"attempts": study.c.attempts - 1}
    with store.write() as connection:
        move_study(
            connection,
            study_key,
            to,
            reason=reason,
            not_before=now + delay,
            lease_owner=None,
            lease_until=None,
            **attempts,
        )


def unfinished_work(store: Store, now: datetime) -> bool:
    """Whether a study still waits to be judged, or a delivery for its first tries."""
    with store.read() as connection:
        studies = connection.execute(select(study.c.study_key).where(study.c.state.in_(UNFINISHED)).limit(1)).first()
        due = (delivery.c.state == "pending") & (delivery.c.next_attempt_at <= now)
        return (
            studies is not None
            or connection.execute(select(delivery.c.delivery_id).where(due).limit(1)).first() is not None
        )
