"""Many judged studies at once, with scores and truth that are known, put into the store by a few statements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import insert

from gateway.store import Store
from gateway.store.intake import new_key
from gateway.store.schema import instance, prediction, study
from gateway.store.truth import Word, add_words

MODEL, FINDING = "retinopathy", "referable"
OPERATING_POINT = 0.4


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One study of one image."""

    person: str
    scores: Mapping[int, float]
    """By version."""
    truth: int | None = None
    device: str = "KOWA VX-10"
    sex: str = "F"
    age_years: float = 64
    laterality: str = ""
    ungradable: bool = False
    judged_at: datetime


def fill(store: Store, patients: Sequence[Patient], *, shadow: int | None = None) -> list[tuple[str, str]]:
    """Receive and judge; gives study and instance keys."""
    keys = [(new_key(), new_key()) for _ in patients]
    pairs = list(zip(keys, patients, strict=True))
    with store.write() as connection:
        connection.execute(insert(study), [_study(key, each) for (key, _), each in pairs])
        connection.execute(insert(instance), [_instance(key, image, each) for (key, image), each in pairs])
        rows = [
            _prediction(key, image, each, version, score, "shadow" if version == shadow else "champion")
            for (key, image), each in pairs
            for version, score in each.scores.items()
        ]
        connection.execute(insert(prediction), rows)
    return keys


def say(
    store: Store,
    keys: Sequence[tuple[str, str]],
    values: Sequence[str],
    *,
    reader: str = "A",
    of_images: bool = False,
    at: datetime,
    agrees: bool | None = None,
) -> None:
    """A reader says of each study, or of its image, what is there; an empty value is no word."""
    words = [
        Word(
            study_key=key,
            instance_key=image if of_images else "",
            model_name=MODEL,
            finding_name=FINDING,
            value=value,
            source="import",
            reader=reader,
            agrees=agrees,
            read_at=at,
        )
        for (key, image), value in zip(keys, values, strict=True)
        if value
    ]
    with store.write() as connection:
        add_words(connection, words, at)


def drawn_patients(
    seed: int, count: int, start: datetime, *, versions: Sequence[int] = (1,), noise: float = 0.0
) -> list[Patient]:
    """Studies an hour apart whose scores say how likely the finding is; later versions see less well.

    `noise` blurs the pictures: scores move, truth stays.
    """
    random = np.random.default_rng(seed)
    likely = np.where(random.random(count) < 0.35, random.beta(6, 2, count), random.beta(1.5, 8, count))
    truth = random.random(count) < likely
    logits = np.log(likely / (1 - likely)) + noise * random.normal(size=count)
    worse = {version: logits + place * 1.5 * random.normal(size=count) for place, version in enumerate(versions)}
    return [
        Patient(
            person=f"P{seed}-{number // 2}",
            scores={version: float(1 / (1 + np.exp(-values[number]))) for version, values in worse.items()},
            truth=int(truth[number]),
            device=("KOWA VX-10", "TOPCON NW400")[number % 3 == 0],
            sex="FM"[number % 2],
            age_years=40 + number % 50,
            judged_at=start + timedelta(hours=number),
        )
        for number in range(count)
    ]


def truths(patients: Sequence[Patient]) -> list[str]:
    """What a reader who is always right says."""
    return ["" if each.truth is None else ("absent", "present")[each.truth] for each in patients]


def _study(key: str, patient: Patient) -> dict[str, Any]:
    return {
        "study_key": key,
        "study_instance_uid": f"2.25.{int(key, 16)}",
        "state": "judged",
        "patient_id": patient.person,
        "first_received_at": patient.judged_at,
        "last_received_at": patient.judged_at,
        "complete_at": patient.judged_at,
        "judged_at": patient.judged_at,
        "instance_count": 1,
        "revision": 1,
    }


def _instance(key: str, image: str, patient: Patient) -> dict[str, Any]:
    return {
        "instance_key": image,
        "study_key": key,
        "sop_instance_uid": f"2.25.{int(image, 16)}",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.77.1.5.1",
        "series_instance_uid": f"2.25.{int(key, 16)}.1",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "sha256": "0" * 64,
        "size_bytes": 1,
        "path": f"instances/{image}.dcm",
        "calling_ae_title": "MODALITY",
        "peer_address": "127.0.0.1",
        "received_at": patient.judged_at,
    }


def _prediction(key: str, image: str, patient: Patient, version: int, score: float, role: str) -> dict[str, Any]:
    finding = {"name": FINDING, "title": "Referable", "score": score, "operating_point": OPERATING_POINT}
    finding |= {"present": score >= OPERATING_POINT, "priority": "HIGH"}
    finding |= {"code": {"value": "1", "scheme": "99TEST", "meaning": "Test"}}
    return {
        "study_key": key,
        "instance_key": image,
        "frame_index": 0,
        "model_name": MODEL,
        "model_version": version,
        "model_sha256": "0" * 64,
        "demonstration": True,
        "logits": [0.0, 0.0],
        "probabilities": {"none": 1 - score, "referable": score},
        "findings": [finding],
        "ungradable_reasons": ["too dark"] if patient.ungradable else [],
        "acquisition_findings": [],
        "parameters": {
            "manufacturer": patient.device.split()[0],
            "patient_sex": patient.sex,
            "patient_age_years": patient.age_years,
            "image_laterality": patient.laterality or None,
        },
        "statistics": {},
        "device_key": patient.device,
        "embedding": b"",
        "role": role,
        "judged_at": patient.judged_at,
    }
