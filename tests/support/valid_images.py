"""One valid image of each family that models take, as devices send them: dciodvfy finds no error in them.

Synthetic; imports nothing of the gateway's. PS3.3 Annex A says what each needs.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from pydicom import Dataset, Sequence
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

IMAGES = "1.2.840.10008.5.1.4.1.1."
SIDE = 16


def code(value: str, scheme: str, meaning: str, **more: Sequence) -> Dataset:
    """One code with further sequences in its item."""
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, scheme, meaning
    for keyword, items in more.items():
        setattr(made, keyword, items)
    return made


def base(sop_class: str, modality: str) -> Dataset:
    """Patient, study, series, equipment and twelve-bit pixels."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SpecificCharacterSet = "ISO_IR 100"
    made.SOPClassUID, made.SOPInstanceUID = IMAGES + sop_class, "1.2.826.0.1.3680043.2.1"
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.826.0.1.3680043.2.2", "1.2.826.0.1.3680043.2.3"
    made.PatientName, made.PatientID, made.PatientBirthDate, made.PatientSex = "Doe^Jane", "4711", "19500101", "F"
    made.PatientAge, made.PatientSize, made.PatientWeight = "074Y", "1.71", "70"
    made.StudyDate, made.StudyTime, made.AccessionNumber, made.StudyID = "20240102", "101112", "A1", "S1"
    made.SeriesDate, made.SeriesTime, made.ContentDate, made.ContentTime = "20240102", "101113", "20240102", "101114"
    made.ReferringPhysicianName, made.OperatorsName = "Roe^Richard", "Poe^Edgar"
    made.StudyDescription, made.SeriesDescription = "Study of Doe", "Series"
    made.InstitutionName, made.InstitutionAddress, made.StationName = "Hospital", "Street 1", "ROOM7"
    made.Modality, made.Manufacturer, made.ManufacturerModelName = modality, "Maker", "Model X"
    made.DeviceSerialNumber, made.SoftwareVersions = "SN99", ["1.2", "3"]
    made.SeriesNumber, made.InstanceNumber, made.AcquisitionNumber = 2, 1, 1
    made.ImageType, made.PatientOrientation = ["ORIGINAL", "PRIMARY"], ["L", "F"]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns, made.BitsAllocated, made.BitsStored, made.HighBit = SIDE, SIDE, 16, 12, 11
    made.PixelRepresentation, made.BurnedInAnnotation, made.LossyImageCompression = 0, "NO", "00"
    made.PixelData = (np.arange(SIDE * SIDE, dtype="<u2") * 15 % 4096).tobytes()
    made["PixelData"].VR = "OW"
    return made


def request() -> Sequence:
    """A request with texts and an ID."""
    item = Dataset()
    item.RequestedProcedureID, item.ScheduledProcedureStepID = "R1", "P1"
    item.RequestedProcedureDescription = "Because of Doe"
    return Sequence([item])


def reference(sop_class: str, purpose: Dataset | None = None) -> Sequence:
    """A reference to another instance."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = IMAGES + sop_class, "1.2.826.0.1.3680043.2.9"
    if purpose is not None:
        item.PurposeOfReferenceCodeSequence = Sequence([purpose])
    return Sequence([item])


def computed_radiograph() -> Dataset:
    """CR."""
    made = base("1", "CR")
    made.BodyPartExamined, made.ViewPosition, made.KVP, made.PlateID = "CHEST", "PA", "120", "PL1"
    made.FilterType, made.PlateType, made.Exposure = "NONE", "ST", 2
    made.RequestAttributesSequence = request()
    return made


def digital_radiograph(sop_class: str = "1.1", modality: str = "DX") -> Dataset:
    """DX, for presentation."""
    made = base(sop_class, modality)
    made.PresentationIntentType, made.ImageType = "FOR PRESENTATION", ["ORIGINAL", "PRIMARY", ""]
    region = code("51185008", "SCT", "Chest")
    made.AnatomicRegionSequence = Sequence([region])
    made.ImageLaterality, made.PixelIntensityRelationship, made.PixelIntensityRelationshipSign = "U", "LOG", -1
    made.RescaleIntercept, made.RescaleSlope, made.RescaleType = "0", "1", "US"
    made.WindowCenter, made.WindowWidth, made.WindowCenterWidthExplanation = "2048", "4096", "Dr. Roe's"
    made.PresentationLUTShape, made.DetectorType, made.DetectorConfiguration = "IDENTITY", "DIRECT", "AREA"
    made.DetectorID, made.DetectorDescription = "D5", "Room 7"
    made.DateOfLastDetectorCalibration, made.TimeOfLastDetectorCalibration = "20240101", "070000"
    made.ImagerPixelSpacing, made.PositionerType, made.ViewPosition = ["0.1", "0.1"], "NONE", "PA"
    made.ViewCodeSequence = Sequence(
        [code("399348003", "SCT", "postero-anterior", ViewModifierCodeSequence=Sequence())]
    )
    made.AcquisitionContextSequence = Sequence()
    made.AcquisitionDate, made.AcquisitionTime = "20240102", "101112"
    made.KVP, made.Exposure, made.ExposureIndex, made.TargetExposureIndex = "120", 2, "250", "300"
    made.RequestAttributesSequence = request()
    return made


def mammogram() -> Dataset:
    """MG, for presentation."""
    made = digital_radiograph("1.2", "MG")
    region = code("76752008", "SCT", "Breast")
    made.AnatomicRegionSequence = Sequence([region])
    view = code("399162004", "SCT", "cranio-caudal", ViewModifierCodeSequence=Sequence())
    made.ViewCodeSequence, made.ImageLaterality = Sequence([view]), "L"
    made.ViewPosition, made.OrganExposed, made.BreastImplantPresent = "CC", "BREAST", "NO"
    made.PositionerType, made.PositionerPrimaryAngle, made.PartialView = "MAMMOGRAPHIC", "0", "NO"
    made.PatientOrientation, made.ImageType = ["P", "L"], ["ORIGINAL", "PRIMARY", ""]
    made.BodyPartThickness, made.CompressionForce = "51", "110"
    return made


def ophthalmic_photograph() -> Dataset:
    """OP, 8 bit, JPEG with a comment."""
    made = base("77.1.5.1", "OP")
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), 90, dtype=np.uint8)).save(buffer, "JPEG", comment="someone")
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "YBR_FULL_422", 0
    made.BitsAllocated, made.BitsStored, made.HighBit, made.NumberOfFrames = 8, 8, 7, 1
    made.PixelData = encapsulate([buffer.getvalue()])
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    made.ImageLaterality, made.LossyImageCompression, made.LossyImageCompressionRatio = "R", "01", "10"
    made.LossyImageCompressionMethod = "ISO_10918_1"
    made.AcquisitionDateTime, made.AcquisitionContextSequence = "20240102101112", Sequence()
    made.AnatomicRegionSequence = Sequence([code("81745001", "SCT", "Eye")])
    made.AcquisitionDeviceTypeCodeSequence = Sequence([code("409898007", "SCT", "Fundus Camera")])
    made.IlluminationTypeCodeSequence, made.LightPathFilterTypeStackCodeSequence = Sequence(), Sequence()
    made.ImagePathFilterTypeStackCodeSequence, made.LensesCodeSequence = Sequence(), Sequence()
    made.RefractiveStateSequence, made.PatientEyeMovementCommanded = Sequence(), ""
    made.EmmetropicMagnification = made.IntraOcularPressure = made.HorizontalFieldOfView = None
    made.PupilDilated, made.DetectorType, made.SynchronizationTrigger = "YES", "CCD", "NO TRIGGER"
    agent = code("372733002", "SCT", "Tropicamide")
    item = Dataset()
    item.MydriaticAgentCodeSequence, item.MydriaticAgentConcentration = Sequence([agent]), "1"
    item.MydriaticAgentConcentrationUnitsSequence = Sequence([code("%", "UCUM", "Percent")])
    made.MydriaticAgentSequence, made.DegreeOfDilation = Sequence([item]), 7.0
    made.AcquisitionTimeSynchronized, made.FrameIncrementPointer, made.FrameTimeVector = "N", 0x00181065, ["0"]
    made.SynchronizationFrameOfReferenceUID = "1.2.826.0.1.3680043.2.8"
    return made


def secondary_capture() -> Dataset:
    """SC."""
    made = base("7", "OT")
    made.Laterality = None
    made.ConversionType, made.SecondaryCaptureDeviceManufacturer = "WSD", "Maker"
    made.SecondaryCaptureDeviceID, made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = "W1", "20240102", "101112"
    return made


def tomogram() -> Dataset:
    """CT."""
    made = base("2", "CT")
    made.Laterality = None
    made.ImageType, made.FrameOfReferenceUID = ["ORIGINAL", "PRIMARY", "AXIAL"], "1.2.826.0.1.3680043.2.7"
    made.PositionReferenceIndicator, made.PatientPosition = "SN", "HFS"
    made.ImagePositionPatient, made.ImageOrientationPatient = ["-100", "-100", "-50"], ["1", "0", "0", "0", "1", "0"]
    made.PixelSpacing, made.SliceThickness, made.SliceLocation = ["0.7", "0.7"], "5", "-50"
    made.RescaleIntercept, made.RescaleSlope, made.RescaleType = "-1024", "1", "HU"
    made.KVP, made.XRayTubeCurrent, made.ExposureTime, made.Exposure = "120", 100, 500, 50
    made.ConvolutionKernel, made.FilterType, made.ProtocolName = "B30f", "BODY FILTER", "Thorax Doe"
    made.AcquisitionDate, made.AcquisitionTime = "20240102", "101112"
    made.ReferencedImageSequence = reference("2", code("121311", "DCM", "Localizer"))
    made.PixelRepresentation, made.PatientOrientation = 1, ["L", "P"]
    made.WindowCenter, made.WindowWidth = ["40", "-600"], ["400", "1500"]
    return made


def magnetic_resonance() -> Dataset:
    """MR."""
    made = base("4", "MR")
    made.Laterality = None
    made.ImageType, made.FrameOfReferenceUID = ["ORIGINAL", "PRIMARY", "M", "SE"], "1.2.826.0.1.3680043.2.7"
    made.PositionReferenceIndicator, made.PatientPosition, made.PatientOrientation = "", "HFS", ["L", "P"]
    made.ImagePositionPatient, made.ImageOrientationPatient = ["-100", "-100", "-50"], ["1", "0", "0", "0", "1", "0"]
    made.PixelSpacing, made.SliceThickness, made.SpacingBetweenSlices = ["0.7", "0.7"], "5", "6"
    made.ScanningSequence, made.SequenceVariant, made.ScanOptions = "SE", "SK", ""
    made.MRAcquisitionType, made.SequenceName, made.EchoTime, made.EchoTrainLength = "2D", "*se2d1", "12", 1
    made.RepetitionTime, made.MagneticFieldStrength, made.ImagedNucleus, made.FlipAngle = "500", "1.5", "1H", "90"
    made.ReceiveCoilName, made.TransmitCoilName = "HEAD", "BODY"
    return made


def ultrasound() -> Dataset:
    """US with one calibrated region."""
    made = base("6.1", "US")
    made.Laterality = None
    made.ImageType = ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"]
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
    made.PixelData = bytes(SIDE * SIDE * 3)
    made["PixelData"].VR = "OB"
    made.TransducerData, made.ProcessingFunction, made.MechanicalIndex = ["A", "B", "C"], "ABDOMEN", "0.8"
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 15, 15
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = 0.1
    made.SequenceOfUltrasoundRegions = Sequence([region])
    made.PatientOrientation = None
    return made


FAMILIES: dict[str, Callable[[], Dataset]] = {
    "CR": computed_radiograph,
    "DX": digital_radiograph,
    "MG": mammogram,
    "OP": ophthalmic_photograph,
    "SC": secondary_capture,
    "CT": tomogram,
    "MR": magnetic_resonance,
    "US": ultrasound,
}
