"""Saved studies as rows, with or without files, for tests of queries and cases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydicom import Dataset

from gateway.store import Store
from gateway.store.intake import new_key
from gateway.store.saved import NewPrediction, SavedPrediction, SavedStudyRow, add_saved_study
from models.card import file_sha256

FIRST = datetime(2026, 1, 10, 8, tzinfo=UTC)


def said(
    *,
    model: str = "retinopathy",
    version: int = 1,
    role: str = "champion",
    device: str = "KOWA VX-10 · 1.0 · 1F2E",
    laterality: str = "R",
    score: float = 0.7,
    present: bool | None = None,
    ungradable: bool = False,
    finding: str = "referable_dr",
) -> SavedPrediction:
    """A prediction whose finding is present from 0.5 on, unless stated."""
    return SavedPrediction(
        model_name=model,
        model_version=version,
        role=role,
        device_key=device,
        laterality=laterality,
        judged_at=FIRST,
        content={
            "findings": [
                {
                    "name": finding,
                    "score": score,
                    "operating_point": 0.5,
                    "present": score >= 0.5 if present is None else present,
                }
            ],
            "ungradable_reasons": ["too dark"] if ungradable else [],
            "parameters": {"manufacturer": "Kowa"},
            "statistics": {},
            "probabilities": {},
        },
    )


def keep(
    store: Store,
    *predictions: SavedPrediction,
    number: int = 0,
    rule: str = "a tenth",
    modality: str = "OP",
    characteristics: dict[str, str] | None = None,
    dataset: Dataset | None = None,
    data_dir: Path | None = None,
    person: str = "0123456789ABCDEF",
) -> SavedStudyRow:
    """A saved study of one image, received `number` days after the first, with a file where `dataset` is given."""
    key, instance_key = new_key(), new_key()
    folder = f"saved/{key[:2]}/{key}"
    sha256, size = "a" * 64, 1
    if dataset is not None and data_dir is not None:
        path = data_dir / folder / f"{instance_key}.dcm"
        path.parent.mkdir(parents=True)
        dataset.save_as(path, enforce_file_format=True)
        sha256, size = file_sha256(path), path.stat().st_size
    received_at = FIRST + timedelta(days=number)
    values: dict[str, Any] = {
        "saved_key": key,
        "study_key": new_key(),
        "rule": rule,
        "reason": "one of ten",
        "person": person,
        "folder": folder,
        "instance_count": 1,
        "size_bytes": size,
        "received_at": received_at,
        "saved_at": received_at,
        "modality": modality,
        "characteristics": {"age_group": "60-69", "sex": "F", "site": "0A0B0C0D"}
        if characteristics is None
        else characteristics,
    }
    row = SavedStudyRow(**values)
    new = [
        NewPrediction(
            instance_key=instance_key, frame_index=0, file_name=f"{instance_key}.dcm", sha256=sha256, prediction=each
        )
        for each in predictions
    ]
    add_saved_study(store, row, new)
    return row
