"""What the receivers write: instances, studies as they grow, the quarantine."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from sqlalchemy import Connection, insert, select, update

from gateway.store.engine import Store
from gateway.store.schema import instance, quarantine, study
from gateway.study import StudyState


def new_key() -> str:
    """A key of the gateway's own: 32 hexadecimal digits, random."""
    return uuid.uuid4().hex


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


def admit_all(store: Store, arrivals: Sequence[NewInstance]) -> list[Admission]:
    """Give instances their rows and studies, all in one transaction; durable when this returns.

    Raises
    ------
    StoreError
        Nothing was written.
    """
    with store.write() as connection:
        return [_admit(connection, new) for new in arrivals]


def _admit(connection: Connection, new: NewInstance) -> Admission:
    known = connection.execute(
        select(instance.c.instance_key, instance.c.sha256, instance.c.removed_at).where(
            instance.c.sop_instance_uid == new.sop_instance_uid
        )
    ).one_or_none()
    if known is not None and known.sha256 != new.sha256:
        return Admission.OTHER_BYTES
    if known is not None and known.removed_at is None:
        return Admission.ALREADY_THERE
    study_key = _grow_study(connection, new, by=0 if known is not None else 1)
    file = {
        "path": new.path,
        "calling_ae_title": new.calling_ae_title,
        "peer_address": new.peer_address,
        "received_at": new.received_at,
    }
    if known is not None:  # its file had expired
        back = update(instance).where(instance.c.instance_key == known.instance_key)
        connection.execute(back.values(removed_at=None, **file))
        return Admission.STORED
    connection.execute(
        insert(instance).values(
            instance_key=new.instance_key,
            study_key=study_key,
            sop_instance_uid=new.sop_instance_uid,
            sop_class_uid=new.sop_class_uid,
            series_instance_uid=new.series_instance_uid,
            transfer_syntax_uid=new.transfer_syntax_uid,
            modality=new.modality,
            sha256=new.sha256,
            size_bytes=new.size_bytes,
            **file,
        )
    )
    return Admission.STORED


def _grow_study(connection: Connection, new: NewInstance, *, by: int) -> str:
    """The key of the study that `new` belongs to, made or taken back to RECEIVING."""
    row = connection.execute(
        select(study.c.study_key, study.c.state, study.c.first_received_at, study.c.complete_at)
        .where(study.c.study_instance_uid == new.header.study_instance_uid)
        .with_for_update()
    ).one_or_none()
    quiet_until = new.received_at + new.quiet_time
    if row is None:
        key = new_key()
        connection.execute(
            insert(study).values(
                study_key=key,
                study_instance_uid=new.header.study_instance_uid,
                state=StudyState.RECEIVING,
                patient_name=new.header.patient_name,
                patient_id=new.header.patient_id,
                patient_birth_date=new.header.patient_birth_date,
                patient_sex=new.header.patient_sex,
                accession_number=new.header.accession_number,
                study_date=new.header.study_date,
                study_time=new.header.study_time,
                study_description=new.header.study_description,
                modality=new.header.modality,
                instance_count=1,
                revision=1,
                first_received_at=new.received_at,
                last_received_at=new.received_at,
                complete_at=min(quiet_until, new.received_at + new.hard_cap),
            )
        )
        return key
    late = row.state not in (StudyState.RECEIVING, StudyState.PROCESSING)
    # The cap counts from the first image of this growth: for a late image, from that image.
    started = new.received_at if late or row.state == StudyState.PROCESSING else row.first_received_at
    longest = row.complete_at if row.state == StudyState.RECEIVING else quiet_until
    connection.execute(
        update(study)
        .where(study.c.study_key == row.study_key)
        .values(
            # A study that a worker holds stays with it; the worker sees the new revision when it finishes.
            state=StudyState.RECEIVING if late else row.state,
            instance_count=study.c.instance_count + by,
            revision=study.c.revision + 1,
            last_received_at=new.received_at,
            complete_at=min(max(quiet_until, longest), started + new.hard_cap),
            reason="",
        )
    )
    return str(row.study_key)


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
    """Relative paths of all files that rows refer to, for the sweep of orphans at start-up."""
    with store.read() as connection:
        return frozenset(connection.execute(select(instance.c.path)).scalars()) | frozenset(
            connection.execute(select(quarantine.c.path)).scalars()
        )
