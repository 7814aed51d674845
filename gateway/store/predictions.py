"""What a worker leaves behind when it has judged a study: predictions, results, deliveries, the study's new state.

Later, and apart from that, what ran beside in the shadow. No reader outside this gateway's engineers sees a prediction
of the role ``shadow``: :data:`OUTWARD` is the condition that all others use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, Connection, and_, case, delete, insert, select, update

from gateway.store.engine import Store
from gateway.store.schema import delivery, instance, model_failure, prediction, quarantine, result, study
from gateway.store.studies import move_study
from gateway.study import StudyState

OUTWARD = prediction.c.role != "shadow"
"""Of a prediction: that its version judged, as champion or canary, so that it was said outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRow:
    """One prediction, ready for its row."""

    instance_key: str
    frame_index: int
    model_name: str
    model_version: int
    model_sha256: str
    demonstration: bool
    logits: list[float]
    probabilities: dict[str, float]
    findings: list[dict[str, Any]]
    ungradable_reasons: list[str]
    explanation: dict[str, Any] | None
    heat_map_path: str | None
    acquisition_findings: list[dict[str, Any]]
    parameters: dict[str, Any]
    statistics: dict[str, float]
    device_key: str
    embedding: npt.NDArray[np.float32]
    role: str = "champion"
    inference_ms: float | None = None
    provenance: dict[str, Any] | None = None
    paired_version: int | None = None
    """Of a shadow: the version that judged the same frame; ``None``: none did."""
    agrees: bool | None = None
    """Of a shadow: whether it decided every finding as that version did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRow:
    """A version that gave no prediction for a study though it should have."""

    model_name: str
    version: int
    role: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """One result object that lies in the object folder, whole."""

    result_key: str
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    path: str
    destinations: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedInstance:
    """An accepted image that was refused later; it stays in its study and is shown in the quarantine as well."""

    path: str
    """A second name of its file, relative to the object folder."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgementRecord:
    """All that judging one study gave."""

    study_key: str
    revision: int
    state: StudyState
    reason: str
    priority: int
    predictions: tuple[PredictionRow, ...]
    results: tuple[ResultRow, ...]
    rules: Mapping[str, str | None]
    """Instance key -> name of the rule that chose it."""
    not_judged_reasons: Mapping[str, str]
    """Instance key -> why no model gave a prediction for it, where a rule had chosen it."""
    quarantined: Mapping[str, QuarantinedInstance] = field(default_factory=dict)
    """By instance key."""
    failures: tuple[FailureRow, ...] = ()


def record_judgement(store: Store, record: JudgementRecord, now: datetime) -> tuple[str, ...]:
    """Write everything about one judged study in one transaction; all of it is there or none.

    Repeating it changes nothing: predictions and results are keyed by what they are about. Returns the paths of result
    files that were not needed because the store had that SOP Instance already.

    Raises
    ------
    TransitionError
        The study is no longer with a worker.
    """
    unneeded = []
    with store.write() as connection:
        for row in record.predictions:
            _replace_prediction(connection, record.study_key, row, now)
        _add_failures(connection, record.study_key, record.failures, now)
        for made in record.results:
            if not _add_result(connection, record.study_key, made, now):
                unneeded.append(made.path)
        for instance_key, rule in record.rules.items():
            connection.execute(
                update(instance)
                .where(instance.c.instance_key == instance_key)
                .values(rule=rule, not_judged_reason=record.not_judged_reasons.get(instance_key, ""))
            )
        for instance_key, quarantined in record.quarantined.items():
            _quarantine(connection, instance_key, quarantined)
        current = connection.execute(
            select(study.c.revision).where(study.c.study_key == record.study_key).with_for_update()
        ).scalar_one()
        # Images that came while it was being judged: what was judged is kept, and it goes round again.
        grew = current != record.revision
        move_study(
            connection,
            record.study_key,
            StudyState.RECEIVING if grew else record.state,
            reason=record.reason,
            # A priority is only ever raised.
            priority=case((study.c.priority < record.priority, record.priority), else_=study.c.priority),
            judged_at=now,
            lease_owner=None,
            lease_until=None,
        )
    return tuple(unneeded)


def record_shadows(
    store: Store, study_key: str, rows: Sequence[PredictionRow], failures: Sequence[FailureRow], now: datetime
) -> None:
    """Write what ran in the shadow of one judged study.

    What a version said outside stays as it was, also where it runs in the shadow of the same study later.

    Raises
    ------
    StoreError
        Nothing was written; that the study has expired meanwhile is one reason.
    """
    with store.write() as connection:
        for row in rows:
            said = select(prediction.c.prediction_id).where(_same_as(row), OUTWARD)
            if connection.execute(said).first() is None:
                _replace_prediction(connection, study_key, row, now)
        _add_failures(connection, study_key, failures, now)


def record_failures(store: Store, study_key: str, failures: Sequence[FailureRow], now: datetime) -> None:
    """Write which versions gave no prediction for a study that is not judged yet."""
    if failures:
        with store.write() as connection:
            _add_failures(connection, study_key, failures, now)


def _add_failures(connection: Connection, study_key: str, failures: Sequence[FailureRow], now: datetime) -> None:
    """One row a study, version and role: a study that is tried again is no new evidence."""
    for each in failures:
        connection.execute(
            delete(model_failure).where(
                model_failure.c.study_key == study_key,
                model_failure.c.model_name == each.model_name,
                model_failure.c.version == each.version,
                model_failure.c.role == each.role,
            )
        )
        connection.execute(insert(model_failure).values(study_key=study_key, at=now, **asdict(each)))


def _same_as(row: PredictionRow) -> ColumnElement[bool]:
    return and_(
        prediction.c.instance_key == row.instance_key,
        prediction.c.frame_index == row.frame_index,
        prediction.c.model_name == row.model_name,
        prediction.c.model_version == row.model_version,
    )


def _replace_prediction(connection: Connection, study_key: str, row: PredictionRow, now: datetime) -> None:
    connection.execute(delete(prediction).where(_same_as(row)))
    connection.execute(
        insert(prediction).values(
            study_key=study_key,
            instance_key=row.instance_key,
            frame_index=row.frame_index,
            model_name=row.model_name,
            model_version=row.model_version,
            model_sha256=row.model_sha256,
            demonstration=row.demonstration,
            logits=row.logits,
            probabilities=row.probabilities,
            findings=row.findings,
            ungradable_reasons=row.ungradable_reasons,
            explanation=row.explanation,
            heat_map_path=row.heat_map_path,
            acquisition_findings=row.acquisition_findings,
            parameters=row.parameters,
            statistics=row.statistics,
            device_key=row.device_key,
            embedding=np.ascontiguousarray(row.embedding, dtype="<f4").tobytes(),
            role=row.role,
            inference_ms=row.inference_ms,
            provenance=row.provenance,
            paired_version=row.paired_version,
            agrees=row.agrees,
            judged_at=now,
        )
    )


def _quarantine(connection: Connection, instance_key: str, quarantined: QuarantinedInstance) -> None:
    row = connection.execute(select(instance).where(instance.c.instance_key == instance_key)).one()
    # Judged again: the reason may be another one by now.
    connection.execute(delete(quarantine).where(quarantine.c.quarantine_key == instance_key))
    connection.execute(
        insert(quarantine).values(
            quarantine_key=instance_key,
            reason=quarantined.reason,
            path=quarantined.path,
            size_bytes=row.size_bytes,
            calling_ae_title=row.calling_ae_title,
            peer_address=row.peer_address,
            received_at=row.received_at,
        )
    )


def _add_result(connection: Connection, study_key: str, made: ResultRow, now: datetime) -> bool:
    row = connection.execute(
        select(result.c.result_key, result.c.removed_at).where(result.c.sop_instance_uid == made.sop_instance_uid)
    ).one_or_none()
    known = None if row is None else row.result_key
    expired = row is not None and row.removed_at is not None
    if expired:  # made again after its file had expired
        back = update(result).where(result.c.result_key == known)
        connection.execute(back.values(path=made.path, created_at=now, removed_at=None))
    if known is None:
        connection.execute(
            insert(result).values(
                result_key=made.result_key,
                study_key=study_key,
                kind=made.kind,
                sop_class_uid=made.sop_class_uid,
                sop_instance_uid=made.sop_instance_uid,
                path=made.path,
                created_at=now,
            )
        )
    result_key = made.result_key if known is None else known
    there = set(connection.execute(select(delivery.c.destination).where(delivery.c.result_key == result_key)).scalars())
    for destination in made.destinations:
        if destination not in there:
            connection.execute(
                insert(delivery).values(
                    result_key=result_key,
                    study_key=study_key,
                    destination=destination,
                    state="pending",
                    next_attempt_at=now,
                    created_at=now,
                )
            )
    return known is None or expired
