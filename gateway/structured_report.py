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
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
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
from models.card import CodedConcept as CardConcept
from models.card import Label

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
# highdicom refuses illegal UIDs, which devices do send: it gets this one, and the reference is then replaced.
_PLACEHOLDER_UID = "2.25.1"
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

    @property
    def is_of_eye(self) -> bool:
        return self.modality in {"OP", "OPT"} or self.body_part_examined in {"EYE", "RETINA"}

    def frame_number(self, frame_index: int) -> int | None:
        """As references give it: from 1, and only into an image with several frames."""
        return frame_index + 1 if self.number_of_frames > 1 else None

    def reference(self, *, frame_number: int | None = None) -> Dataset:
        """PS3.3 Table 10-3, Referenced Instance. The UIDs stand as the source has them, legal or not."""
        item = Dataset()
        item["ReferencedSOPClassUID"] = exact_uid("ReferencedSOPClassUID", self.sop_class_uid)
        item["ReferencedSOPInstanceUID"] = exact_uid("ReferencedSOPInstanceUID", self.sop_instance_uid)
        if frame_number is not None:
            item.ReferencedFrameNumber = frame_number
        return item


def exact_uid(keyword: str, value: str) -> DataElement:
    """A UID as it was received: not checked, so that neither an error nor a log line quotes it."""
    return DataElement(keyword, "UI", value, validation_mode=IGNORE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statement:
    """What one measurement group states."""

    name: str
    title: str
    comment: str
    evaluations: tuple[QualitativeEvaluation, ...]
    measurements: tuple[Measurement, ...] = ()
    finding: CodedConcept | None = None


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
        for statement in _statements(judged, source):
            tracking_parts = (*version_parts, source.sop_instance_uid, str(judged.frame_index), statement.name)
            groups.append(_group(judged, source, statement, derive_uid(key, "tracking", tracking_parts)))
    report = MeasurementReport(
        observation_context=_observation_context(device),
        procedure_reported=_procedure([source for _, source in images]),
        imaging_measurements=groups,
        language_of_content_item_and_descendants=_english(),
    )
    root: Dataset = report[0]
    # TID 1500: the image library comes before the measurements.
    root.ContentSequence.insert(len(root.ContentSequence) - 1, _image_library([source for _, source in images]))
    return root


def _statements(judged: JudgedImage, source: SourceImage) -> list[_Statement]:
    if judged.ungradable_reasons:
        reasons = f"Ungradable, no finding asserted: {'; '.join(judged.ungradable_reasons)}."
        unusable = QualitativeEvaluation(QUALITY_ASSESSMENT, UNUSABLE)
        return [_Statement(name="ungradable", title="Ungradable", evaluations=(unusable,), comment=reasons)]
    severity = _severity(judged, source)
    statements = []
    for place, finding in enumerate(judged.findings):
        decision = QualitativeEvaluation(_decision(finding), PRESENT if finding.present else ABSENT)
        statements.append(
            _Statement(
                name=finding.name,
                title=finding.title,
                # Stated only where it is present: a reader who stops there must not read it into a negative.
                finding=_concept(finding.code) if finding.present else None,
                measurements=(Measurement(SCORE, round(float(finding.score), 4), SCORE_UNIT),),
                evaluations=(decision, severity) if severity is not None and place == 0 else (decision,),
                comment=_decision_text(finding),
            )
        )
    return statements


def _group(
    judged: JudgedImage, source: SourceImage, statement: _Statement, tracking_uid: str
) -> MeasurementsAndQualitativeEvaluations:
    card = judged.card
    image = SourceImageForMeasurementGroup(source.sop_class_uid, _PLACEHOLDER_UID)
    image.ReferencedSOPSequence = [source.reference(frame_number=source.frame_number(judged.frame_index))]
    identifier = ascii_text(f"{card.name} {card.version}: {statement.title}{_side_text(source)}")
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=tracking_uid, identifier=identifier),
        algorithm_id=_algorithm(card.name, card.version, _algorithm_parameters(judged), card.algorithm_family),
        finding_type=statement.finding,
        finding_sites=_sites(source),
        measurements=statement.measurements,
        qualitative_evaluations=statement.evaluations,
        source_images=[image],
    )
    group[0].ContentSequence.extend(
        TextContentItem(COMMENT, ascii_text(text), RelationshipTypeValues.CONTAINS)
        for text in (statement.comment, *_warnings(judged))
    )
    return group


def _decision(finding: FindingResult) -> CodedConcept:
    """What is said to be present or absent.

    The card's code where its meaning is the finding's title. Otherwise the code is broader than the finding (no
    *referable* retinopathy is not no retinopathy), and a negative must not be stated of it: a private code is.
    """
    if finding.title.casefold() == finding.code.meaning.casefold():
        return _concept(finding.code)
    value = ascii_text(finding.name, 16).upper()
    return CodedConcept(value, PRIVATE_SCHEME, ascii_text(finding.title, 64))


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
    site = SITES.get(source.body_part_examined) or (SITES["EYE"] if source.is_of_eye else None)
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
        referenced_sop_instance_uid=_PLACEHOLDER_UID,
        relationship_type=RelationshipTypeValues.CONTAINS,
    )
    entry.ReferencedSOPSequence = [source.reference()]
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
