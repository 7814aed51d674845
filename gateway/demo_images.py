"""Sample studies for ``gateway demo``: drawn fundus photographs, a real chest radiograph, and what must not be judged.

The drawings look enough like fundus photographs to pass the quality limits. They show no patient, and what a model says
of them means nothing.
"""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image, ImageDraw, ImageFilter
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    OphthalmicPhotography8BitImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

SIDE = 1280
"""Rows and columns of a drawn photograph (pixels)."""
_RADIUS = 0.47
_CHEST = "RG1_UNCI.dcm"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleStudy:
    """One study to send."""

    title: str
    datasets: tuple[Dataset, ...]

    @property
    def study_instance_uid(self) -> str:
        """(0020,000D) *Study Instance UID*."""
        return str(self.datasets[0].StudyInstanceUID)


def sample_studies(now: datetime) -> Iterator[SampleStudy]:
    """The sample set, one study as soon as it is made, under new UIDs: each demo is a new set of studies."""
    chest = _chest_radiograph()
    if chest is not None:
        yield SampleStudy(title="a real chest radiograph (pydicom-data)", datasets=(chest,))
    yield SampleStudy(title="a phantom, which no model may see", datasets=(_phantom(_study(8, now, "QA")),))
    plans = (
        ("drawn fundus photographs, both eyes, no lesions", 0, 0.0, ("R", "L")),
        ("drawn fundus photographs, both eyes, many lesions", 60, 0.0, ("R", "L")),
        ("drawn fundus photograph, some lesions", 18, 0.0, ("R",)),
        ("drawn fundus photograph, out of focus", 4, 26.0, ("L",)),
    )
    for number, (title, lesions, blur_pixels, eyes) in enumerate(plans, start=1):
        study = _study(number, now - timedelta(minutes=7 * number), title)
        yield SampleStudy(
            title=title,
            datasets=tuple(
                _photograph(
                    study,
                    draw_fundus(seed=10 * number + place, lesions=lesions, blur_pixels=blur_pixels, eye=eye),
                    eye,
                )
                for place, eye in enumerate(eyes)
            ),
        )


def draw_fundus(*, seed: int, lesions: int, blur_pixels: float, eye: str) -> npt.NDArray[np.uint8]:
    """Draw a fundus photograph: uint8 [SIDE, SIDE, 3] RGB.

    Parameters
    ----------
    eye
        ``R`` or ``L``: the optic disc lies on the nasal side.
    lesions
        Dark and bright spots, as haemorrhages and exudates are.
    blur_pixels
        Standard deviation of a Gaussian blur over the whole.
    """
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE - 0.5
    radius = np.hypot(rows, columns)
    shade = np.clip(1.08 - 1.1 * radius, 0.3, 1.1)
    mottle = np.asarray(
        Image.fromarray(random.normal(128, 40, (200, 200)).clip(0, 255).astype(np.uint8)).resize((SIDE, SIDE)),
        dtype=np.float32,
    )
    base = np.stack([185 * shade, 88 * shade, 42 * shade], axis=2) + (mottle - 128)[..., np.newaxis] * 0.06
    picture = Image.fromarray(base.clip(0, 255).astype(np.uint8))
    disc = (0.5 + random.uniform(0.17, 0.2), 0.5 + random.uniform(-0.03, 0.03))
    _draw_glow(picture, (1 - disc[0], 0.5), 0.09, (-45, -30, -12))
    _draw_vessels(picture, disc, random)
    _draw_glow(picture, disc, 0.055, (60, 105, 75))
    _draw_lesions(picture, lesions, random)
    picture = picture.filter(ImageFilter.GaussianBlur(1.2 + blur_pixels))
    pixels = np.asarray(picture, dtype=np.float32) + random.normal(0, 2.0, (SIDE, SIDE, 1))
    pixels[radius > _RADIUS] = 0
    eight_bit = pixels.clip(0, 255).astype(np.uint8)
    return eight_bit if eye == "R" else np.ascontiguousarray(eight_bit[:, ::-1])


def _draw_glow(picture: Image.Image, centre: tuple[float, float], radius: float, colour: tuple[int, int, int]) -> None:
    """Add a soft round patch; centre and radius as fractions of the side."""
    mask = Image.new("L", picture.size)
    x, y, r = (value * SIDE for value in (*centre, radius))
    ImageDraw.Draw(mask).ellipse((x - r, y - r, x + r, y + r), fill=255)
    weight = np.asarray(mask.filter(ImageFilter.GaussianBlur(r * 0.22)), dtype=np.float32)[..., np.newaxis] / 255
    changed = np.asarray(picture, dtype=np.float32) + weight * np.asarray(colour, dtype=np.float32)
    picture.paste(Image.fromarray(changed.clip(0, 255).astype(np.uint8)))


def _draw_vessels(picture: Image.Image, disc: tuple[float, float], random: np.random.Generator) -> None:
    """Arcades that leave the disc up and down, and branch."""
    draw = ImageDraw.Draw(picture)
    branches = [
        (disc[0], disc[1], angle, width) for angle in (-2.2, -1.4, 1.4, 2.2, -0.7, 0.7) for width in (13.0, 9.0)
    ]
    while branches:
        x, y, angle, width = branches.pop()
        angle += random.normal(0, 0.12)
        bend = random.normal(0, 0.012)
        for _ in range(int(random.integers(40, 90))):
            end_x, end_y = x + np.cos(angle) * 0.008, y + np.sin(angle) * 0.008
            if np.hypot(end_x - 0.5, end_y - 0.5) > _RADIUS:
                break
            colour = (128, 40, 24) if width > 6 else (146, 56, 30)
            draw.line((x * SIDE, y * SIDE, end_x * SIDE, end_y * SIDE), fill=colour, width=max(2, round(width)))
            x, y, width = end_x, end_y, width * 0.985
            angle += bend + random.normal(0, 0.05)
            if width > 4 and random.random() < 0.035:
                branches.append((x, y, angle + random.choice((-0.7, 0.7)), width * 0.7))


def _draw_lesions(picture: Image.Image, count: int, random: np.random.Generator) -> None:
    draw = ImageDraw.Draw(picture)
    for number in range(count):
        angle, distance = random.uniform(0, 2 * np.pi), 0.38 * np.sqrt(random.random())
        x, y = (0.5 + distance * np.cos(angle)) * SIDE, (0.5 + distance * np.sin(angle)) * SIDE
        if number % 3 == 0:
            colour, r = (235, 210, 120), random.uniform(4, 12)
        else:
            colour, r = (96, 20, 14), random.uniform(5, 24)
        draw.ellipse((x - r, y - r * 0.8, x + r, y + r * 0.8), fill=colour)


def _study(number: int, at: datetime, description: str) -> Dataset:
    """Patient and study of one sample."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = f"Demo^Patient {number}"
    dataset.PatientID = f"DEMO-{number}"
    dataset.PatientBirthDate = f"19{50 + number}0101"
    dataset.PatientSex = "F" if number % 2 else "M"
    dataset.StudyInstanceUID = generate_uid()
    dataset.StudyDate = at.strftime("%Y%m%d")
    dataset.StudyTime = at.strftime("%H%M%S")
    dataset.StudyDescription = description
    dataset.StudyID = str(number)
    dataset.AccessionNumber = f"A{number:04d}"
    dataset.ReferringPhysicianName = ""
    return dataset


def _image(study: Dataset, sop_class_uid: UID, transfer_syntax_uid: UID) -> Dataset:
    dataset = Dataset()
    dataset.update(study)
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class_uid
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax_uid
    dataset.SeriesInstanceUID = generate_uid()
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = 1
    dataset.ContentDate, dataset.ContentTime = study.StudyDate, study.StudyTime
    return dataset


def _photograph(study: Dataset, pixels: npt.NDArray[np.uint8], eye: str) -> Dataset:
    """An Ophthalmic Photography 8 Bit image (PS3.3 A.41) with a JPEG inside."""
    dataset = _image(study, OphthalmicPhotography8BitImageStorage, JPEGBaseline8Bit)
    dataset.Modality = "OP"
    dataset.Manufacturer = "Kowa"
    dataset.ManufacturerModelName = "VX-10 alpha"
    dataset.DeviceSerialNumber = "DEMO"
    dataset.SoftwareVersions = "1.0"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "", "COLOR"]
    dataset.ImageLaterality = eye
    dataset.AcquisitionDateTime = study.StudyDate + study.StudyTime
    dataset.PatientEyeMovementCommanded = "NO"
    dataset.HorizontalFieldOfView = 50.0
    dataset.PupilDilated = "YES"
    dataset.BurnedInAnnotation = "NO"
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.NumberOfFrames = 1
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, subsampling="4:2:2")
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionMethod = "ISO_10918_1"
    dataset.LossyImageCompressionRatio = round(pixels.nbytes / len(stream.getvalue()), 1)
    dataset.PixelData = encapsulate([stream.getvalue()])
    return dataset


def _phantom(study: Dataset) -> Dataset:
    """A quality-control image, marked as such by (0028,0300) *Quality Control Image*."""
    dataset = _image(study, SecondaryCaptureImageStorage, ExplicitVRLittleEndian)
    dataset.Modality = "OP"
    dataset.ConversionType = "WSD"
    dataset.QualityControlImage = "YES"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows = dataset.Columns = 256
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.PixelData = np.tile(np.arange(256, dtype=np.uint8), (256, 1)).tobytes()
    return dataset


def _chest_radiograph() -> Dataset | None:
    """The Philips radiograph in pydicom-data, under new UIDs; ``None`` where that package is not installed."""
    try:
        files = importlib.metadata.files("pydicom-data") or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == _CHEST:
            dataset = pydicom.dcmread(str(file.locate()))
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            return dataset
    return None
