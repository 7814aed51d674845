"""A store as receivers, workers, sender and monitor leave it, filled through their own functions, for web tests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import dcmread
from sqlalchemy import select

from gateway.objects import ObjectFolder, heat_map_path, picture_path, result_path
from gateway.settings import Settings
from gateway.store import Store
from gateway.store.deliveries import due_deliveries
from gateway.store.intake import Admission, NewInstance, StudyHeader, admit_all, new_key
from gateway.store.monitoring import add_drift_result, raise_alarm
from gateway.store.predictions import JudgementRecord, PredictionRow, ResultRow, record_judgement
from gateway.store.schema import study
from gateway.store.studies import claim_studies, complete_now, give_back
from gateway.study import StudyState

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "dicom"
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
DESTINATION = "pacs"
MODEL = "retinopathy"
SHA256 = hashlib.sha256(b"retinopathy 2").hexdigest()
DEVICE = "Kowa/VX-10/3.1/0123456789ab"


def finding(score: float, *, operating_point: float = 0.4, priority: str = "HIGH") -> dict[str, Any]:
    """A model finding as a worker writes it."""
    present = score >= operating_point
    return {
        "name": "referable",
        "title": "Referable diabetic retinopathy",
        "score": score,
        "operating_point": operating_point,
        "present": present,
        "priority": priority if present else "LOW",
        "code": {"value": "4855003", "scheme": "SCT", "meaning": "Diabetic retinopathy"},
    }


CAMERA_FINDING = {
    "tag": "(0008,1090)",
    "keyword": "manufacturer_model_name",
    "value": "CR-2",
    "expected": "VX-10",
    "severity": "warning",
    "message": "The camera model is not among those the model was validated on.",
}


@dataclass
class Site:
    """What is in the store, and how more gets into it."""

    store: Store
    data_dir: Path
    objects: ObjectFolder
    settings: Settings
    clock: datetime = NOON
    _count: int = field(default=0)

    def receive(
        self,
        *,
        study_uid: str | None = None,
        name: str = "Doe^Jane",
        file: str = "colour_jpeg_ybr_jfif.dcm",
        at: datetime | None = None,
        **header: str,
    ) -> tuple[str, str]:
        """One image arrives, its file a real one; gives study key and instance key."""
        self._count += 1
        source = FIXTURES / file
        content = source.read_bytes()
        instance_key = new_key()
        relative = f"instances/{instance_key[:2]}/{instance_key}.dcm"
        self.objects.write(relative, content, durable=False)
        study_uid = study_uid or f"1.2.826.0.1.{self._count}"
        values = {
            "patient_name": name,
            "patient_id": f"PID-{self._count:05d}",
            "patient_birth_date": "19610203",
            "patient_sex": "F",
            "accession_number": f"ACC-{self._count:05d}",
            "study_date": "20260105",
            "study_time": "101112",
            "study_description": "Fundus photography",
            "modality": "OP",
        }
        arrival = NewInstance(
            instance_key=instance_key,
            header=StudyHeader(study_instance_uid=study_uid, **(values | header)),
            sop_instance_uid=f"1.2.826.0.2.{self._count}",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.77.1.5.1",
            series_instance_uid=f"{study_uid}.1",
            transfer_syntax_uid=str(dcmread(source, stop_before_pixels=True).file_meta.TransferSyntaxUID),
            modality="OP",
            sha256=hashlib.sha256(content + instance_key.encode()).hexdigest(),
            size_bytes=len(content),
            path=relative,
            calling_ae_title="MODALITY",
            peer_address="127.0.0.1",
            received_at=at or self.clock,
            quiet_time=timedelta(seconds=5),
            hard_cap=timedelta(minutes=15),
        )
        (admitted,) = admit_all(self.store, [arrival])
        assert admitted is Admission.STORED
        with self.store.read() as connection:
            key = connection.execute(select(study.c.study_key).where(study.c.study_instance_uid == study_uid))
            return key.scalar_one(), instance_key

    def claim(self, study_key: str) -> int:
        """A worker takes the study; gives the revision it took."""
        complete_now(self.store, study_key, self.clock)
        taken = claim_studies(
            self.store,
            owner="worker-0",
            now=self.clock,
            lease=timedelta(minutes=2),
            limit=1000,
            objects=self.objects.root,
        )
        return next(each.revision for each in taken if each.study.study_key == study_key)

    def judge(
        self,
        study_key: str,
        scores: dict[str, float],
        *,
        priority: int = 2,
        version: int = 2,
        ungradable: Sequence[str] = (),
        acquisition: Sequence[dict[str, Any]] = (),
        explained: bool = True,
        deliver: bool = True,
        state: StudyState = StudyState.JUDGED,
    ) -> None:
        """A worker judges it: `scores` by instance key."""
        revision = self.claim(study_key)
        rows = tuple(
            self._prediction(key, score, version, ungradable, acquisition, explained) for key, score in scores.items()
        )
        results = tuple(self._result(study_key, kind) for kind in ("SR", "SC")) if deliver else ()
        record_judgement(
            self.store,
            JudgementRecord(
                study_key=study_key,
                revision=revision,
                state=state,
                reason="",
                priority=priority,
                predictions=rows,
                results=results,
                rules=dict.fromkeys(scores, "fundus photographs"),
                not_judged_reasons={},
            ),
            self.clock,
        )

    def fail(self, study_key: str, reason: str) -> None:
        self.claim(study_key)
        give_back(
            self.store, study_key, to=StudyState.FAILED, reason=reason, now=self.clock, delay=timedelta(seconds=0)
        )

    def pending(self) -> list[int]:
        """Ids of the deliveries that are due, in order."""
        due = due_deliveries(self.store, self.clock, destinations=[DESTINATION], limit=1000)
        return sorted(each.delivery_id for each in due)

    def drift(self, *, scope: str = "all", state: str = "no drift", kind: str = "embedding", **values: Any) -> None:
        """The monitor writes down a test."""
        row = {"reason": "", "n": 50, "statistic": 0.1, "p_value": 0.4, "effect": 0.2, "threshold_p": 0.001}
        row |= {"backend": "builtin", "seen": 50, "drivers": [], "computed_at": self.clock}
        row |= {"model_name": MODEL, "model_version": 2, "scope": scope, "kind": kind, "state": state, **values}
        add_drift_result(self.store, row)

    def alarm(self, *, scope: str = "all", version: int = 2, message: str = "mean moved by 3.1 sd") -> str:
        return raise_alarm(
            self.store,
            {
                "model_name": MODEL,
                "model_version": version,
                "scope": scope,
                "kind": "embedding",
                "message": message,
                "count": 1,
                "p_value": 0.0001,
                "effect": 3.1,
                "largest_effect": 3.1,
                "first_seen_at": self.clock,
                "last_seen_at": self.clock,
            },
        )

    def _prediction(
        self,
        instance_key: str,
        score: float,
        version: int,
        ungradable: Sequence[str],
        acquisition: Sequence[dict[str, Any]],
        explained: bool,
    ) -> PredictionRow:
        self._draw(instance_key, version, heated=explained)
        return PredictionRow(
            instance_key=instance_key,
            frame_index=0,
            model_name=MODEL,
            model_version=version,
            model_sha256=SHA256,
            demonstration=True,
            logits=[0.0, 0.0],
            probabilities={"none": round(1 - score, 6), "referable": score},
            findings=[finding(score)],
            ungradable_reasons=list(ungradable),
            explanation={"finding_name": "referable", "entropy": 0.7, "peak": 0.9} if explained else None,
            heat_map_path=heat_map_path(instance_key, 0, MODEL, version) if explained else None,
            acquisition_findings=list(acquisition),
            parameters={"manufacturer": "Kowa"},
            statistics={"level": 0.4},
            device_key=DEVICE,
            embedding=np.zeros(4, dtype=np.float32),
        )

    def _draw(self, instance_key: str, version: int, *, heated: bool) -> None:
        """The display picture, a grey ramp on red; heat in its right half alone."""
        picture = np.zeros((300, 400, 3), dtype=np.uint8)
        picture[..., 0] = np.linspace(0, 255, 400, dtype=np.uint8)
        path = self.objects.path(picture_path(instance_key, 0))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, quality=95)
        if heated:
            heat = np.zeros((75, 100), dtype=np.uint8)
            heat[:, 50:] = 255
            path = self.objects.path(heat_map_path(instance_key, 0, MODEL, version))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(heat).save(path)

    def _result(self, study_key: str, kind: str) -> ResultRow:
        key = new_key()
        return ResultRow(
            result_key=key,
            kind=kind,
            sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34" if kind == "SR" else "1.2.840.10008.5.1.4.1.1.7",
            sop_instance_uid=f"2.25.{int(key, 16)}",
            path=result_path(key),
            destinations=(DESTINATION,),
        )
