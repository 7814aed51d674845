"""Real images of the shared folder as DICOM files with a truth table beside them, to compare versions on."""

from __future__ import annotations

import csv
import random
import re
from pathlib import Path

import numpy as np
from photographs import op_dataset, write
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CHEST, FUNDUS = SHARED / "cxr" / "test", SHARED / "fundus"


def chest_files() -> list[tuple[Path, bool]]:
    """Every test radiograph, and whether its folder says pneumonia; the two classes alternate."""
    normal = [(path, False) for path in sorted((CHEST / "NORMAL").iterdir())]
    ill = [(path, True) for path in sorted((CHEST / "PNEUMONIA").iterdir())]
    both = normal + ill
    random.Random(1).shuffle(both)
    return both


def fundus_files() -> list[tuple[Path, bool | None]]:
    """Every photograph, and whether it is graded 2 or more; None where it is not graded."""
    with (FUNDUS / "labels.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [
        (FUNDUS / "images" / row["image"], int(row["icdr_grade"]) >= 2 if row["icdr_grade"] else None) for row in rows
    ]


def write_chest(folder: Path, count: int | None = None) -> Path:
    """Radiographs as CR objects in the new `folder`; gives the truth table beside it."""
    folder.mkdir(parents=True)
    truth = []
    for number, (path, ill) in enumerate(chest_files()[:count]):
        person = re.match(r"person\d+|(NORMAL2-)?IM-\d+", path.name)[0]  # type: ignore[index]
        dataset = radiograph(np.asarray(Image.open(path).convert("L")), person=person, number=number)
        write(dataset, folder / f"{path.stem}.dcm")
        truth.append((f"{path.stem}.dcm", "present" if ill else "absent"))
    return _truth(folder, truth)


def write_fundus(folder: Path, count: int | None = None, *, graded: bool = True) -> Path:
    """Photographs as OP objects in the new `folder`; gives the truth table beside it."""
    folder.mkdir(parents=True)
    truth = []
    files = [each for each in fundus_files() if each[1] is not None or not graded]
    for number, (path, ill) in enumerate(files[:count]):
        dataset = op_dataset(path.read_bytes(), patient=f"Person^{path.stem}", laterality="RL"[number % 2])
        dataset.PatientSex = "FM"[number // 2 % 2]
        dataset.PatientAge = f"{40 + number % 45:03d}Y"
        write(dataset, folder / f"{path.stem}.dcm")
        if ill is not None:
            truth.append((f"{path.stem}.dcm", "present" if ill else "absent"))
    return _truth(folder, truth)


def radiograph(pixels: np.ndarray, *, person: str = "p", number: int = 0) -> Dataset:
    """A CR object of uint8 [rows, columns], native and uncompressed."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(
        entropy_srcs=[person, f"{number}"]
    )
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[person, f"{number}", "study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[person, f"{number}", "series"])
    dataset.PatientName, dataset.PatientID = f"Child^{person}", f"ID-{person}"
    dataset.PatientSex, dataset.PatientAge = "FM"[number % 2], f"{2 + number % 4:03d}Y"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20260105", "101112", "7"
    dataset.AccessionNumber, dataset.ReferringPhysicianName = f"ACC{number}", ""
    dataset.Modality = "CR"
    dataset.Manufacturer = ("Alpha Imaging", "Beta Systems")[number % 3 > 0]
    dataset.ManufacturerModelName = ("One", "Two", "Three")[number % 3]
    dataset.SoftwareVersions, dataset.DeviceSerialNumber = "1.0", f"SER{number % 3}"
    dataset.BurnedInAnnotation = "NO"
    dataset.ViewPosition = "AP"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels.tobytes()
    return dataset


def _truth(folder: Path, rows: list[tuple[str, str]]) -> Path:
    path = folder.with_name(f"{folder.name}-truth.csv")
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "value"])
        writer.writerows(rows)
    return path
