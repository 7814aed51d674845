"""Result objects: what goes back into the original study, under the original patient.

For each model version that read images of a study: one structured report and one series of key images. UIDs follow
from the installation's key and from what was judged, so a repeated run makes the same objects, not second ones.

References
----------
PS3.3 A.35.13 (Comprehensive 3D SR), A.8.1 (Secondary Capture), C.7.5.1, C.12.1.
"""

from __future__ import annotations

import traceback
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
)

from gateway import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, key_image
from gateway.errors import ResultError, ResultMismatchError
from gateway.judgement import JudgedImage
from gateway.result_header import (
    copy_identity,
    local_time,
    raw_value,
    require_same_bytes,
    require_same_identity,
    text_value,
)
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
    device_of,
)
from gateway.structured_report import LATERALITY, SourceImage, exact_uid, report_content
from gateway.study import ReceivedInstance, Study

# Series numbers of the results start here, above what modalities use; two a model version.
FIRST_SERIES_NUMBER = 9001


# What pydicom, highdicom and Pillow raise on data they do not take; mapped to ResultError at this room's one edge.
FOREIGN_ERRORS = (ArithmeticError, AttributeError, LookupError, NotImplementedError, OSError, TypeError, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultObject:
    """One object for the PACS. Holds PHI."""

    kind: str
    """``SR`` or ``SC``."""
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    dataset: Dataset
    """With file meta; ready for ``dcmwrite(enforce_file_format=True)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A source image read again, without its pixels."""

    dataset: Dataset
    image: SourceImage


@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    """All that one model version said about a study, and what its results share."""

    images: tuple[tuple[JudgedImage, _Source], ...]
    identity: Dataset
    """What patient and study are taken from."""
    parts: tuple[str, ...]
    """What UIDs are derived from."""
    number: int
    """Place among the model versions, from 0."""
    key: bytes
    now: datetime
    device: Device

    @property
    def source(self) -> Dataset:
        """The first image that it read."""
        return self.images[0][1].dataset

    @property
    def judged(self) -> JudgedImage:
        return self.images[0][0]


def build_results(
    study: Study,
    judged: Sequence[JudgedImage],
    *,
    key: bytes,
    now: datetime,
    gateway_version: str,
    identity: Dataset | None = None,
) -> tuple[ResultObject, ...]:
    """Build the structured report and the key images of every model version in `judged`.

    Parameters
    ----------
    study
        As received; patient and study are taken from the images that were judged.
    judged
        In any order; the results do not depend on it.
    key
        Secret of the installation, from which all UIDs are derived.
    now
        Aware; becomes the content date and time. The caller keeps it for a study, so that a repeated run gives equal
        objects.
    gateway_version
        Written as software version.
    identity
        Patient and study attributes as the vault gave them back; ``None``: those of the images.

    Returns
    -------
    For each model version, in order of name and version, its report and then its key images.

    Raises
    ------
    ResultError
        An image was judged that is not of this study, or an object could not be built; says where, without values.
    ResultMismatchError
        The images judged, or a result and its source, disagree on patient, study or accession number.
    """
    if now.tzinfo is None:
        raise ResultError("the time of a result needs a time zone")
    try:
        return _build(study, judged, identity, key=key, now=now, device=device_of(key, gateway_version))
    except FOREIGN_ERRORS as error:
        # Their texts may quote the source, so only their kind and place go further.
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ResultError(
            f"study {study.study_key}: {type(error).__name__} in {Path(place.filename).name} line {place.lineno}"
        ) from None


def _build(
    study: Study,
    judged: Sequence[JudgedImage],
    identity: Dataset | None,
    *,
    key: bytes,
    now: datetime,
    device: Device,
) -> tuple[ResultObject, ...]:
    sources = _read_sources(study, judged)
    versions: dict[tuple[str, int, str], list[JudgedImage]] = defaultdict(list)
    for image in judged:
        prediction = image.prediction
        versions[prediction.model_name, prediction.model_version, prediction.model_sha256].append(image)
    results: list[ResultObject] = []
    for number, name in enumerate(sorted(versions)):
        version = _version(name, versions[name], sources, identity, number, key=key, now=now, device=device)
        results.append(_report(version))
        results.extend(_key_image(version, place) for place in range(len(version.images)))
    originals = [source.dataset for source in sources.values()]
    for dataset in originals[1:]:
        require_same_identity(dataset, originals[0])
    for result in results:
        require_same_bytes(result.dataset, originals if identity is None else [identity])
        require_same_identity(result.dataset, originals[0])
    return tuple(results)


def _read_sources(study: Study, judged: Sequence[JudgedImage]) -> dict[str, _Source]:
    received = {instance.instance_key: instance for instance in study.instances}
    sources: dict[str, _Source] = {}
    for instance_key in {image.instance_key for image in judged}:
        if instance_key not in received:
            raise ResultError(f"instance {instance_key} was judged but is not of study {study.study_key}")
        sources[instance_key] = _read_source(received[instance_key])
    return sources


def _read_source(instance: ReceivedInstance) -> _Source:
    dataset = instance.read(pixels=False)
    if text_value(dataset, "StudyInstanceUID") != instance.study_instance_uid:
        raise ResultMismatchError(f"instance {instance.instance_key} is stored under another study than it names")
    laterality = text_value(dataset, "ImageLaterality") or text_value(dataset, "Laterality")
    image = SourceImage(
        sop_class_uid=instance.sop_class_uid,
        sop_instance_uid=instance.sop_instance_uid,
        series_instance_uid=instance.series_instance_uid,
        modality=text_value(dataset, "Modality"),
        laterality=laterality if laterality in LATERALITY else "",
        body_part_examined=text_value(dataset, "BodyPartExamined").upper(),
        rows=int(dataset.get("Rows") or 0),
        columns=int(dataset.get("Columns") or 0),
        number_of_frames=_whole_number(text_value(dataset, "NumberOfFrames")) or 1,
    )
    return _Source(dataset=dataset, image=image)


def _whole_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _version(
    model: tuple[str, int, str],
    judged: Sequence[JudgedImage],
    sources: Mapping[str, _Source],
    identity: Dataset | None,
    number: int,
    *,
    key: bytes,
    now: datetime,
    device: Device,
) -> _Version:
    ordered = sorted(judged, key=lambda image: (_sop_instance_uid(sources, image), image.frame_index))
    name, version, sha256 = model
    first = sources[ordered[0].instance_key]
    frames = [f"{_sop_instance_uid(sources, image)} {image.frame_index}" for image in ordered]
    return _Version(
        images=tuple((image, sources[image.instance_key]) for image in ordered),
        identity=first.dataset if identity is None else identity,
        parts=(text_value(first.dataset, "StudyInstanceUID"), name, str(version), sha256, *frames),
        number=number,
        key=key,
        now=local_time(now, first.dataset),
        device=device,
    )


def _sop_instance_uid(sources: Mapping[str, _Source], judged: JudgedImage) -> str:
    return sources[judged.instance_key].image.sop_instance_uid


def _report(version: _Version) -> ResultObject:
    dataset = _header(version, Comprehensive3DSRStorage, "SR", "SR", 1, ExplicitVRLittleEndian)
    dataset.ReferencedPerformedProcedureStepSequence = []
    dataset.PerformedProcedureCodeSequence = []
    dataset.CompletionFlag = "COMPLETE"
    dataset.VerificationFlag = "UNVERIFIED"
    dataset.PreliminaryFlag = "PRELIMINARY"
    root = report_content(
        [(judged, source.image) for judged, source in version.images],
        key=version.key,
        version_parts=version.parts,
        device=version.device,
    )
    for element in root:
        dataset[element.tag] = element
    dataset.CurrentRequestedProcedureEvidenceSequence = [_evidence(version)]
    return _finished(dataset, "SR")


def _evidence(version: _Version) -> Dataset:
    """PS3.3 C.17.2.3: every image that the content refers to, by series."""
    by_series: dict[str, dict[str, Dataset]] = defaultdict(dict)
    for _, source in version.images:
        image = source.image
        by_series[image.series_instance_uid][image.sop_instance_uid] = image.reference()
    study = Dataset()
    study.ReferencedSeriesSequence = []
    for series_instance_uid, references in by_series.items():
        series = Dataset()
        series.ReferencedSOPSequence = list(references.values())
        series["SeriesInstanceUID"] = exact_uid("SeriesInstanceUID", series_instance_uid)
        study.ReferencedSeriesSequence.append(series)
    study["StudyInstanceUID"] = exact_uid("StudyInstanceUID", version.parts[0])
    return study


def _key_image(version: _Version, place: int) -> ResultObject:
    judged, source = version.images[place]
    image = source.image
    side = LATERALITY[image.laterality].meaning.lower() if image.laterality else ""
    pixels = key_image.render(judged, side)
    encoded = key_image.encode(pixels)
    kind = f"SC {image.sop_instance_uid} {judged.frame_index}"
    dataset = _header(version, SecondaryCaptureImageStorage, kind, "OT", place + 1, JPEGBaseline8Bit)
    dataset.ConversionType = "WSD"
    dataset.DateOfSecondaryCapture = dataset.ContentDate
    dataset.TimeOfSecondaryCapture = dataset.ContentTime
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.DerivationDescription = ascii_text(
        f"Heat map (Grad-CAM) of {judged.card.name} version {judged.card.version} over the source image", 1024
    )
    reference = image.reference(frame_number=image.frame_number(judged.frame_index))
    reference.PurposeOfReferenceCodeSequence = [_code("121322", "DCM", "Source image for image processing operation")]
    dataset.SourceImageSequence = [reference]
    dataset.PatientOrientation = None
    dataset.ImageComments = _disclaimer(judged)
    dataset.BurnedInAnnotation = "NO"  # the legend names the model, not the patient
    if image.laterality:
        dataset.ImageLaterality = image.laterality
    elif image.body_part_examined != "CHEST":
        dataset.Laterality = None  # Type 2C: may be a paired organ, and the source does not say which side
    if image.body_part_examined in {"CHEST", "EYE", "RETINA"}:
        dataset.BodyPartExamined = image.body_part_examined
    _set_pixels(dataset, pixels.shape[0], pixels.shape[1], encoded)
    return _finished(dataset, "SC")


def _set_pixels(dataset: Dataset, rows: int, columns: int, encoded: bytes) -> None:
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionRatio = round(rows * columns * 3 / len(encoded), 2)
    dataset.LossyImageCompressionMethod = "ISO_10918_1"
    dataset["PixelData"] = DataElement("PixelData", "OB", encapsulate([encoded]), is_undefined_length=True)


def _header(
    version: _Version, sop_class_uid: UID, kind: str, modality: str, instance_number: int, transfer_syntax_uid: UID
) -> Dataset:
    """Patient and study of the source; the gateway's own series, equipment and SOP Common."""
    family = kind.split(maxsplit=1)[0]
    dataset = copy_identity(version.identity)
    dataset.SOPClassUID = sop_class_uid
    dataset.SOPInstanceUID = derive_uid(version.key, kind, version.parts)
    dataset.SeriesInstanceUID = derive_uid(version.key, f"series {family}", version.parts)
    dataset.Modality = modality
    dataset.SeriesNumber = FIRST_SERIES_NUMBER + 2 * version.number + (family == "SC")
    card = version.judged.card
    what = "report" if family == "SR" else "key images"
    dataset.SeriesDescription = ascii_text(f"AI triage {what}: {card.name} v{card.version}, not for diagnosis", 64)
    dataset.InstanceNumber = instance_number
    date, time = version.now.strftime("%Y%m%d"), version.now.strftime("%H%M%S")
    for moment in ("InstanceCreation", "Series", "Content"):
        setattr(dataset, f"{moment}Date", date)
        setattr(dataset, f"{moment}Time", time)
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = MODEL_NAME
    dataset.DeviceSerialNumber = version.device.serial_number
    dataset.SoftwareVersions = version.device.software_version
    dataset.StationName = DEVICE_NAME
    dataset.ContributingEquipmentSequence = _contributing_equipment(version)
    if family == "SR":
        dataset.CodingSchemeIdentificationSequence = [_private_scheme()]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = sop_class_uid
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = transfer_syntax_uid
    dataset.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    dataset.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return dataset


def _contributing_equipment(version: _Version) -> list[Dataset]:
    """The device that made the source, where it says who made it, and the gateway that processed it."""
    items = []
    acquired_by = ascii_text(raw_value(version.source, "Manufacturer").decode("latin-1"), 64)
    if acquired_by:
        acquisition = Dataset()
        acquisition.PurposeOfReferenceCodeSequence = [_code("109101", "DCM", "Acquisition Equipment")]
        acquisition.Manufacturer = acquired_by
        model_name = ascii_text(raw_value(version.source, "ManufacturerModelName").decode("latin-1"), 64)
        if model_name:
            acquisition.ManufacturerModelName = model_name
        items.append(acquisition)
    processing = Dataset()
    processing.PurposeOfReferenceCodeSequence = [_code("109102", "DCM", "Processing Equipment")]
    processing.Manufacturer = MANUFACTURER
    processing.ManufacturerModelName = MODEL_NAME
    processing.DeviceSerialNumber = version.device.serial_number
    processing.SoftwareVersions = version.device.software_version
    processing.ContributionDateTime = version.now.strftime("%Y%m%d%H%M%S%z")
    card = version.judged.card
    processing.ContributionDescription = ascii_text(f"Inference with {card.name} version {card.version}")
    return [*items, processing]


def _private_scheme() -> Dataset:
    scheme = Dataset()
    scheme.CodingSchemeDesignator = PRIVATE_SCHEME
    scheme.CodingSchemeName = "Codes of the imaging gateway"
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    return scheme


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _disclaimer(judged: JudgedImage) -> str:
    return TRIAGE_ONLY + (" " + DEMONSTRATION if judged.card.demonstration else "")


def _finished(dataset: Dataset, kind: str) -> ResultObject:
    return ResultObject(
        kind=kind,
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        series_instance_uid=str(dataset.SeriesInstanceUID),
        dataset=dataset,
    )
