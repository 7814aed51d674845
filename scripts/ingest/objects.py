"""The objects that are sent: synthetic, with headers as devices write them, the same bytes in every run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    OphthalmicPhotography8BitImageStorage,
)

SEED = 20
_ROOT = "1.2.826.0.1.3680043.8.498."
PLACES: Mapping[str, bytes] = {
    "instance": f"{_ROOT}1{'0' * 19}".encode(),
    "study": f"{_ROOT}2{'0' * 19}".encode(),
    "series": f"{_ROOT}3{'0' * 19}".encode(),
    "patient": b"BENCH-000000000000",
}
"""Values of fixed length that the sender overwrites, so that each instance has UIDs of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentObject:
    """One kind of object, encoded once."""

    name: str
    sop_class_uid: str
    transfer_syntax_uid: str
    data_set: bytes
    per_study: int
    """Instances that share a study."""
    repeats: tuple[bytes, int] = (b"", 0)
    """A block, and how often it follows `data_set`: pixel data too long to hold."""

    @property
    def size_bytes(self) -> int:
        return len(self.data_set) + len(self.repeats[0]) * self.repeats[1]


def make(name: str) -> SentObject:
    """One of :data:`KINDS`, or ``giant``."""
    return KINDS[name]() if name in KINDS else _giant()


def _fundus() -> SentObject:
    """Ophthalmic photograph of 2848 x 4288; the JPEG stream has a real frame header and noise for a scan."""
    rows, columns = 2848, 4288
    noise = np.random.default_rng(SEED).integers(0, 255, 268_000, dtype=np.uint8).tobytes()  # no 0xFF: no markers
    size = b"\x08" + rows.to_bytes(2, "big") + columns.to_bytes(2, "big")
    frame = b"\xff\xc0\x00\x11" + size + b"\x03\x01\x21\x00\x02\x11\x01\x03\x11\x01"
    stream = b"\xff\xd8" + frame + b"\xff\xda\x00\x0c\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00" + noise + b"\xff\xd9"
    dataset = _common(OphthalmicPhotography8BitImageStorage, "OP", rows, columns)
    dataset.Manufacturer, dataset.ManufacturerModelName, dataset.ImageLaterality = "Kowa", "VX-10 alpha", "R"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "YBR_FULL_422", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.NumberOfFrames, dataset.BurnedInAnnotation = 7, 1, "NO"
    dataset.LossyImageCompression, dataset.LossyImageCompressionRatio = "01", "137"
    dataset.PixelData = encapsulate([stream])
    return _encoded("fundus", dataset, JPEGBaseline8Bit, per_study=4)


def _ct() -> SentObject:
    dataset = _common(CTImageStorage, "CT", 512, 512)
    dataset.Manufacturer, dataset.ManufacturerModelName, dataset.KVP = "SIEMENS", "SOMATOM Definition AS+", "120"
    dataset.SliceThickness, dataset.ConvolutionKernel, dataset.PatientPosition = "1.0", "B30f", "HFS"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [-180, -180, 41.5], [1, 0, 0, 0, 1, 0]
    dataset.FrameOfReferenceUID, dataset.PixelSpacing = f"{_ROOT}77", [0.703125, 0.703125]
    dataset.RescaleIntercept, dataset.RescaleSlope = "-1024", "1"
    dataset.WindowCenter, dataset.WindowWidth = ["40", "-600"], ["400", "1200"]
    dataset.PixelData = _grey(512 * 512, 12)
    return _encoded("ct", dataset, ExplicitVRLittleEndian, per_study=200)


def _dx() -> SentObject:
    rows, columns = 2022, 2022
    dataset = _common(DigitalXRayImageStorageForPresentation, "DX", rows, columns)
    dataset.Manufacturer, dataset.BodyPartExamined, dataset.ViewPosition = "Philips Medical Systems", "CHEST", "PA"
    dataset.ImagerPixelSpacing, dataset.PresentationIntentType = [0.148, 0.148], "FOR PRESENTATION"
    dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", -1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
    dataset.PixelData = _grey(rows * columns, 12)
    return _encoded("dx", dataset, ExplicitVRLittleEndian, per_study=2)


def _multiframe() -> SentObject:
    dataset = _enhanced_ct(200)
    dataset.PixelData = _grey(200 * 512 * 512, 12)
    return _encoded("multiframe", dataset, ExplicitVRLittleEndian, per_study=1)


def _giant() -> SentObject:
    """1.05 GB: 2,000 frames, whose pixel data is one frame again and again."""
    frames = 2000
    frame = _grey(512 * 512, 12)
    head = _encoded("giant", _enhanced_ct(frames), ExplicitVRLittleEndian, per_study=1)
    element = b"\xe0\x7f\x10\x00OW\x00\x00" + (frames * len(frame)).to_bytes(4, "little")
    return SentObject(
        name="giant",
        sop_class_uid=head.sop_class_uid,
        transfer_syntax_uid=head.transfer_syntax_uid,
        data_set=head.data_set + element,
        per_study=1,
        repeats=(frame, frames),
    )


KINDS: Mapping[str, Callable[[], SentObject]] = {
    "fundus": _fundus,
    "ct": _ct,
    "dx": _dx,
    "multiframe": _multiframe,
}


def _common(sop_class_uid: str, modality: str, rows: int, columns: int) -> Dataset:
    """What every image of a hospital carries, private elements included."""
    dataset = Dataset()
    dataset.SpecificCharacterSet, dataset.Modality = "ISO_IR 100", modality
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if modality == "CT" else ["ORIGINAL", "PRIMARY"]
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class_uid, PLACES["instance"].decode()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = PLACES["study"].decode(), PLACES["series"].decode()
    dataset.PatientID, dataset.PatientName = PLACES["patient"].decode(), "Benchmark^Ingest^^Dr"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19600101", "O", "066Y"
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = dataset.AcquisitionDate = "20260101"
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = dataset.AcquisitionTime = "120000.000000"
    dataset.AccessionNumber, dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "A20260101", "1", 1, 1
    dataset.InstitutionName, dataset.StationName, dataset.DeviceSerialNumber = "Klinik", "ROOM1", "4711"
    dataset.StudyDescription, dataset.SeriesDescription = "Benchmark study", "Benchmark series"
    dataset.ReferringPhysicianName, dataset.SoftwareVersions = "Referrer^R", ["VA48A", "1.2"]
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "P5-09051", "SRT", "Procedure"
    dataset.ProcedureCodeSequence = Sequence([code])
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = "RP1", "SPS1"
    dataset.RequestAttributesSequence = Sequence([request])
    private = dataset.private_block(0x0029, "BENCHMARK CSA HEADER", create=True)
    private.add_new(0x10, "OB", bytes(range(256)) * 24)
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = rows, columns, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    return dataset


def _enhanced_ct(frames: int) -> Dataset:
    dataset = _common(EnhancedCTImageStorage, "CT", 512, 512)
    dataset.Manufacturer, dataset.NumberOfFrames, dataset.ContentQualification = "TOSHIBA", frames, "PRODUCT"
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.703125, 0.703125], "1.0"
    shared.PixelMeasuresSequence = Sequence([measures])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for number in range(frames):
        position, content, group = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [-180, -180, float(number)]
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", number + 1, [1, number + 1]
        group.PlanePositionSequence, group.FrameContentSequence = Sequence([position]), Sequence([content])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return dataset


def _grey(pixels: int, bits: int) -> bytes:
    return np.random.default_rng(SEED).integers(0, 1 << bits, pixels, dtype=np.uint16).tobytes()


def _encoded(name: str, dataset: Dataset, transfer_syntax_uid: str, *, per_study: int) -> SentObject:
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = False, True
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
        dataset["PixelData"].is_undefined_length = transfer_syntax_uid == JPEGBaseline8Bit
    write_dataset(stream, dataset)
    return SentObject(
        name=name,
        sop_class_uid=str(dataset.SOPClassUID),
        transfer_syntax_uid=transfer_syntax_uid,
        data_set=stream.getvalue(),
        per_study=per_study,
    )
