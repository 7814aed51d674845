"""Judged studies with real files, and what must hold of what was saved of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
from photographs import write
from pydicom import Dataset
from sqlalchemy import insert, select

from gateway.acquisition import device_key, read_parameters
from gateway.disk import DiskGuard
from gateway.objects import ObjectFolder
from gateway.replay import data_set_sha256
from gateway.saved.saver import Saver
from gateway.settings import Settings, load_settings
from gateway.store import Store
from gateway.store.intake import NewInstance, StudyHeader, admit_all, new_key
from gateway.store.schema import prediction, saved_image, saved_study, study
from models.card import file_sha256

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
JUDGED = NOW - timedelta(hours=1)


def saving(*rules: dict[str, Any], **overrides: Any) -> Settings:
    """Settings with these rules, in which the disk is never short."""
    values = {"disk.expire_below_bytes": 0, "disk.refuse_below_bytes": 0, "saving": list(rules), **overrides}
    return load_settings(environment={}, overrides=values)


def saver_of(store: Store, data_dir: Path, settings: Settings, now: datetime = NOW) -> Saver:
    guard = DiskGuard(data_dir, settings.disk)
    return Saver(settings=settings, data_dir=data_dir, store=store, disk=guard, clock=lambda: now)


def receive(store: Store, data_dir: Path, dataset: Dataset) -> tuple[str, str]:
    """An image in the object folder and the store; keys of study and instance."""
    objects = ObjectFolder.in_data_dir(data_dir)
    key = new_key()
    relative = f"instances/{key[:2]}/{key}.dcm"
    objects.path(relative).parent.mkdir(exist_ok=True)
    write(dataset, objects.path(relative))
    arrival = NewInstance(
        instance_key=key,
        header=StudyHeader(study_instance_uid=str(dataset.StudyInstanceUID)),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        sop_class_uid=str(dataset.SOPClassUID),
        series_instance_uid=str(dataset.SeriesInstanceUID),
        transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        modality="OP",
        sha256=data_set_sha256(objects.path(relative)),
        size_bytes=objects.path(relative).stat().st_size,
        path=relative,
        calling_ae_title="CAMERA",
        peer_address="127.0.0.1",
        received_at=JUDGED,
        quiet_time=timedelta(0),
        hard_cap=timedelta(seconds=1),
    )
    admit_all(store, [arrival])
    query = select(study.c.study_key).where(study.c.study_instance_uid == str(dataset.StudyInstanceUID))
    with store.read() as connection:
        return str(connection.execute(query).scalar_one()), key


def judge(
    store: Store,
    study_key: str,
    instance_key: str,
    dataset: Dataset,
    *,
    version: int = 1,
    role: str = "champion",
    score: float = 0.7,
    ungradable: bool = False,
    acquisition: bool = False,
    model: str = "retinopathy",
    judged_at: datetime = JUDGED,
    site_key: bytes | None = None,
    provenance: dict[str, Any] | None = None,
) -> None:
    """A prediction of an image, as a worker writes it."""
    parameters = dict(read_parameters(dataset, site_key=site_key))
    with store.write() as connection:
        connection.execute(
            insert(prediction).values(
                study_key=study_key,
                instance_key=instance_key,
                frame_index=0,
                model_name=model,
                model_version=version,
                model_sha256="b" * 64,
                demonstration=True,
                logits=[score, 1 - score],
                probabilities={"a": score},
                findings=[{"name": "referable_dr", "score": score, "operating_point": 0.5, "present": score >= 0.5}],
                ungradable_reasons=["too dark"] if ungradable else [],
                explanation=None,
                heat_map_path=None,
                acquisition_findings=[{"tag": "(0008,1090)"}] if acquisition else [],
                parameters=parameters,
                statistics={"level": 0.5},
                device_key=device_key(parameters),
                embedding=b"",
                role=role,
                provenance=provenance,
                judged_at=judged_at,
            )
        )


def assert_rows_and_files_agree(store: Store, data_dir: Path) -> dict[str, int]:
    """Every row's folder is there with its files and no others, and nothing else lies there; study key -> images."""
    with store.read() as connection:
        rows = connection.execute(select(saved_study).where(saved_study.c.removed_at.is_(None))).mappings().all()
        images = connection.execute(select(saved_image)).mappings().all()
    root = data_dir / "saved"
    found = {path.relative_to(data_dir).as_posix() for path in root.glob("??/*")} if root.exists() else set()
    assert found == {row["folder"] for row in rows}
    assert not list(root.glob(".unfinished*"))
    for row in rows:
        files = {path.name: path for path in (data_dir / row["folder"]).iterdir()}
        promised = {image["file_name"]: image["sha256"] for image in images if image["saved_key"] == row["saved_key"]}
        assert {name: file_sha256(path) for name, path in files.items()} == promised
        assert row["size_bytes"] == sum(path.stat().st_size for path in files.values())
        assert row["instance_count"] == len(files)
        for path in files.values():
            assert pydicom.dcmread(path).PatientIdentityRemoved == "YES"
    assert {image["saved_key"] for image in images} <= {row["saved_key"] for row in rows}
    return {row["study_key"]: row["instance_count"] for row in rows}
