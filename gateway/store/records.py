"""Predictions as they were recorded: by study, result or saved study, with where their input may be found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, or_, select

from gateway.store.engine import Store
from gateway.store.saved import SavedStudyRow, find_saved
from gateway.store.schema import instance, prediction, result, study


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPrediction:
    """What one version once said about one frame."""

    instance_key: str
    frame_index: int
    model_name: str
    model_version: int
    model_sha256: str
    role: str
    judged_at: datetime
    logits: tuple[float, ...]
    findings: Sequence[Mapping[str, Any]]
    ungradable_reasons: tuple[str, ...]
    embedding: npt.NDArray[np.float32] | None
    """``None``: not kept any more."""
    provenance: Mapping[str, Any]
    """Empty: judged before it was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalImage:
    """An image as it was received."""

    path: str
    """Relative to the object folder."""
    sha256: str
    """Of the data set's bytes, without the file meta."""
    removed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """All that is known about a study's predictions."""

    study_key: str
    predictions: tuple[RecordedPrediction, ...]
    originals: Mapping[str, OriginalImage]
    """By instance key."""
    saved: SavedStudyRow | None


def find_recorded(store: Store, key: str) -> Recorded | None:
    """The predictions of a study, or those that a result says: by the key of a study, a saved study or a result, or a
    result's SOP Instance UID. ``None`` where nothing has that key.
    """
    saved = find_saved(store, key)
    with store.read() as connection:
        of_result = connection.execute(
            select(result.c.study_key, result.c.created_at).where(
                or_(result.c.result_key == key, result.c.sop_instance_uid == key)
            )
        ).one_or_none()
        wanted = of_result.study_key if of_result is not None else saved.study_key if saved is not None else key
        known = connection.execute(select(study.c.study_key).where(study.c.study_key == wanted)).scalar()
        images = connection.execute(select(instance).where(instance.c.study_key == wanted)).mappings().all()
    rows = _predictions(store, prediction.c.study_key == wanted)
    saved = saved or find_saved(store, wanted)
    if known is None and saved is None:
        return None
    if not rows and saved is not None:  # the records have expired
        rows = _saved_predictions(saved)
    if of_result is not None:
        rows = _of_result(rows, of_result.created_at)
    return Recorded(
        study_key=wanted,
        predictions=rows,
        originals={
            row["instance_key"]: OriginalImage(path=row["path"], sha256=row["sha256"], removed_at=row["removed_at"])
            for row in images
        },
        saved=saved,
    )


def _of_result(rows: tuple[RecordedPrediction, ...], created_at: datetime) -> tuple[RecordedPrediction, ...]:
    """Those that a result says: written with it; where they were made again since, all that are shown outside."""
    shown = tuple(row for row in rows if row.role != "shadow")
    return tuple(row for row in shown if row.judged_at == created_at) or shown


def _predictions(store: Store, condition: ColumnElement[bool]) -> tuple[RecordedPrediction, ...]:
    query = select(prediction).where(condition).order_by(prediction.c.prediction_id)
    with store.read() as connection:
        rows = connection.execute(query).mappings().all()
    return tuple(
        RecordedPrediction(
            instance_key=row["instance_key"],
            frame_index=row["frame_index"],
            model_name=row["model_name"],
            model_version=row["model_version"],
            model_sha256=row["model_sha256"],
            role=row["role"],
            judged_at=row["judged_at"],
            logits=tuple(row["logits"]),
            findings=row["findings"],
            ungradable_reasons=tuple(row["ungradable_reasons"]),
            embedding=np.frombuffer(row["embedding"], dtype="<f4") if row["embedding"] else None,
            provenance=row["provenance"] or {},
        )
        for row in rows
    )


def _saved_predictions(saved: SavedStudyRow) -> tuple[RecordedPrediction, ...]:
    return tuple(
        RecordedPrediction(
            instance_key=image.instance_key,
            frame_index=image.frame_index,
            model_name=said.model_name,
            model_version=said.model_version,
            model_sha256=said.content["model_sha256"],
            role=said.role,
            judged_at=said.judged_at,
            logits=tuple(said.content["logits"]),
            findings=said.findings,
            ungradable_reasons=tuple(said.content["ungradable_reasons"]),
            embedding=None,
            provenance=said.content["provenance"] or {},
        )
        for image in saved.images
        for said in image.predictions
    )
