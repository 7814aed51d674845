"""Images as a receiver leaves them: a file in the object folder, a row in the store, a study that is complete."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from photographs import write
from pydicom import Dataset
from sqlalchemy import select

from gateway.objects import ObjectFolder
from gateway.store import Store
from gateway.store.intake import NewInstance, StudyHeader, admit_all, new_key
from gateway.store.schema import study


def arrive(store: Store, data_dir: Path, dataset: Dataset, at: datetime) -> str:
    """Let an image arrive as a study of its own, or as one more of its study; the study's key."""
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
        sha256=key * 2,
        size_bytes=1,
        path=relative,
        calling_ae_title="A",
        peer_address="127.0.0.1",
        received_at=at,
        quiet_time=timedelta(0),
        hard_cap=timedelta(seconds=1),
    )
    admit_all(store, [arrival])
    with store.read() as connection:
        wanted = study.c.study_instance_uid == str(dataset.StudyInstanceUID)
        return str(connection.execute(select(study.c.study_key).where(wanted)).scalar_one())
