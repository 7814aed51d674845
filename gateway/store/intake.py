"""What the receivers write: instances, studies as they grow, the quarantine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from sqlalchemy import (
    ClauseElement,
    Connection,
    CursorResult,
    Dialect,
    Select,
    bindparam,
    insert,
    select,
    update,
)
from sqlalchemy.sql.compiler import SQLCompiler

from gateway.store.engine import Store
from gateway.store.schema import Utc, instance, quarantine, study
from gateway.study import StudyState


def new_key() -> str:
    """A key of the gateway's own: 32 hexadecimal digits, random."""
    return os.urandom(16).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyHeader:
    """What a reading list shows of a study. PHI."""

    study_instance_uid: str
    patient_name: str = ""
    patient_id: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    accession_number: str = ""
    study_date: str = ""
    study_time: str = ""
    study_description: str = ""
    modality: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewInstance:
    """An instance that is on disk, whole and fsynced, and wants its row."""

    instance_key: str
    header: StudyHeader
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    modality: str
    sha256: str
    size_bytes: int
    path: str
    """Relative to the object folder."""
    calling_ae_title: str
    peer_address: str
    received_at: datetime
    quiet_time: timedelta
    hard_cap: timedelta


class Admission(Enum):
    """What became of an instance."""

    STORED = "stored"
    ALREADY_THERE = "already there"
    """Same SOP Instance UID, same bytes: success, once; the new file is to be deleted."""
    OTHER_BYTES = "other bytes"
    """Same SOP Instance UID, other bytes: the first stays; the new file goes to quarantine."""


def _known_instances(count: int) -> Select[Any]:
    return select(instance.c.sop_instance_uid, instance.c.instance_key, instance.c.sha256, instance.c.removed_at).where(
        instance.c.sop_instance_uid.in_([bindparam(f"uid_{number}") for number in range(count)])
    )


def _known_studies(count: int) -> Select[Any]:
    return (
        select(
            study.c.study_instance_uid, study.c.study_key, study.c.state, study.c.first_received_at, study.c.complete_at
        )
        .where(study.c.study_instance_uid.in_([bindparam(f"uid_{number}") for number in range(count)]))
        .order_by(study.c.study_key)  # so that two transactions lock them in the same order
        .with_for_update()
    )


_NEW_STUDY = insert(study).values(
    {
        name: bindparam(name)
        for name in (
            *("study_key", "state", "reason", "priority", "attempts", "instance_count", "revision"),
            *("first_received_at", "last_received_at", "complete_at"),
            *(field.name for field in fields(StudyHeader)),
        )
    }
)
_NEW_INSTANCE = insert(instance).values(
    {
        name: bindparam(name)
        for name in (
            *("instance_key", "study_key", "sop_instance_uid", "sop_class_uid", "series_instance_uid"),
            *("transfer_syntax_uid", "modality", "sha256", "size_bytes", "path", "calling_ae_title", "peer_address"),
            *("not_judged_reason", "received_at"),
        )
    }
)
_RETURNED_INSTANCE = (
    update(instance)
    .where(instance.c.instance_key == bindparam("key"))
    .values(
        removed_at=None,
        **{name: bindparam(f"new_{name}") for name in ("path", "calling_ae_title", "peer_address", "received_at")},
    )
)
_GROWN_STUDY = (
    update(study)
    .where(study.c.study_key == bindparam("key"))
    .values(
        state=bindparam("new_state"),
        instance_count=study.c.instance_count + bindparam("more"),
        revision=study.c.revision + bindparam("steps"),
        last_received_at=bindparam("now"),
        complete_at=bindparam("complete"),
        reason="",
    )
)


def admit_all(store: Store, arrivals: Sequence[NewInstance]) -> list[Admission]:
    """As :func:`admit_waiting`, for instances that are at hand."""
    return admit_waiting(store, lambda: arrivals)


def admit_waiting(store: Store, take: Callable[[], Sequence[NewInstance]]) -> list[Admission]:
    """Give instances their rows and studies, all in one transaction; durable when this returns.

    Parameters
    ----------
    take
        Gives the instances; called when it is this process's turn to write, so that all that came while it waited go
        with them.

    Raises
    ------
    StoreError
        Nothing was written.
    """
    with store.write() as connection:
        arrivals = take()
        batch = _Batch(connection, arrivals)
        outcomes = [batch.admit(new) for new in arrivals]
        batch.write()
    return outcomes


@dataclass(slots=True, kw_only=True)
class _GrowingStudy:
    """A study as it is to be after a transaction."""

    study_key: str
    header: StudyHeader | None
    """Of a new study."""
    state: str
    first_received_at: datetime
    last_received_at: datetime
    complete_at: datetime
    more: int = 0
    steps: int = 0

    def grow(self, new: NewInstance, *, more: int) -> None:
        """Add an instance; a study that was over goes back to RECEIVING."""
        quiet_until = new.received_at + new.quiet_time
        late = self.state not in (StudyState.RECEIVING, StudyState.PROCESSING)
        # The cap counts from the first image of this growth: for a late image, from that image.
        started = new.received_at if late or self.state == StudyState.PROCESSING else self.first_received_at
        longest = self.complete_at if self.state == StudyState.RECEIVING else quiet_until
        # A study that a worker holds stays with it; the worker sees the new revision when it finishes.
        self.state = StudyState.RECEIVING if late else self.state
        self.complete_at = min(max(quiet_until, longest), started + new.hard_cap)
        self.last_received_at = new.received_at
        self.more += more
        self.steps += 1


class _Prepared:
    """The batch's statements as the driver takes them: SQLAlchemy's own execution costs several times SQLite's."""

    def __init__(self, dialect: Dialect) -> None:
        time_type = Utc().dialect_impl(dialect)
        self._dialect = dialect
        self._bind_time = time_type.bind_processor(dialect) or _unchanged
        self.time: Callable[[Any], Any] = time_type.result_processor(dialect, None) or _unchanged
        self._compiled: dict[object, tuple[str, dict[str, object], Sequence[str] | None]] = {}

    def run(
        self, connection: Connection, key: object, make: Callable[[], ClauseElement], rows: Sequence[dict[str, object]]
    ) -> CursorResult[Any]:
        """Execute a statement, once for each row of parameters."""
        text, constants, order = self._compiled.get(key) or self._compile(key, make())
        bound = [
            {name: self._bind_time(value) if isinstance(value, datetime) else value for name, value in row.items()}
            for row in rows
        ]
        if order is None:
            named = [constants | row for row in bound]
            return connection.exec_driver_sql(text, named if len(named) > 1 else named[0])
        counted = [tuple(row[name] if name in row else constants[name] for name in order) for row in bound]
        return connection.exec_driver_sql(text, counted if len(counted) > 1 else counted[0])

    def _compile(self, key: object, statement: ClauseElement) -> tuple[str, dict[str, object], Sequence[str] | None]:
        """SQL text, its constants, and the order of its parameters where the driver counts them."""
        compiled = statement.compile(dialect=self._dialect)
        assert isinstance(compiled, SQLCompiler)
        order = compiled.positiontup if compiled.positional else None
        found = self._compiled[key] = (str(compiled), dict(compiled.params), order)
        return found


def _unchanged(value: Any) -> Any:
    return value


_PREPARED: dict[str, _Prepared] = {}


def _prepared(connection: Connection) -> _Prepared:
    """Of this process and kind of database."""
    found = _PREPARED.get(connection.dialect.name)
    if found is None:
        found = _PREPARED[connection.dialect.name] = _Prepared(connection.dialect)
    return found


class _Batch:
    """What one transaction reads, decides and writes: a handful of statements, however many instances."""

    def __init__(self, connection: Connection, arrivals: Sequence[NewInstance]) -> None:
        self._connection = connection
        self._prepared = _prepared(connection)
        uids = [new.sop_instance_uid for new in arrivals]
        self._known = {
            row.sop_instance_uid: (row.instance_key, row.sha256, row.removed_at is not None)
            for row in self._select("instances", _known_instances, uids)
        }
        studies = list({new.header.study_instance_uid for new in arrivals})
        self._studies = {
            row.study_instance_uid: _GrowingStudy(
                study_key=row.study_key,
                header=None,
                state=row.state,
                first_received_at=self._prepared.time(row.first_received_at),
                last_received_at=self._prepared.time(row.first_received_at),
                complete_at=self._prepared.time(row.complete_at),
            )
            for row in self._select("studies", _known_studies, studies)
        }
        self._new: list[dict[str, object]] = []
        self._returned: list[dict[str, object]] = []

    def admit(self, new: NewInstance) -> Admission:
        """Decide on one instance, in the light of those before it."""
        key, sha256, removed = self._known.get(new.sop_instance_uid, ("", new.sha256, False))
        if sha256 != new.sha256:
            return Admission.OTHER_BYTES
        if key and not removed:
            return Admission.ALREADY_THERE
        growing = self._study_of(new)
        growing.grow(new, more=0 if removed else 1)
        where = {
            "path": new.path,
            "calling_ae_title": new.calling_ae_title,
            "peer_address": new.peer_address,
            "received_at": new.received_at,
        }
        if removed:  # its file had expired
            self._returned.append({"key": key, **{f"new_{name}": value for name, value in where.items()}})
        else:
            key = new.instance_key
            self._new.append(
                {
                    "instance_key": key,
                    "study_key": growing.study_key,
                    "sop_instance_uid": new.sop_instance_uid,
                    "sop_class_uid": new.sop_class_uid,
                    "series_instance_uid": new.series_instance_uid,
                    "transfer_syntax_uid": new.transfer_syntax_uid,
                    "modality": new.modality,
                    "sha256": new.sha256,
                    "size_bytes": new.size_bytes,
                    "not_judged_reason": "",
                    **where,
                }
            )
        self._known[new.sop_instance_uid] = (key, new.sha256, False)
        return Admission.STORED

    def _study_of(self, new: NewInstance) -> _GrowingStudy:
        found = self._studies.get(new.header.study_instance_uid)
        if found is None:
            found = self._studies[new.header.study_instance_uid] = _GrowingStudy(
                study_key=new_key(),
                header=new.header,
                state=StudyState.RECEIVING,
                first_received_at=new.received_at,
                last_received_at=new.received_at,
                complete_at=new.received_at,
            )
        return found

    def write(self) -> None:
        """Execute what was decided."""
        grown = [each for each in self._studies.values() if each.steps]
        self._execute(_NEW_STUDY, [_study_row(each, each.header) for each in grown if each.header is not None])
        self._execute(
            _GROWN_STUDY,
            [
                {
                    "key": each.study_key,
                    "new_state": str(each.state),
                    "more": each.more,
                    "steps": each.steps,
                    "now": each.last_received_at,
                    "complete": each.complete_at,
                }
                for each in grown
                if each.header is None
            ],
        )
        self._execute(_NEW_INSTANCE, self._new)
        self._execute(_RETURNED_INSTANCE, self._returned)

    def _select(self, name: str, make: Callable[[int], ClauseElement], uids: Sequence[str]) -> CursorResult[Any]:
        parameters: dict[str, object] = {f"uid_{number}": each for number, each in enumerate(uids)}
        return self._prepared.run(self._connection, (name, len(uids)), lambda: make(len(uids)), [parameters])

    def _execute(self, statement: ClauseElement, rows: list[dict[str, object]]) -> None:
        if rows:
            self._prepared.run(self._connection, statement, lambda: statement, rows)


def _study_row(growing: _GrowingStudy, header: StudyHeader) -> dict[str, object]:
    return {
        "study_key": growing.study_key,
        "state": str(growing.state),
        "reason": "",
        "priority": 0,
        "attempts": 0,
        "instance_count": growing.more,
        "revision": growing.steps,
        "first_received_at": growing.first_received_at,
        "last_received_at": growing.last_received_at,
        "complete_at": growing.complete_at,
        **asdict(header),
    }


def put_in_quarantine(
    store: Store,
    *,
    key: str,
    reason: str,
    path: str,
    size_bytes: int,
    calling_ae_title: str,
    peer_address: str,
    received_at: datetime,
) -> None:
    """Record an object that was not accepted, with the reason; its file is already in the quarantine folder."""
    with store.write() as connection:
        connection.execute(
            insert(quarantine).values(
                quarantine_key=key,
                reason=reason,
                path=path,
                size_bytes=size_bytes,
                calling_ae_title=calling_ae_title,
                peer_address=peer_address,
                received_at=received_at,
            )
        )


def known_paths(store: Store) -> frozenset[str]:
    """Relative paths of all files that rows need, for the sweep of orphans at start-up."""
    with store.read() as connection:
        return frozenset(
            path
            for table in (instance, quarantine)
            for path in connection.execute(select(table.c.path).where(table.c.removed_at.is_(None))).scalars()
        )
