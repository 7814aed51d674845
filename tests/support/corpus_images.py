"""Valid small images of the eight families that models take, in many encodings; nothing in them says who.

The encoders are Pillow, pydicom and CharLS. Knows nothing of the gateway.

References
----------
PS3.3 A.2 (CR), A.3 (CT), A.4 (MR), A.6 and A.7 (US), A.8 (SC), A.26 (DX), A.27 (MG), A.41 (OP); PS3.5 A.4.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jpeg_ls
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, Sequence
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForPresentation,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    MRImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    OphthalmicPhotography8BitImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)

Pixels = NDArray[Any]


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """An item of a code sequence."""
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, scheme, meaning
    return made


def scene(rows: int, columns: int, bits: int, seed: int) -> Pixels:
    """[rows, columns] of this many bits: a ramp, waves, a disc, a little noise."""
    row, column = np.mgrid[0:rows, 0:columns]
    scene = 0.2 + 0.5 * column / columns + 0.1 * np.sin(row / 5 + seed)
    scene[(row - rows / 2) ** 2 + (column - columns / 3) ** 2 < (rows / 4) ** 2] += 0.15
    scene += np.random.default_rng(seed).normal(0, 0.01, scene.shape)
    dtype = np.uint16 if bits > 8 else np.uint8
    return (np.clip(scene, 0, 1) * ((1 << bits) - 1)).astype(dtype)


def _pixels(made: Dataset, pixels: Pixels, bits: int, *, photometric: str = "MONOCHROME2", frames: int = 0) -> None:
    """Native pixels: [rows, columns], [rows, columns, 3], or either with frames in front if `frames`."""
    shape = pixels.shape[1:] if frames else pixels.shape
    made.Rows, made.Columns = shape[0], shape[1]
    made.SamplesPerPixel = 3 if len(shape) == 3 else 1
    made.PhotometricInterpretation = photometric
    if made.SamplesPerPixel == 3:
        made.PlanarConfiguration = 0
    if frames:
        made.NumberOfFrames = frames
    made.BitsAllocated = 16 if bits > 8 else 8
    made.BitsStored, made.HighBit, made.PixelRepresentation = bits, bits - 1, 0
    content = pixels.astype("<u2").tobytes() if bits > 8 else pixels.tobytes()
    made.PixelData = content + b"\0" * (len(content) % 2)
    made["PixelData"].VR = "OW" if bits > 8 else "OB"


def _base(sop_class: str, modality: str) -> Dataset:
    made = Dataset()
    made.SOPClassUID, made.Modality = sop_class, modality
    for keyword in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID"):
        setattr(made, keyword, "")
    made.PatientBirthDate, made.PatientSex, made.StudyID, made.SeriesNumber, made.InstanceNumber = "", "F", "", 1, 1
    made.Manufacturer, made.ManufacturerModelName, made.SoftwareVersions = "Maker", "Model 5", "2.1"
    made.BurnedInAnnotation, made.LossyImageCompression = "NO", "00"
    made.PatientOrientation = ["L", "F"]
    return made


def _window(made: Dataset, centre: str, width: str) -> None:
    made.WindowCenter, made.WindowWidth = centre, width
    made.RescaleIntercept, made.RescaleSlope, made.RescaleType = "0", "1", "US"


def _radiograph(made: Dataset) -> None:
    made.PresentationIntentType, made.ImageType = "FOR PRESENTATION", ["ORIGINAL", "PRIMARY", ""]
    made.PixelIntensityRelationship, made.PixelIntensityRelationshipSign = "LOG", -1
    made.PresentationLUTShape, made.DetectorType, made.DetectorConfiguration = "IDENTITY", "DIRECT", "AREA"
    made.ImagerPixelSpacing, made.AcquisitionContextSequence = ["0.143", "0.143"], Sequence()
    made.KVP, made.ExposureTime, made.XRayTubeCurrent, made.ExposureInuAs = "110", "9", "320", "2900"
    made.DistanceSourceToDetector, made.DistanceSourceToPatient = "1800", "1700"
    made.ExposureIndex, made.DeviationIndex, made.Grid = "412.5", "-0.4", "FOCUSED"
    made.AcquisitionDate, made.AcquisitionTime = "20240102", "101112"
    _window(made, "2048", "4096")


def digital_radiograph(seed: int) -> Dataset:
    """A DX chest."""
    made = _base(DigitalXRayImageStorageForPresentation, "DX")
    _radiograph(made)
    made.AnatomicRegionSequence = Sequence([code("51185008", "SCT", "Chest")])
    made.ImageLaterality, made.BodyPartExamined, made.PositionerType, made.ViewPosition = "U", "CHEST", "NONE", "PA"
    made.ViewCodeSequence = Sequence([code("399348003", "SCT", "postero-anterior")])
    made.ViewCodeSequence[0].ViewModifierCodeSequence = Sequence()
    _pixels(made, scene(64, 72, 12, seed), 12)
    return made


def computed_radiograph(seed: int) -> Dataset:
    """A CR chest."""
    made = _base(ComputedRadiographyImageStorage, "CR")
    made.BodyPartExamined, made.ViewPosition, made.KVP, made.AcquisitionNumber = "CHEST", "AP", "95", 1
    made.ImageType, made.ImagerPixelSpacing, made.Sensitivity = ["ORIGINAL", "PRIMARY"], ["0.2", "0.2"], "214"
    made.Exposure, made.DistanceSourceToDetector = "4", "1500"
    _pixels(made, scene(60, 64, 10, seed), 10)
    made.WindowCenter, made.WindowWidth = "512", "1024"
    return made


def mammogram(seed: int) -> Dataset:
    """An MG, medio-lateral oblique."""
    made = _base(DigitalMammographyXRayImageStorageForPresentation, "MG")
    _radiograph(made)
    made.AnatomicRegionSequence = Sequence([code("76752008", "SCT", "Breast")])
    made.ImageLaterality, made.BodyPartExamined, made.ViewPosition = "L", "BREAST", "MLO"
    made.PositionerType, made.OrganExposed, made.PatientOrientation = "MAMMOGRAPHIC", "BREAST", ["A", "FR"]
    made.PositionerPrimaryAngle, made.CompressionForce, made.BodyPartThickness = "45", "88", "52"
    made.ViewCodeSequence = Sequence([code("399368009", "SCT", "medio-lateral oblique")])
    made.ViewCodeSequence[0].ViewModifierCodeSequence = Sequence()
    made.BreastImplantPresent, made.PartialView = "NO", "NO"
    made.AnodeTargetMaterial, made.FilterMaterial = "TUNGSTEN", "RHODIUM"
    _pixels(made, scene(72, 56, 12, seed), 12)
    return made


def ophthalmic_photograph(seed: int) -> Dataset:
    """An OP colour fundus photograph, JPEG baseline."""
    made = _base(OphthalmicPhotography8BitImageStorage, "OP")
    made.ImageType = ["ORIGINAL", "PRIMARY", "", "COLOR"]
    made.ImageLaterality, made.AcquisitionDateTime = "R", "20240102101112"
    made.ContentDate, made.ContentTime, made.FrameIncrementPointer, made.FrameTime = (
        "20240102",
        "101112",
        0x00181063,
        "40",
    )
    made.AcquisitionContextSequence = Sequence()
    made.AnatomicRegionSequence = Sequence([code("81745001", "SCT", "Eye")])
    made.AcquisitionDeviceTypeCodeSequence = Sequence([code("409898007", "SCT", "Fundus Camera")])
    made.IlluminationTypeCodeSequence, made.LightPathFilterTypeStackCodeSequence = Sequence(), Sequence()
    made.ImagePathFilterTypeStackCodeSequence, made.LensesCodeSequence = Sequence(), Sequence()
    made.RefractiveStateSequence, made.PatientEyeMovementCommanded = Sequence(), ""
    made.EmmetropicMagnification = made.IntraOcularPressure = None
    made.HorizontalFieldOfView = 45
    made.PupilDilated, made.MydriaticAgentSequence, made.DegreeOfDilation = "YES", Sequence(), None
    made.DetectorType, made.SynchronizationTrigger = "CCD", "NO TRIGGER"
    made.AcquisitionTimeSynchronized, made.SynchronizationFrameOfReferenceUID = "N", "1.2.3"
    made.PixelSpacing = ["0.006", "0.006"]
    made.PatientOrientation = ["L", "F"]
    red = scene(64, 64, 8, seed)
    picture = np.stack([red, red // 2, red // 3], axis=-1)
    _pixels(made, picture, 8, photometric="RGB", frames=0)
    made.NumberOfFrames = 1
    return made


def secondary_capture(seed: int) -> Dataset:
    """An SC of one frame."""
    made = _base(SecondaryCaptureImageStorage, "OT")
    made.ConversionType, made.SecondaryCaptureDeviceManufacturer = "WSD", "Maker"
    made.ImageType, made.BodyPartExamined, made.Laterality = ["DERIVED", "SECONDARY"], "HAND", "L"
    made.PixelSpacing = ["0.3", "0.3"]
    made.WindowCenter, made.WindowWidth = "128", "256"
    _pixels(made, scene(48, 64, 8, seed), 8)
    return made


def secondary_capture_frames(seed: int) -> Dataset:
    """A multi-frame grey byte SC."""
    made = _base(MultiFrameGrayscaleByteSecondaryCaptureImageStorage, "OT")
    made.ConversionType, made.ImageType, made.Laterality = "WSD", ["DERIVED", "SECONDARY"], ""
    made.PresentationLUTShape, made.RescaleIntercept, made.RescaleSlope = "IDENTITY", "0", "1"
    made.RescaleType, made.FrameIncrementPointer = "US", 0x00181063
    made.FrameTime, made.WindowCenter, made.WindowWidth = "40", "128", "256"
    _pixels(made, np.stack([scene(32, 40, 8, seed + each) for each in range(3)]), 8, frames=3)
    return made


def tomogram(seed: int) -> Dataset:
    """A CT slice of the chest."""
    made = _base(CTImageStorage, "CT")
    made.ImageType, made.KVP, made.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], "120", 1
    made.BodyPartExamined, made.PatientPosition, made.FrameOfReferenceUID = "CHEST", "HFS", "1.2.3"
    made.PositionReferenceIndicator, made.SliceThickness, made.PixelSpacing = "", "1.25", ["0.7", "0.7"]
    made.ImageOrientationPatient, made.ImagePositionPatient = ["1", "0", "0", "0", "1", "0"], ["-20", "-21", "105.5"]
    made.SliceLocation, made.ConvolutionKernel, made.XRayTubeCurrent = "105.5", "STANDARD", "280"
    made.ExposureTime, made.Exposure, made.CTDIvol, made.SpiralPitchFactor = "500", "140", 6.5, 0.98
    made.ReconstructionDiameter, made.GantryDetectorTilt, made.TableHeight = "360", "0", "140"
    _pixels(made, scene(48, 48, 12, seed), 12)
    made.RescaleIntercept, made.RescaleSlope, made.RescaleType = "-1024", "1", "HU"
    made.WindowCenter, made.WindowWidth = "40", "400"
    return made


def magnetic_resonance(seed: int) -> Dataset:
    """An MR slice of the head."""
    made = _base(MRImageStorage, "MR")
    made.ImageType, made.ScanningSequence, made.SequenceVariant = ["ORIGINAL", "PRIMARY", "OTHER"], "SE", "NONE"
    made.ScanOptions, made.MRAcquisitionType, made.RepetitionTime, made.EchoTime = "", "2D", "2500", "90"
    made.EchoTrainLength, made.FlipAngle, made.MagneticFieldStrength = "8", "150", "1.5"
    made.BodyPartExamined, made.PatientPosition, made.FrameOfReferenceUID = "HEAD", "HFS", "1.2.3"
    made.PositionReferenceIndicator, made.SliceThickness, made.PixelSpacing = "", "5", ["0.9", "0.9"]
    made.SpacingBetweenSlices, made.ImagedNucleus, made.NumberOfAverages = "6", "1H", "2"
    made.ImageOrientationPatient, made.ImagePositionPatient = ["1", "0", "0", "0", "1", "0"], ["-110", "-120", "33"]
    _pixels(made, scene(40, 40, 12, seed), 12)
    made.WindowCenter, made.WindowWidth = "600", "1200"
    return made


def _ultrasound(made: Dataset) -> None:
    made.ImageType, made.Laterality = ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"], ""
    made.UltrasoundColorDataPresent, made.TransducerType, made.MechanicalIndex = 0, "CURVED LINEAR", "0.9"
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = made.Columns - 1, made.Rows - 1
    region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = 3, 3
    region.TransducerFrequency = 3500
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.05, 0.05
    made.SequenceOfUltrasoundRegions = Sequence([region])


def ultrasound(seed: int) -> Dataset:
    """A US picture in RGB."""
    made = _base(UltrasoundImageStorage, "US")
    grey = scene(56, 72, 8, seed)
    _pixels(made, np.stack([grey, grey, grey], axis=-1), 8, photometric="RGB")
    _ultrasound(made)
    return made


def ultrasound_loop(seed: int) -> Dataset:
    """A US loop of three frames in a palette of colours."""
    made = _base(UltrasoundMultiFrameImageStorage, "US")
    frames = np.stack([scene(32, 48, 8, seed + each) for each in range(3)])
    _pixels(made, frames, 8, photometric="PALETTE COLOR", frames=3)
    made.FrameTime, made.FrameIncrementPointer = "33", 0x00181063
    ramp = (np.arange(256, dtype="<u2") * 257).astype("<u2").tobytes()
    for colour in ("Red", "Green", "Blue"):
        setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(made, f"{colour}PaletteColorLookupTableData", ramp)
    _ultrasound(made)
    return made


# --- encodings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class InStream:
    """Bytes to be hidden inside each compressed stream."""

    comment: bytes
    exif: bytes
    xmp: bytes


def _frames(made: Dataset) -> list[Pixels]:
    shape: tuple[int, ...] = (made.Rows, made.Columns)
    if made.SamplesPerPixel == 3:
        shape = (*shape, 3)
    dtype = "<u2" if made.BitsAllocated == 16 else np.uint8
    count = int(made.get("NumberOfFrames") or 1)
    size = int(np.prod(shape)) * made.BitsAllocated // 8
    return [np.frombuffer(made.PixelData[n * size : (n + 1) * size], dtype).reshape(shape) for n in range(count)]


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _jpeg(frame: Pixels, hidden: InStream) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95)
    stream = buffer.getvalue()
    more = _segment(0xE1, b"Exif\0\0" + hidden.exif)
    more += _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + hidden.xmp)
    more += _segment(0xFE, hidden.comment) + _segment(0xED, b"Photoshop 3.0\0" + hidden.comment)
    start = 2 + 2 + struct.unpack(">H", stream[4:6])[0]  # behind the JFIF segment
    return stream[:start] + more + stream[start:] + hidden.comment  # and behind the end of the image


def _jpeg_2000(frame: Pixels, hidden: InStream) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(frame if frame.dtype == np.uint8 else frame.astype(np.uint16))
    picture.save(buffer, "JPEG2000", no_jp2=True, irreversible=False, mct=int(frame.ndim == 3))
    stream = buffer.getvalue()
    size = 2 + 2 + struct.unpack(">H", stream[4:6])[0]  # SOC and SIZ
    return stream[:size] + _segment(0x64, b"\0\1" + hidden.comment) + stream[size:]


def _jpeg_ls(frame: Pixels, hidden: InStream, bits: int) -> bytes:
    stream = jpeg_ls.encode_buffer(
        frame.tobytes(), frame.shape[0], frame.shape[1], 1 if frame.ndim == 2 else 3, bits, interleave_mode=0
    )
    stream = bytes(stream)
    return stream[:2] + _segment(0xFE, hidden.comment) + _segment(0xE7, hidden.comment) + stream[2:]


def compress(made: Dataset, syntax: str, hidden: InStream) -> None:
    """Encode the native pixels of an object in place, with `hidden` in each stream where the format has room."""
    frames = _frames(made)
    if syntax == JPEGBaseline8Bit:
        streams = [_jpeg(frame, hidden) for frame in frames]
        if made.SamplesPerPixel == 3:
            made.PhotometricInterpretation = "YBR_FULL_422"
        made.LossyImageCompression, made.LossyImageCompressionRatio = "01", "5"
        made.LossyImageCompressionMethod = "ISO_10918_1"
    elif syntax == JPEG2000Lossless:
        streams = [_jpeg_2000(frame, hidden) for frame in frames]
        if made.SamplesPerPixel == 3:
            made.PhotometricInterpretation = "YBR_RCT"
    elif syntax == JPEGLSLossless:
        streams = [_jpeg_ls(frame, hidden, made.BitsStored) for frame in frames]
    elif syntax == RLELossless:
        encoder = get_encoder(RLELossless)
        streams = [_rle(encoder, made, frame) for frame in frames]
    else:
        return
    made.PixelData = encapsulate(streams)
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True


def _rle(encoder: Any, made: Dataset, frame: Pixels) -> bytes:
    encoded = encoder.encode(
        frame.tobytes(),
        encoding_plugin="pydicom",
        rows=made.Rows,
        columns=made.Columns,
        samples_per_pixel=made.SamplesPerPixel,
        number_of_frames=1,
        bits_allocated=made.BitsAllocated,
        bits_stored=made.BitsStored,
        pixel_representation=0,
        photometric_interpretation=made.PhotometricInterpretation,
        planar_configuration=0,
    )
    return bytes(encoded)


FAMILIES: dict[str, tuple[Callable[[int], Dataset], ...]] = {
    "DX": (digital_radiograph,),
    "CR": (computed_radiograph,),
    "OP": (ophthalmic_photograph,),
    "SC": (secondary_capture, secondary_capture_frames),
    "CT": (tomogram,),
    "MR": (magnetic_resonance,),
    "US": (ultrasound, ultrasound_loop),
    "MG": (mammogram,),
}
"""The eight families, and what makes an object of each."""
