"""Was this image acquired as the images were that the model version was validated on?

Instant and deterministic: one image, one card, no history. Everything that the header shows is flagged on the first
image. A missing value is a finding too, since anonymisers strip what a changed device would show.

References
----------
PS3.3 C.7.3.1 (General Series), C.7.5.1 (General Equipment), C.7.6.3 (Image Pixel), C.8.11.4 (DX Detector),
C.8.17.2 (Ophthalmic Photography Image); PS3.6 section 6 for the tags.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from models.card import AcquisitionRange, NumericRange

Scalar = str | float | int
Value = Scalar | tuple[Scalar, ...] | None

MISSING = "(missing)"
UNREADABLE = "(unreadable)"
MALFORMED = "malformed"
"""Key under which a reader lists the parameters whose stored value is not what their attribute holds."""
_LONGEST_VALUE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One acquisition parameter: where it stands in a data set and what to call it in a sentence."""

    tag: str
    """``(gggg,eeee)``."""
    keyword: str
    """PS3.6 keyword of the attribute."""
    words: str
    unit: str = ""


def _row(tag: str, keyword: str, words: str, unit: str = "") -> Parameter:
    return Parameter(tag=tag, keyword=keyword, words=words, unit=unit)


# PS3.6 section 6, table 6-1; (0002,0010) from section 7. One row a parameter; the key is what cards and readers use.
PARAMETERS: Mapping[str, Parameter] = {
    # PS3.3 C.7.5.1 General Equipment
    "manufacturer": _row("(0008,0070)", "Manufacturer", "manufacturer"),
    "manufacturer_model_name": _row("(0008,1090)", "ManufacturerModelName", "device model"),
    "device_serial_number": _row("(0018,1000)", "DeviceSerialNumber", "device serial number"),
    "station_name": _row("(0008,1010)", "StationName", "station name"),
    "software_versions": _row("(0018,1020)", "SoftwareVersions", "software version"),
    # PS3.3 C.8.11.4 DX Detector, C.8.7.5 and C.8.7.10 for the exposure
    "detector_id": _row("(0018,700A)", "DetectorID", "detector"),
    "detector_type": _row("(0018,7004)", "DetectorType", "detector type"),
    "detector_configuration": _row("(0018,7005)", "DetectorConfiguration", "detector configuration"),
    "detector_description": _row("(0018,7006)", "DetectorDescription", "detector description"),
    "field_of_view_shape": _row("(0018,1147)", "FieldOfViewShape", "shape of the field of view"),
    "plate_id": _row("(0018,1004)", "PlateID", "plate"),
    "plate_type": _row("(0018,1260)", "PlateType", "plate type"),
    "cassette_id": _row("(0018,1007)", "CassetteID", "cassette"),
    "filter_type": _row("(0018,1160)", "FilterType", "filter type"),
    "grid": _row("(0018,1166)", "Grid", "grid"),
    "kvp": _row("(0018,0060)", "KVP", "tube voltage", "kV"),
    "kvp_kv": _row("(0018,0060)", "KVP", "tube voltage", "kV"),
    "exposure_time_ms": _row("(0018,1150)", "ExposureTime", "exposure time", "ms"),
    "x_ray_tube_current_ma": _row("(0018,1151)", "XRayTubeCurrent", "tube current", "mA"),
    "exposure_mas": _row("(0018,1152)", "Exposure", "exposure", "mAs"),
    "exposure_in_uas": _row("(0018,1153)", "ExposureInuAs", "exposure", "uAs"),
    "exposure_index": _row("(0018,1411)", "ExposureIndex", "exposure index"),
    "target_exposure_index": _row("(0018,1412)", "TargetExposureIndex", "target exposure index"),
    "deviation_index": _row("(0018,1413)", "DeviationIndex", "deviation index"),
    "relative_x_ray_exposure": _row("(0018,1405)", "RelativeXRayExposure", "relative exposure"),
    "distance_source_to_detector_mm": _row(
        "(0018,1110)", "DistanceSourceToDetector", "distance from source to detector", "mm"
    ),
    "acquisition_device_processing_description": _row(
        "(0018,1400)", "AcquisitionDeviceProcessingDescription", "processing on the device"
    ),
    "acquisition_device_processing_code": _row(
        "(0018,1401)", "AcquisitionDeviceProcessingCode", "processing code of the device"
    ),
    # PS3.3 C.7.3.1 General Series, C.8.11.5 DX Positioning, C.7.1.1 and C.7.2.2 for the patient
    "modality": _row("(0008,0060)", "Modality", "modality"),
    "body_part_examined": _row("(0018,0015)", "BodyPartExamined", "body part"),
    "view_position": _row("(0018,5101)", "ViewPosition", "view"),
    "patient_position": _row("(0018,5100)", "PatientPosition", "patient position"),
    "patient_orientation": _row("(0020,0020)", "PatientOrientation", "patient orientation"),
    "image_laterality": _row("(0020,0062)", "ImageLaterality", "laterality of the image"),
    "laterality": _row("(0020,0060)", "Laterality", "laterality of the series"),
    "protocol_name": _row("(0018,1030)", "ProtocolName", "protocol"),
    "patient_age_years": _row("(0010,1010)", "PatientAge", "patient's age", "years"),
    "patient_sex": _row("(0010,0040)", "PatientSex", "patient's sex"),
    # PS3.3 C.7.6.1 General Image, C.7.6.3 Image Pixel, C.8.11.3 DX Image, C.11.1 and C.11.2 for the look-up tables
    "sop_class_uid": _row("(0008,0016)", "SOPClassUID", "kind of object"),
    "transfer_syntax_uid": _row("(0002,0010)", "TransferSyntaxUID", "encoding (transfer syntax)"),
    "image_type": _row("(0008,0008)", "ImageType", "image type"),
    "presentation_intent_type": _row("(0008,0068)", "PresentationIntentType", "presentation intent"),
    "samples_per_pixel": _row("(0028,0002)", "SamplesPerPixel", "number of channels"),
    "photometric_interpretation": _row("(0028,0004)", "PhotometricInterpretation", "photometric interpretation"),
    "planar_configuration": _row("(0028,0006)", "PlanarConfiguration", "planar configuration"),
    "number_of_frames": _row("(0028,0008)", "NumberOfFrames", "number of frames"),
    "rows": _row("(0028,0010)", "Rows", "number of rows"),
    "columns": _row("(0028,0011)", "Columns", "number of columns"),
    "bits_allocated": _row("(0028,0100)", "BitsAllocated", "bits allocated"),
    "bits_stored": _row("(0028,0101)", "BitsStored", "bits stored"),
    "high_bit": _row("(0028,0102)", "HighBit", "high bit"),
    "pixel_representation": _row("(0028,0103)", "PixelRepresentation", "pixel representation"),
    "pixel_aspect_ratio": _row("(0028,0034)", "PixelAspectRatio", "pixel aspect ratio"),
    "pixel_spacing_row_mm": _row("(0028,0030)", "PixelSpacing", "spacing of rows", "mm"),
    "pixel_spacing_column_mm": _row("(0028,0030)", "PixelSpacing", "spacing of columns", "mm"),
    "imager_pixel_spacing_row_mm": _row("(0018,1164)", "ImagerPixelSpacing", "spacing of rows at the detector", "mm"),
    "imager_pixel_spacing_column_mm": _row(
        "(0018,1164)", "ImagerPixelSpacing", "spacing of columns at the detector", "mm"
    ),
    "nominal_scanned_pixel_spacing_row_mm": _row(
        "(0018,2010)", "NominalScannedPixelSpacing", "spacing of scanned rows", "mm"
    ),
    "pixel_intensity_relationship": _row(
        "(0028,1040)", "PixelIntensityRelationship", "relation of pixel value to exposure"
    ),
    "voi_lut_function": _row("(0028,1056)", "VOILUTFunction", "window function"),
    "presentation_lut_shape": _row("(2050,0020)", "PresentationLUTShape", "presentation table shape"),
    "burned_in_annotation": _row("(0028,0301)", "BurnedInAnnotation", "burned-in annotation"),
    "quality_control_image": _row("(0028,0300)", "QualityControlImage", "mark as a quality control image"),
    "lossy_image_compression": _row("(0028,2110)", "LossyImageCompression", "lossy compression"),
    "lossy_image_compression_ratio": _row("(0028,2112)", "LossyImageCompressionRatio", "lossy compression ratio"),
    "lossy_image_compression_method": _row("(0028,2114)", "LossyImageCompressionMethod", "lossy compression method"),
    # PS3.3 C.8.17.2 and C.8.17.4 Ophthalmic Photography
    "horizontal_field_of_view_degrees": _row(
        "(0022,000C)", "HorizontalFieldOfView", "horizontal field of view", "degrees"
    ),
    "pupil_dilated": _row("(0022,000D)", "PupilDilated", "dilated pupil"),
    "emmetropic_magnification": _row("(0022,000A)", "EmmetropicMagnification", "emmetropic magnification"),
    "intra_ocular_pressure_mmhg": _row("(0022,000B)", "IntraOcularPressure", "intraocular pressure", "mmHg"),
    "acquisition_device_type": _row("(0022,0015)", "AcquisitionDeviceTypeCodeSequence", "type of camera"),
    "illumination_type": _row("(0022,0016)", "IlluminationTypeCodeSequence", "illumination"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquisitionFinding:
    """One way in which an image's acquisition lies outside what the card says was validated."""

    tag: str
    """``(0008,1090)``; empty for a parameter of the card that stands in no row of :data:`PARAMETERS`."""
    keyword: str
    """snake_case, as in the card."""
    value: str
    """As received, at most 64 characters, control characters removed; or ``(missing)``, or ``(unreadable)``."""
    expected: str
    severity: str
    """``info``, ``warning`` or ``critical``, from the card."""
    message: str


def judge_acquisition(parameters: Mapping[str, Value], validated: AcquisitionRange) -> tuple[AcquisitionFinding, ...]:
    """What about this image was not validated, in the card's order; at most one finding a parameter and kind of rule.

    A value that is allowed as ``""`` in the card means that absence was validated. A multi-valued attribute passes if
    it stands in the card as a whole, its values joined by a backslash, or if each of its values does.
    """
    found = [_judge_values(keyword, parameters.get(keyword), validated) for keyword in validated.values]
    found += [_judge_range(keyword, parameters.get(keyword), validated) for keyword in validated.ranges]
    malformed = _items(parameters.get(MALFORMED))
    return tuple(
        _unreadable(finding) if finding.value == MISSING and finding.keyword in malformed else finding
        for finding in found
        if finding is not None
    )


def unknown_keywords(validated: AcquisitionRange) -> tuple[str, ...]:
    """Parameters that a card names and this table does not know: most likely mistyped. For a check of a bundle."""
    return tuple(sorted((validated.values.keys() | validated.ranges.keys()) - PARAMETERS.keys()))


def _judge_values(keyword: str, value: Value, validated: AcquisitionRange) -> AcquisitionFinding | None:
    allowed = validated.values[keyword]
    words = _words(keyword)
    if not allowed:
        return _finding(
            keyword, value, "not validated", validated, f"This model version was validated on no particular {words}"
        )
    # One spelling of each: a card may list several that compare as one.
    choices = {normalise(keyword, choice): choice.strip() or MISSING for choice in reversed(allowed)}
    expected = " or ".join(reversed(choices.values()))
    if _is_missing(value):
        if any(not choice.strip() for choice in allowed):
            return None
        return _finding(keyword, value, expected, validated, f"The image does not state its {words}")
    if _is_allowed(keyword, value, allowed):
        return None
    return _finding(keyword, value, expected, validated, f"This {words} was not validated for this model version")


def _judge_range(keyword: str, value: Value, validated: AcquisitionRange) -> AcquisitionFinding | None:
    limits = validated.ranges[keyword]
    parameter = PARAMETERS.get(keyword)
    expected = _range_words(limits, parameter.unit if parameter else "")
    words = _words(keyword)
    if _is_missing(value):
        return _finding(keyword, value, expected, validated, f"The image does not state its {words}")
    numbers = [_number(item) for item in _items(value)]
    if any(number is None for number in numbers):
        return _finding(keyword, value, expected, validated, f"The {words} is not a number")
    low = -math.inf if limits.minimum is None else limits.minimum
    high = math.inf if limits.maximum is None else limits.maximum
    if all(number is not None and low <= number <= high for number in numbers):
        return None
    side = "below" if any(number is not None and number < low for number in numbers) else "above"
    return _finding(keyword, value, expected, validated, f"The {words} is {side} the validated range")


def _finding(
    keyword: str, value: Value, expected: str, validated: AcquisitionRange, statement: str
) -> AcquisitionFinding:
    parameter = PARAMETERS.get(keyword)
    shown = _shown(value)
    is_absent = shown == MISSING
    message = statement if is_absent and "not state" in statement else f"{statement}: {shown}"
    if expected != "not validated":
        message += f" (validated: {expected})"
    return AcquisitionFinding(
        tag=parameter.tag if parameter else "",
        keyword=keyword,
        value=shown,
        expected=expected,
        severity=validated.severity.get(keyword, "warning"),
        message=message + ".",
    )


def _unreadable(finding: AcquisitionFinding) -> AcquisitionFinding:
    message = f"The image's {_words(finding.keyword)} cannot be read (validated: {finding.expected})."
    return replace(finding, value=UNREADABLE, message=message)


def _words(keyword: str) -> str:
    parameter = PARAMETERS.get(keyword)
    return parameter.words if parameter else keyword.replace("_", " ")


def _range_words(limits: NumericRange, unit: str) -> str:
    suffix = f" {unit}" if unit else ""
    if limits.minimum is None and limits.maximum is None:
        return "any number"
    if limits.minimum == limits.maximum:
        return f"{limits.minimum:g}{suffix}"
    if limits.minimum is None:
        return f"at most {limits.maximum:g}{suffix}"
    if limits.maximum is None:
        return f"at least {limits.minimum:g}{suffix}"
    return f"{limits.minimum:g} to {limits.maximum:g}{suffix}"


def _items(value: Value) -> tuple[Scalar, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def _is_missing(value: Value) -> bool:
    return all(isinstance(item, str) and not item.strip() for item in _items(value))


def _number(item: Scalar) -> float | None:
    try:
        number = float(item)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _shown(value: Value) -> str:
    if _is_missing(value):
        return MISSING
    text = "\\".join(f"{item:g}" if isinstance(item, float) else str(item) for item in _items(value))
    printable = "".join(character if character.isprintable() else " " for character in text).strip()
    return printable if len(printable) <= _LONGEST_VALUE else printable[: _LONGEST_VALUE - 1] + "…"


def _is_allowed(keyword: str, value: Value, allowed: Iterable[str]) -> bool:
    spellings = {normalise(keyword, choice) for choice in allowed}
    numbers = {number for choice in allowed if (number := _number(choice)) is not None}
    items = _items(value)
    if normalise(keyword, "\\".join(str(item) for item in items)) in spellings:
        return True
    return all(
        item in numbers if isinstance(item, (int, float)) else normalise(keyword, item) in spellings for item in items
    )


# Words that a maker's name carries or drops from one software release to the next. They name no maker by themselves.
_MAKER_FILLERS = re.compile(
    r"\b(?:ag|bv|co|company|corp|corporation|electronics|gmbh|group|health|healthcare|healthineers|holdings|imaging|inc"
    r"|incorporated|kg|limited|llc|ltd|mbh|meditec|medical|nv|ophthalmics|optical|plc|sa|se|solutions|sro|srl|spa"
    r"|systems?|technologies|technology|the)\b"
)
# What is left of a maker's name, to the one spelling that is compared. Mergers and renamings are not spellings.
_MAKER_SPELLINGS: Mapping[str, str] = {
    "gems": "ge",
    "general electric": "ge",
    "fuji": "fujifilm",
    "fuji film": "fujifilm",
    "fuji photo film": "fujifilm",
    "carl zeiss": "zeiss",
    "agfa gevaert": "agfa",
    "koninklijke philips": "philips",
    "kowa optimed": "kowa",
}
_GREEK = str.maketrans({"α": "alpha", "β": "beta"})
_LATERALITY: Mapping[str, str] = {"left": "l", "right": "r", "both": "b", "bilateral": "b", "od": "r", "os": "l"}


def normalise(keyword: str, text: str) -> str:
    """The one spelling under which values of a parameter are compared; the value itself is kept as received.

    Every parameter: compatibility forms folded (NFKC), without case, spaces collapsed. Makers' names: also without
    punctuation, legal form and line of business ("Siemens Healthineers" is "SIEMENS"). Model names: also without
    spaces, hyphens and underscores, Greek letters spelled out ("VX-10α" is "VX10 alpha"). Software versions keep
    every character, since 1.2 and 12 differ.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    if keyword == "manufacturer":
        words = " ".join(re.sub(r"[\W_]+", " ", folded).split())
        kept = " ".join(_MAKER_FILLERS.sub(" ", words).split())
        return _MAKER_SPELLINGS.get(kept, kept) or words
    if keyword in {"manufacturer_model_name", "detector_description"}:
        return re.sub(r"[\s_\-]+", "", folded.translate(_GREEK))
    if keyword in {"laterality", "image_laterality"}:
        return _LATERALITY.get(folded, folded)
    return folded
