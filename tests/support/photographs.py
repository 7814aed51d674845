"""Fundus photographs and radiographs as DICOM files for tests."""

from __future__ import annotations

import importlib.metadata
import io
from functools import lru_cache
from pathlib import Path

from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, OphthalmicPhotography8BitImageStorage, generate_uid

from gateway.demo_images import draw_fundus

SHARED = Path(__file__).resolve().parents[3] / "shared"
FULL_SIZE = SHARED / "data" / "fundus" / "full_size"
FUNDUS = SHARED / "data" / "fundus" / "images"


@lru_cache
def drawn_jpeg(seed: int = 1, lesions: int = 20) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(draw_fundus(seed=seed, lesions=lesions, blur_pixels=0.0, eye="R")).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def op_dataset(
    jpeg: bytes,
    *,
    patient: str = "Test^Patient",
    laterality: str = "R",
    study_instance_uid: str | None = None,
    series_instance_uid: str | None = None,
) -> Dataset:
    """An Ophthalmic Photography 8 Bit object around a JPEG stream."""
    with Image.open(io.BytesIO(jpeg)) as image:
        columns, rows = image.size
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = OphthalmicPhotography8BitImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = study_instance_uid or generate_uid()
    dataset.SeriesInstanceUID = series_instance_uid or generate_uid()
    dataset.PatientName, dataset.PatientID = patient, patient.upper().replace("^", "-")
    dataset.PatientBirthDate, dataset.PatientSex = "19600203", "F"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20260105", "101112", "7"
    dataset.AccessionNumber, dataset.ReferringPhysicianName = "ACC7", ""
    dataset.Modality, dataset.ImageLaterality = "OP", laterality
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    dataset.Manufacturer, dataset.ManufacturerModelName = "Kowa", "VX-10 alpha"
    dataset.SoftwareVersions, dataset.DeviceSerialNumber = "1.0", "SER1"
    dataset.HorizontalFieldOfView = 50.0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "YBR_FULL_422"
    dataset.PlanarConfiguration, dataset.Rows, dataset.Columns = 0, rows, columns
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.NumberOfFrames = 7, 0, 1
    dataset.PixelData = encapsulate([jpeg])
    return dataset


def write(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def pydicom_data(name: str) -> Path:
    """A file of the package pydicom-data."""
    for file in importlib.metadata.files("pydicom-data") or ():
        if file.name == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(name)
