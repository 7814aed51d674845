"""Sources and judgements for the tests of results: made-up OP and DX objects, and what a model might say of them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from drift.acquisition import AcquisitionFinding
from gateway.judgement import Explanation, FindingResult, JudgedImage, Priority
from gateway.study import ReceivedInstance, Study
from models.card import Card
from models.prediction import Prediction

KEY = bytes(range(32))
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)

_COMMON = {
    "version": 1,
    "demonstration": True,
    "intended_use": "Tests.",
    "limits": ("Tests only.",),
    "acquisition": {},
    "training_data": (),
    "metrics": (),
    "opset": 17,
    "licence": "Apache-2.0",
    "algorithm_family": {"value": "123109", "scheme": "DCM", "meaning": "Artificial Intelligence"},
    "files": {"model.onnx": "ab" * 32, "reference.npz": "cd" * 32},
}
_CONTRACT = {
    "photometric_interpretation": "RGB",
    "channels": 3,
    "size": {"rows": 320, "columns": 320},
    "crop": "field_of_view",
    "intensity": "eight_bit",
    "mean": (0.498, 0.498, 0.498),
    "std": (0.502, 0.502, 0.502),
    "reason": "tests",
}
_GRADES = (
    ("none", "No apparent retinopathy", "LA18643-9"),
    ("mild", "Mild non-proliferative retinopathy", "LA18644-7"),
    ("moderate", "Moderate non-proliferative retinopathy", "LA18645-4"),
    ("severe", "Severe non-proliferative retinopathy", "LA18646-2"),
    ("proliferative", "Proliferative retinopathy", "LA18648-8"),
)
RETINOPATHY = Card.model_validate(
    _COMMON
    | {
        "name": "retinopathy",
        "title": "Diabetic retinopathy",
        "modalities": ("OP",),
        "labels": [
            {"name": name, "title": title, "code": {"value": value, "scheme": "LN", "meaning": title}}
            for name, title, value in _GRADES
        ],
        "activation": "softmax",
        "findings": [
            {
                "name": "referable",
                "title": "Referable diabetic retinopathy",
                "labels": ("moderate", "severe", "proliferative"),
                "operating_point": 0.35,
                "code": {"value": "REFERABLE-DR", "scheme": "99GATEWAY", "meaning": "Referable diabetic retinopathy"},
            }
        ],
        "pixel_contract": _CONTRACT,
    }
)
CHEST = Card.model_validate(
    _COMMON
    | {
        "name": "chest-triage",
        "title": "Chest triage",
        "modalities": ("CR", "DX"),
        "labels": [{"name": "normal", "title": "Normal"}, {"name": "pneumonia", "title": "Pneumonia"}],
        "activation": "softmax",
        "findings": [
            {
                "name": "pneumonia",
                "title": "Pneumonia",
                "labels": ("pneumonia",),
                "operating_point": 0.6,
                "code": {"value": "233604007", "scheme": "SCT", "meaning": "Pneumonia"},
            }
        ],
        "pixel_contract": _CONTRACT | {"photometric_interpretation": "MONOCHROME2", "crop": "none"},
    }
)

POSITIVE = (0.05, 0.1, 0.6, 0.15, 0.1)
NEGATIVE = (0.7, 0.2, 0.06, 0.03, 0.01)


def source_dataset(kind: str = "OP", **attributes: object) -> Dataset:
    """A small but complete image object; `attributes` set or (``None``: as given) replace, ``...`` delete."""
    dataset = Dataset()
    classes = {
        "OP": "1.2.840.10008.5.1.4.1.1.77.1.5.1",
        "DX": "1.2.840.10008.5.1.4.1.1.1.1",
        "OT": "1.2.840.10008.5.1.4.1.1.7",
    }
    dataset.SOPClassUID = classes[kind]
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.2"
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName = "Müller^Änne"
    dataset.PatientID = "P-4711"
    dataset.PatientBirthDate = "19600519"
    dataset.PatientSex = "F"
    dataset.StudyDate, dataset.StudyTime = "20260303", "101500"
    dataset.StudyID = "17"
    dataset.AccessionNumber = "A-0815"
    dataset.ReferringPhysicianName = "Weiß^Jörg"
    dataset.Modality = kind
    dataset.Manufacturer = "Made-up Optics"
    dataset.ManufacturerModelName = "Camera 1"
    dataset.Rows, dataset.Columns = 8, 8
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.add_new("PixelData", "OB", bytes(8 * 8 * 3))
    if kind == "OP":
        dataset.ImageLaterality = "R"
        dataset.NumberOfFrames = 1
    if kind == "DX":
        dataset.BodyPartExamined = "CHEST"
    for keyword, value in attributes.items():
        if value is ...:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def store(folder: Path, dataset: Dataset, transfer_syntax_uid: str = ExplicitVRLittleEndian) -> ReceivedInstance:
    """Write a data set as the gateway's intake would, and say what it is."""
    number = len(list(folder.glob("*.dcm")))
    path = folder / f"{number:032x}.dcm"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax_uid
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return received(path, f"{number:032x}")


def received(path: Path, instance_key: str) -> ReceivedInstance:
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    return ReceivedInstance(
        instance_key=instance_key,
        path=path,
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        series_instance_uid=str(dataset.SeriesInstanceUID),
        study_instance_uid=str(dataset.StudyInstanceUID),
        transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        calling_ae_title="MODALITY",
        received_at=NOW,
    )


def study_of(*instances: ReceivedInstance) -> Study:
    return Study(study_key="0f" * 16, instances=instances)


def judge(
    instance: ReceivedInstance,
    card: Card = RETINOPATHY,
    probabilities: tuple[float, ...] = POSITIVE,
    *,
    version: int = 1,
    ungradable: tuple[str, ...] = (),
    explained: bool = True,
    acquisition: tuple[AcquisitionFinding, ...] = (),
    picture: np.ndarray | None = None,
    frame_index: int = 0,
) -> JudgedImage:
    """What a model would say with these probabilities."""
    card = card.model_copy(update={"version": version})
    finding = card.findings[0]
    score = sum(probabilities[index] for index in card.label_indices(finding))
    present = score >= finding.operating_point
    picture = np.full((48, 64, 3), 90, dtype=np.uint8) if picture is None else picture
    heat = np.zeros(picture.shape[:2], dtype=np.float32)
    heat[heat.shape[0] // 4 : heat.shape[0] // 2, heat.shape[1] // 4 : heat.shape[1] // 2] = 1
    return JudgedImage(
        instance_key=instance.instance_key,
        frame_index=frame_index,
        prediction=Prediction(
            model_name=card.name,
            model_version=card.version,
            model_sha256=card.files["model.onnx"],
            logits=np.log(np.array(probabilities, dtype=np.float32)),
            probabilities=np.array(probabilities, dtype=np.float32),
            scores={finding.name: score},
            embedding=np.zeros(4, dtype=np.float32),
            feature_map=np.zeros((4, 2, 2), dtype=np.float32),
        ),
        card=card,
        findings=(
            FindingResult(
                name=finding.name,
                title=finding.title,
                code=finding.code,
                score=score,
                operating_point=finding.operating_point,
                present=present,
                priority=Priority.HIGH if present else Priority.LOW,
            ),
        ),
        ungradable_reasons=ungradable,
        explanation=Explanation(finding_name=finding.name, heat=heat, cam=np.ones((2, 2), dtype=np.float32), summary={})
        if explained
        else None,
        acquisition_findings=acquisition,
        statistics={},
        parameters={},
        device_key="0123456789abcdef",
        picture=picture,
    )
