"""The structured report of one model version on one study: TID 1500 in a Comprehensive 3D SR, built with highdicom.

One measurement group an image and finding (TID 1501): tracking identifier and UID, algorithm identification, site, the
score, and the decision, negative ones too. An ungradable image has one group that says so and asserts nothing else.

References
----------
PS3.3 A.35.13 (Comprehensive 3D SR IOD); PS3.16 TID 1500, 1501, 1600, 1602, 4019, 1002, 1004; CID 6044, 240, 244.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    ImageContentItem,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from gateway.judgement import FindingResult, JudgedImage
from gateway.result_identity import (
    DEMONSTRATION,
    DEVICE_NAME,
    MANUFACTURER,
    MODEL_NAME,
    PRIVATE_SCHEME,
    TRIAGE_ONLY,
    Device,
    ascii_text,
    derive_uid,
)
from models.card import Card, Label
from models.card import CodedConcept as CardConcept

# LOINC answer list LL2117-1, the severity levels of the International Clinical Diabetic Retinopathy scale.
DR_SEVERITY_LEVELS = frozenset({"LA18643-9", "LA18644-7", "LA18645-4", "LA18646-2", "LA18648-8"})
# The two LOINC terms that take that list; an eye that the image does not name has no term of its own.
DR_SEVERITY: dict[str, Code] = {
    "L": Code("71490-7", "LN", "Left eye Diabetic retinopathy severity level"),
    "R": Code("71491-5", "LN", "Right eye Diabetic retinopathy severity level"),
}
DR_SEVERITY_EYE_UNKNOWN = Code("DR-SEVERITY", PRIVATE_SCHEME, "Diabetic retinopathy severity, eye not stated")

SCORE = Code("122157", "DCM", "Probability")
SCORE_UNIT = Code("1", "UCUM", "no units")
COMMENT = Code("121106", "DCM", "Comment")
QUALITY_ASSESSMENT = Code("111050", "DCM", "Quality Assessment")
UNUSABLE = Code("111235", "DCM", "Unusable - Quality renders image unusable")
PRESENT = Code("52101004", "SCT", "Present")
ABSENT = Code("272519000", "SCT", "Absent")
PIXELS = Code("{pixels}", "UCUM", "Pixels")
# CID 244.
LATERALITY: dict[str, Code] = {
    "L": Code("7771000", "SCT", "Left"),
    "R": Code("24028007", "SCT", "Right"),
    "B": Code("51440002", "SCT", "Bilateral"),
    "U": Code("66459002", "SCT", "Unilateral"),
}
# PS3.16 Annex L, (0018,0015) Body Part Examined of what the shipped models read.
SITES: dict[str, Code] = {
    "CHEST": Code("816094009", "SCT", "Chest"),
    "EYE": Code("81745001", "SCT", "Eye"),
    "RETINA": Code("5665001", "SCT", "Retina"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceImage:
    """What a report says about an image it was made from."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    modality: str
    laterality: str
    """``L``, ``R``, ``U``, ``B``, or empty where the image does not say."""
    body_part_examined: str
    rows: int
    columns: int
    number_of_frames: int


def report_content(
    images: Sequence[tuple[JudgedImage, SourceImage]], *, key: bytes, version_parts: Sequence[str], device: Device
) -> Dataset:
    """The root of the content tree.

    Parameters
    ----------
    images
        All of one model version, with the image that each was made from.
    version_parts
        Study, model, version and judged instances: what tracking UIDs are derived from.
    """
    groups = []
    for judged, source in images:
        groups.extend(_groups(judged, source, key, version_parts))
    report = MeasurementReport(
        observation_context=_observation_context(device),
        procedure_reported=_procedure([source for _, source in images]),
        imaging_measurements=groups,
        language_of_content_item_and_descendants=_english(),
    )
    root = report[0]
    # TID 1500: the image library comes before the measurements.
    root.ContentSequence.insert(len(root.ContentSequence) - 1, _image_library([source for _, source in images]))
    return root


def _groups(
    judged: JudgedImage, source: SourceImage, key: bytes, version_parts: Sequence[str]
) -> list[MeasurementsAndQualitativeEvaluations]:
    if judged.ungradable_reasons:
        unusable = [QualitativeEvaluation(QUALITY_ASSESSMENT, UNUSABLE)]
        reasons = f"Ungradable, no finding asserted: {'; '.join(judged.ungradable_reasons)}."
        return [_group(judged, source, "ungradable", "Ungradable", key, version_parts, [], unusable, None, [reasons])]
    groups = []
    for place, finding in enumerate(judged.findings):
        code = _concept(finding.code)
        evaluations = [QualitativeEvaluation(code, PRESENT if finding.present else ABSENT)]
        severity = _severity(judged, source) if place == 0 else None
        if severity is not None:
            evaluations.append(severity)
        score = Measurement(SCORE, round(float(finding.score), 4), SCORE_UNIT)
        comments = [_decision_text(finding)]
        groups.append(
            _group(
                judged, source, finding.name, finding.title, key, version_parts, [score], evaluations,
                # "Finding" is stated only where it is present: a reader who stops there must not read it into a negative.
                code if finding.present else None, comments,
            )
        )  # fmt: skip
    return groups


def _group(
    judged: JudgedImage,
    source: SourceImage,
    name: str,
    title: str,
    key: bytes,
    version_parts: Sequence[str],
    measurements: Sequence[Measurement],
    evaluations: Sequence[QualitativeEvaluation],
    finding: CodedConcept | None,
    comments: Sequence[str],
) -> MeasurementsAndQualitativeEvaluations:
    frame = [judged.frame_index + 1] if source.number_of_frames > 1 else None
    tracking_parts = (*version_parts, source.sop_instance_uid, str(judged.frame_index), name)
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=derive_uid(key, "tracking", tracking_parts),
            identifier=ascii_text(f"{judged.card.name} {judged.card.version}: {title}{_side_text(source)}"),
        ),
        algorithm_id=_algorithm(judged.card.name, judged.card.version, _algorithm_parameters(judged), judged.card.algorithm_family),
        finding_type=finding,
        finding_sites=_sites(source),
        measurements=measurements,
        qualitative_evaluations=evaluations,
        source_images=[SourceImageForMeasurementGroup(source.sop_class_uid, source.sop_instance_uid, frame)],
    )
    group[0].ContentSequence.extend(
        TextContentItem(COMMENT, ascii_text(text), RelationshipTypeValues.CONTAINS)
        for text in (*comments, *_warnings(judged))
    )
    return group


def _decision_text(finding: FindingResult) -> str:
    decision, sense = ("present", "at or above") if finding.present else ("absent", "below")
    return (
        f"{finding.title} {decision}: score {finding.score:.3f} is {sense} the operating point "
        f"{finding.operating_point:.3f}. Priority {finding.priority.name}."
    )


def _warnings(judged: JudgedImage) -> list[str]:
    texts = [TRIAGE_ONLY + (" " + DEMONSTRATION if judged.card.demonstration else "")]
    texts += [f"Acquisition ({item.severity}): {item.message}" for item in judged.acquisition_findings]
    if judged.explanation is None and not judged.ungradable_reasons:
        texts.append("Explanation not judged.")
    return texts


def most_probable_label(judged: JudgedImage) -> Label:
    """The label that the model finds most probable."""
    return judged.card.labels[int(np.argmax(judged.prediction.probabilities))]


def is_severity_label(label: Label) -> bool:
    """Whether a label is a level of diabetic retinopathy severity, by its LOINC code."""
    return label.code is not None and label.code.scheme == "LN" and label.code.value in DR_SEVERITY_LEVELS


def _severity(judged: JudgedImage, source: SourceImage) -> QualitativeEvaluation | None:
    label = most_probable_label(judged)
    if not is_severity_label(label) or label.code is None:
        return None
    return QualitativeEvaluation(DR_SEVERITY.get(source.laterality, DR_SEVERITY_EYE_UNKNOWN), _concept(label.code))


def _side_text(source: SourceImage) -> str:
    code = LATERALITY.get(source.laterality)
    return f", {code.meaning.lower()}" if code is not None else ""


def _concept(code: CardConcept) -> CodedConcept:
    return CodedConcept(code.value, code.scheme, ascii_text(code.meaning, 64))


def _sites(source: SourceImage) -> list[FindingSite] | None:
    site = SITES.get(source.body_part_examined) or (SITES["EYE"] if source.modality in {"OP", "OPT"} else None)
    if site is None:
        return None
    return [FindingSite(site, laterality=LATERALITY.get(source.laterality))]


def _algorithm_parameters(judged: JudgedImage) -> tuple[str, ...]:
    contract = judged.card.pixel_contract
    size = contract.size
    thresholds = [f"operating point of {finding.name}: {finding.operating_point:g}" for finding in judged.card.findings]
    preprocessing = (
        f"input {contract.photometric_interpretation} {size.columns} x {size.rows}, crop {contract.crop}, "
        f"intensity {contract.intensity}, mean {_numbers(contract.mean)}, std {_numbers(contract.std)}"
    )
    return (f"model.onnx sha256: {judged.prediction.model_sha256}", *thresholds, preprocessing)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


@lru_cache(maxsize=64)
def _algorithm(name: str, version: int, parameters: tuple[str, ...], family: CardConcept) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name=ascii_text(name),
        version=str(version),
        parameters=[ascii_text(parameter) for parameter in parameters],
        family=_concept(family),
    )


@lru_cache(maxsize=4)
def _observation_context(device: Device) -> ObservationContext:
    observer = ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=device.device_uid,
            name=DEVICE_NAME,
            manufacturer_name=MANUFACTURER,
            model_name=f"{MODEL_NAME} {device.software_version}",
            serial_number=device.serial_number,
        ),
    )
    return ObservationContext(observer_device_context=observer)


@lru_cache(maxsize=1)
def _english() -> LanguageOfContentItemAndDescendants:
    return LanguageOfContentItemAndDescendants(CodedConcept("en", "RFC5646", "English"))


def _procedure(sources: Sequence[SourceImage]) -> CodedConcept:
    """CID 100, or the DICOM subset of SNOMED CT where that says more."""
    if all(source.body_part_examined == "CHEST" for source in sources):
        return CodedConcept("413815006", "SCT", "Chest imaging")
    return CodedConcept("363679005", "SCT", "Imaging procedure")


@lru_cache(maxsize=1)
def _modalities() -> dict[str, Code]:
    """CID 29 by code value."""
    found = {}
    for name in codes.cid29.dir():
        code = getattr(codes.cid29, name)
        found[code.value] = code
    return found


def _image_library(sources: Sequence[SourceImage]) -> ContainerContentItem:
    """TID 1600 with one group (TID 1601), its entries without descriptors that a source might lack."""
    library = ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=RelationshipTypeValues.CONTAINS)
    group = ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=RelationshipTypeValues.CONTAINS)
    entries = {source.sop_instance_uid: source for source in sources}
    group.ContentSequence = ContentSequence([_library_entry(source) for source in entries.values()])
    library.ContentSequence = ContentSequence([group])
    return library


def _library_entry(source: SourceImage) -> ImageContentItem:
    context = RelationshipTypeValues.HAS_ACQ_CONTEXT
    entry = ImageContentItem(
        name=CodedConcept("260753009", "SCT", "Source"),
        referenced_sop_class_uid=source.sop_class_uid,
        referenced_sop_instance_uid=source.sop_instance_uid,
        relationship_type=RelationshipTypeValues.CONTAINS,
    )
    modality = _modalities().get(source.modality)
    descriptors = []
    if modality is not None:
        descriptors.append(CodeContentItem(codes.DCM.Modality, modality, context))
    if source.laterality in LATERALITY:
        descriptors.append(CodeContentItem(codes.DCM.ImageLaterality, LATERALITY[source.laterality], context))
    descriptors.append(NumContentItem(codes.DCM.PixelDataRows, source.rows, PIXELS, relationship_type=context))
    descriptors.append(NumContentItem(codes.DCM.PixelDataColumns, source.columns, PIXELS, relationship_type=context))
    entry.ContentSequence = ContentSequence(descriptors)
    return entry
