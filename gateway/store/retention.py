"""What may be deleted, and holds.

Nothing of a study goes while it is received, queued or being judged, while a delivery of it is unsent (a dead letter
is), while a destination that commits has not committed, or while it is on hold. The rest goes by age, the oldest first.
Age counts from the study's last event: its last image, its judgement, its last delivery.

Each step here marks rows and commits; the caller then deletes the files that it names. A kill in between leaves files
that no row needs, which :func:`marked_files` and the sweeps find again; it never leaves a row that promises a file
which is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, exists, func, insert, null, or_, select, update

from gateway.errors import StoreError
from gateway.objects import heat_map_path, picture_path
from gateway.store.engine import Store
from gateway.store.schema import (
    audit,
    chart_study,
    delivery,
    instance,
    model_failure,
    prediction,
    quarantine,
    result,
    study,
)
from gateway.study import StudyState

Kind = Literal["originals", "results", "quarantine", "records"]
KINDS: tuple[Kind, ...] = ("quarantine", "originals", "results", "records")
"""In the order in which they go: what nobody was promised first."""
ROWS_A_STEP = 200
_SETTLED = (StudyState.JUDGED, StudyState.NOT_MATCHED, StudyState.FAILED)

Place = tuple[datetime, str]
"""Where a walk over rows stands: time and key of the last one looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The next rows that a walk came by, oldest first."""

    keys: tuple[str, ...]
    place: Place | None
    """Where to go on; ``None`` at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What one step marked."""

    rows: int
    paths: tuple[str, ...]
    """Files that no row needs any more, relative to the object folder."""


def _free_to_go(before: datetime, committing: Sequence[str]) -> ColumnElement[bool]:
    """Of a study: settled, not on hold, nothing of it unsent or uncommitted, and no event at or after `before`."""
    unsent: list[ColumnElement[bool]] = [delivery.c.state != "delivered", delivery.c.delivered_at >= before]
    if committing:
        unsent.append(and_(delivery.c.destination.in_(committing), delivery.c.committed_at.is_(None)))
    return and_(
        # As an expression, so that no planner walks by an index of states, which nearly all studies share.
        study.c.state.concat("").in_(_SETTLED),
        study.c.hold_reason.is_(None),
        study.c.last_received_at < before,
        or_(study.c.judged_at.is_(None), study.c.judged_at < before),
        ~exists().where(delivery.c.study_key == study.c.study_key, or_(*unsent)),
    )


def _there(table: Table) -> ColumnElement[bool]:
    """Not removed; as an expression, so that rows named by their keys are not sought among all that are there."""
    return func.coalesce(table.c.removed_at, null()).is_(None)


def _after(when: ColumnElement[Any], key: ColumnElement[Any], place: Place | None) -> Iterator[ColumnElement[bool]]:
    if place is not None:
        yield when >= place[0]
        yield or_(when > place[0], key > place[1])


_WALKED: dict[Kind, tuple[Table, ColumnElement[Any], ColumnElement[Any]]] = {
    "originals": (instance, instance.c.received_at, instance.c.instance_key),
    "results": (result, result.c.created_at, result.c.result_key),
    "quarantine": (quarantine, quarantine.c.received_at, quarantine.c.quarantine_key),
    "records": (study, study.c.last_received_at, study.c.study_key),
}


def candidates(
    store: Store,
    kind: Kind,
    *,
    before: datetime,
    committing: Sequence[str] = (),
    place: Place | None = None,
    limit: int = ROWS_A_STEP,
) -> Candidates:
    """Rows of a kind that may go, from `place` on, oldest first. Reads an index of the kind's table in its order.

    Parameters
    ----------
    before
        What had its last event earlier has expired.
    committing
        Names of destinations that are asked to commit.

    Returns
    -------
    Keys of instances, results, quarantined objects or, for ``records``, studies.
    """
    table, when, key = _WALKED[kind]
    query = select(when, key).where(when < before, *_after(when, key, place)).order_by(when, key).limit(limit)
    if kind == "records":
        query = query.where(_free_to_go(before, committing), *_without_files())
    else:
        query = query.where(table.c.removed_at.is_(None))
        if kind != "quarantine":
            query = query.join(study, study.c.study_key == table.c.study_key).where(_free_to_go(before, committing))
    with store.read() as connection:
        rows = connection.execute(query).all()
    return Candidates(
        keys=tuple(row[1] for row in rows), place=(rows[-1][0], rows[-1][1]) if len(rows) == limit else None
    )


def _without_files() -> tuple[ColumnElement[bool], ...]:
    """Of a study: all its files have expired; its rows stay as long as any of them."""
    return tuple(~exists().where(table.c.study_key == study.c.study_key, _there(table)) for table in (instance, result))


def remove_originals(
    store: Store, keys: Sequence[str], *, before: datetime, committing: Sequence[str], now: datetime
) -> Removed:
    """Mark instances as removed, those whose study is still free to go."""
    chosen = and_(instance.c.instance_key.in_(keys), _there(instance))
    with store.write() as connection:
        of = select(instance.c.study_key).where(chosen)
        settled = _lock_settled(connection, connection.execute(of).scalars().all(), before, committing)
        rows = connection.execute(
            select(instance.c.instance_key, instance.c.path).where(chosen, instance.c.study_key.in_(settled))
        ).all()
        going = [row.instance_key for row in rows]
        connection.execute(update(instance).where(instance.c.instance_key.in_(going)).values(removed_at=now))
    return Removed(rows=len(rows), paths=tuple(row.path for row in rows))


def remove_results(
    store: Store, keys: Sequence[str], *, before: datetime, committing: Sequence[str], now: datetime
) -> Removed:
    """Mark all results of these results' studies as removed, with heat maps and pictures."""
    with store.write() as connection:
        of = select(result.c.study_key).where(result.c.result_key.in_(keys))
        settled = _lock_settled(connection, connection.execute(of).scalars().all(), before, committing)
        live = and_(result.c.study_key.in_(settled), _there(result))
        paths = list(connection.execute(select(result.c.path).where(live)).scalars())
        count = len(paths)
        paths += _shown_files(connection, settled)
        connection.execute(update(result).where(live).values(removed_at=now))
        connection.execute(
            update(prediction).where(prediction.c.study_key.in_(settled)).values(heat_map_path=None)
        )  # an explanation without one says that the heat map has expired
    return Removed(rows=count, paths=tuple(paths))


def remove_quarantined(store: Store, keys: Sequence[str], *, now: datetime) -> Removed:
    """Mark quarantined objects as removed."""
    chosen = and_(quarantine.c.quarantine_key.in_(keys), _there(quarantine))
    with store.write() as connection:
        paths = connection.execute(select(quarantine.c.path).where(chosen)).scalars().all()
        connection.execute(update(quarantine).where(chosen).values(removed_at=now))
    return Removed(rows=len(paths), paths=tuple(paths))


def remove_records(store: Store, keys: Sequence[str], *, before: datetime, committing: Sequence[str]) -> Removed:
    """Delete studies with all their rows, those that are still free to go and have no file left."""
    with store.write() as connection:
        settled = _lock_settled(connection, keys, before, committing)
        bare = (
            connection.execute(select(study.c.study_key).where(study.c.study_key.in_(settled), *_without_files()))
            .scalars()
            .all()
        )
        paths = _shown_files(connection, bare)
        for table in (chart_study, model_failure, delivery, result, prediction, instance, study):
            connection.execute(delete(table).where(table.c.study_key.in_(bare)))
    return Removed(rows=len(bare), paths=tuple(paths))


def forget_quarantined(store: Store, *, before: datetime, limit: int = ROWS_A_STEP) -> int:
    """Delete rows of quarantined objects whose file is gone; returns how many."""
    old = (
        select(quarantine.c.quarantine_key)
        .where(quarantine.c.removed_at.is_not(None), quarantine.c.received_at < before)
        .limit(limit)
    )
    with store.write() as connection:
        return connection.execute(delete(quarantine).where(quarantine.c.quarantine_key.in_(old))).rowcount


def _lock_settled(
    connection: Connection, keys: Sequence[str], before: datetime, committing: Sequence[str]
) -> Sequence[str]:
    """Those of these studies that are free to go, kept so until the transaction ends; passes by what others hold."""
    wanted = and_(study.c.study_key.in_(set(keys)), _free_to_go(before, committing))
    query = select(study.c.study_key).where(wanted).with_for_update(skip_locked=True, of=study)
    return connection.execute(query).scalars().all()


def _shown_files(connection: Connection, study_keys: Sequence[str]) -> list[str]:
    """Paths of pictures and heat maps of studies, whether or not they are there."""
    columns = ("instance_key", "frame_index", "model_name", "model_version")
    rows = connection.execute(
        select(*(prediction.c[name] for name in columns)).where(prediction.c.study_key.in_(study_keys))
    ).all()
    return sorted({picture_path(row[0], row[1]) for row in rows} | {heat_map_path(*row) for row in rows})


def marked_files(store: Store, *, limit: int) -> tuple[str, ...]:
    """Files of the instances and quarantined objects that were marked last: what a kill may have left on the disk."""
    with store.read() as connection:
        return tuple(
            path
            for table in (instance, quarantine)
            for path in connection.execute(
                select(table.c.path)
                .where(table.c.removed_at.is_not(None))
                .order_by(table.c.removed_at.desc())
                .limit(limit)
            ).scalars()
        )


def needed_results(store: Store, result_keys: Sequence[str]) -> frozenset[str]:
    """Those of these results of which the file is needed."""
    query = select(result.c.result_key).where(result.c.result_key.in_(result_keys), _there(result))
    with store.read() as connection:
        return frozenset(connection.execute(query).scalars())


def shown_instances(store: Store, instance_keys: Sequence[str]) -> frozenset[str]:
    """Those of these instances of which pictures and heat maps are needed, or may be made just now."""
    alive = exists().where(result.c.study_key == study.c.study_key, _there(result))
    without = ~exists().where(result.c.study_key == study.c.study_key)
    query = (
        select(instance.c.instance_key)
        .join(study, study.c.study_key == instance.c.study_key)
        .where(instance.c.instance_key.in_(instance_keys), or_(study.c.state.not_in(_SETTLED), alive, without))
    )
    with store.read() as connection:
        return frozenset(connection.execute(query).scalars())


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many files, and how large they are together."""

    files: int
    size_bytes: int


def quarantined(store: Store) -> Size:
    """What lies in quarantine; reads an index alone."""
    query = select(func.count(), func.coalesce(func.sum(quarantine.c.size_bytes), 0))
    with store.read() as connection:
        count, size_bytes = connection.execute(query.where(quarantine.c.removed_at.is_(None))).one()
    return Size(files=count, size_bytes=int(size_bytes))


def oldest_quarantined(store: Store, *, limit: int = ROWS_A_STEP) -> tuple[tuple[str, int], ...]:
    """Key and size of the quarantined objects that came first."""
    query = (
        select(quarantine.c.quarantine_key, quarantine.c.size_bytes)
        .where(quarantine.c.removed_at.is_(None))
        .order_by(quarantine.c.received_at, quarantine.c.quarantine_key)
        .limit(limit)
    )
    with store.read() as connection:
        return tuple((row[0], row[1]) for row in connection.execute(query))


def files_of(store: Store, kind: Kind, keys: Sequence[str]) -> tuple[tuple[str, int | None], ...]:
    """Path and size of the files that go with these keys; the size is ``None`` where only the disk knows it."""
    with store.read() as connection:
        if kind == "records":
            return ()
        if kind == "results":
            of = select(result.c.study_key, result.c.path).where(result.c.result_key.in_(keys))
            rows = connection.execute(of).all()
            shown = _shown_files(connection, list({row.study_key for row in rows}))
            return tuple((path, None) for path in (*(row.path for row in rows), *shown))
        table, _, key = _WALKED[kind]
        rows = connection.execute(select(table.c.path, table.c.size_bytes).where(key.in_(keys))).all()
        return tuple((row[0], row[1]) for row in rows)


def hold(store: Store, study_key: str, *, by: str, reason: str, now: datetime) -> int:
    """Keep all that is there of a study until it is released, and record who said so.

    Returns
    -------
    How many of its images had expired before.

    Raises
    ------
    StoreError
        There is no such study, or no reason.
    """
    if not reason.strip():
        raise StoreError("a hold needs a reason")
    values = {"hold_reason": reason.strip(), "held_by": by[:64], "held_at": now}
    with store.write() as connection:
        _change_hold(connection, study_key, values)
        _record(connection, now=now, by=by, action="hold", study_key=study_key, detail=reason.strip())
        gone = select(func.count()).where(instance.c.study_key == study_key, instance.c.removed_at.is_not(None))
        return connection.execute(gone).scalar_one()


def release(store: Store, study_key: str, *, by: str, now: datetime) -> None:
    """End a hold, and record who said so. What has expired meanwhile goes with the next round.

    Raises
    ------
    StoreError
        There is no such study, or it is not on hold.
    """
    with store.write() as connection:
        reason = connection.execute(
            select(study.c.hold_reason).where(study.c.study_key == study_key).with_for_update()
        ).scalar_one_or_none()
        _change_hold(connection, study_key, {"hold_reason": None, "held_by": None, "held_at": None})
        if reason is None:
            raise StoreError(f"study {study_key} is not on hold")
        _record(connection, now=now, by=by, action="release", study_key=study_key, detail=reason)


def _change_hold(connection: Connection, study_key: str, values: dict[str, Any]) -> None:
    if connection.execute(update(study).where(study.c.study_key == study_key).values(**values)).rowcount == 0:
        raise StoreError(f"no study {study_key}")


def _record(connection: Connection, *, now: datetime, by: str, action: str, study_key: str, detail: str) -> None:
    connection.execute(
        insert(audit).values(at=now, actor=by[:128], address="", action=action, subject=study_key, detail=detail)
    )
