"""How an image was acquired: the parameters that the acquisition check and the drift monitors compare.

They are read from the original header, since de-identification removes some of them, and hold no PHI: identifiers of
devices are hashed, ages from 90 on are one, free text about a study is not read.

References
----------
PS3.3 C.7.5.1 (General Equipment), C.7.6.1 (General Image), C.7.6.3 (Image Pixel), C.8.11 (DX), C.8.17.2 and C.8.17.4
(Ophthalmic Photography); PS3.5 Table 6.2-1 (Value Representations).
"""

from __future__ import annotations

import math
import re
import struct
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from functools import partial
from typing import NamedTuple

from pydicom import DataElement, Dataset
from pydicom.charset import default_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue

from drift.acquisition import normalise
from gateway.deidentification.keys import KeyedHash

Value = str | float | int | tuple[str, ...] | None
Scalar = str | float | int

OLDEST_AGE_YEARS = 90.0
"""Ages from here on are given as this: they are rare enough to identify."""
_WHOLE_YEARS_FROM = 2
"""Ages from here on are told in whole years, below in whole months."""
_HASH_DIGITS = 16
_LONGEST_TEXT = 64
_STRUCTS = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
_UNREADABLE = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, OSError, EOFError),
    *(NotImplementedError, struct.error, BytesLengthException),
)
"""What pydicom raises for a value that is not what it says it is, and what conversion here does."""
_AGE = re.compile(r"(\d{1,3})([DWMY])")
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}


class Malformed(ValueError):  # noqa: N818 - a verdict on one value, caught below; never leaves this module
    """A value is there and is not what its attribute holds."""


def _text(found: list[Scalar]) -> Value:
    return _printable(found[0])


def _texts(found: list[Scalar]) -> Value:
    parts = tuple(_printable(part) for part in found)
    return parts[0] if len(parts) == 1 else parts


def _whole(found: list[Scalar]) -> Value:
    number = _finite(found[0])
    if not number.is_integer():
        raise Malformed
    return int(number)


def _number(found: list[Scalar]) -> Value:
    return _finite(found[0])


def _first_of_two(found: list[Scalar]) -> Value:
    if len(found) != 2:
        raise Malformed
    return _finite(found[0])


def _second_of_two(found: list[Scalar]) -> Value:
    if len(found) != 2:
        raise Malformed
    return _finite(found[1])


def _sex(found: list[Scalar]) -> Value:
    if found[0] not in ("M", "F", "O"):
        raise Malformed
    return found[0]


class Reading(NamedTuple):
    """Where a parameter stands and how its values become one."""

    tag: int
    convert: Callable[[list[Scalar]], Value]


READINGS: Mapping[str, Reading] = {
    # PS3.3 C.7.5.1 General Equipment
    "manufacturer": Reading(0x00080070, _text),
    "manufacturer_model_name": Reading(0x00081090, _text),
    "software_versions": Reading(0x00181020, _texts),
    # PS3.3 C.7.3.1 General Series, C.8.11 DX
    "modality": Reading(0x00080060, _text),
    "body_part_examined": Reading(0x00180015, _text),
    "view_position": Reading(0x00185101, _text),
    "patient_position": Reading(0x00185100, _text),
    "patient_orientation": Reading(0x00200020, _texts),
    "image_laterality": Reading(0x00200062, _text),
    "laterality": Reading(0x00200060, _text),
    "presentation_intent_type": Reading(0x00080068, _text),
    "detector_type": Reading(0x00187004, _text),
    "detector_configuration": Reading(0x00187005, _text),
    "detector_description": Reading(0x00187006, _text),
    "field_of_view_shape": Reading(0x00181147, _text),
    "plate_type": Reading(0x00181260, _text),
    "filter_type": Reading(0x00181160, _text),
    "grid": Reading(0x00181166, _texts),
    "acquisition_device_processing_description": Reading(0x00181400, _text),
    "acquisition_device_processing_code": Reading(0x00181401, _text),
    "kvp": Reading(0x00180060, _number),
    "kvp_kv": Reading(0x00180060, _number),
    "exposure_time_ms": Reading(0x00181150, _number),
    "x_ray_tube_current_ma": Reading(0x00181151, _number),
    "exposure_mas": Reading(0x00181152, _number),
    "exposure_in_uas": Reading(0x00181153, _number),
    "exposure_index": Reading(0x00181411, _number),
    "target_exposure_index": Reading(0x00181412, _number),
    "deviation_index": Reading(0x00181413, _number),
    "relative_x_ray_exposure": Reading(0x00181405, _number),
    "distance_source_to_detector_mm": Reading(0x00181110, _number),
    # PS3.3 C.7.6.1 General Image, C.7.6.3 Image Pixel, C.11 look-up tables, C.12.1 SOP Common
    "sop_class_uid": Reading(0x00080016, _text),
    "image_type": Reading(0x00080008, _texts),
    "samples_per_pixel": Reading(0x00280002, _whole),
    "photometric_interpretation": Reading(0x00280004, _text),
    "planar_configuration": Reading(0x00280006, _whole),
    "number_of_frames": Reading(0x00280008, _whole),
    "rows": Reading(0x00280010, _whole),
    "columns": Reading(0x00280011, _whole),
    "bits_allocated": Reading(0x00280100, _whole),
    "bits_stored": Reading(0x00280101, _whole),
    "high_bit": Reading(0x00280102, _whole),
    "pixel_representation": Reading(0x00280103, _whole),
    "pixel_aspect_ratio": Reading(0x00280034, _texts),
    "pixel_spacing_row_mm": Reading(0x00280030, _first_of_two),
    "pixel_spacing_column_mm": Reading(0x00280030, _second_of_two),
    "imager_pixel_spacing_row_mm": Reading(0x00181164, _first_of_two),
    "imager_pixel_spacing_column_mm": Reading(0x00181164, _second_of_two),
    "nominal_scanned_pixel_spacing_row_mm": Reading(0x00182010, _first_of_two),
    "pixel_intensity_relationship": Reading(0x00281040, _text),
    "voi_lut_function": Reading(0x00281056, _text),
    "presentation_lut_shape": Reading(0x20500020, _text),
    "burned_in_annotation": Reading(0x00280301, _text),
    "quality_control_image": Reading(0x00280300, _text),
    "lossy_image_compression": Reading(0x00282110, _text),
    "lossy_image_compression_ratio": Reading(0x00282112, _number),
    "lossy_image_compression_method": Reading(0x00282114, _text),
    # PS3.3 C.8.17.2 and C.8.17.4 Ophthalmic Photography
    "horizontal_field_of_view_degrees": Reading(0x0022000C, _number),
    "pupil_dilated": Reading(0x0022000D, _text),
    "emmetropic_magnification": Reading(0x0022000A, _number),
    "intra_ocular_pressure_mmhg": Reading(0x0022000B, _number),
    # PS3.3 C.7.1.1 Patient
    "patient_sex": Reading(0x00100040, _sex),
}
"""Parameters read as they stand, one row each. Those below need more than that."""

HASHED: Mapping[str, int] = {
    "device_serial_number": 0x00181000,
    "detector_id": 0x0018700A,
    "plate_id": 0x00181004,
    "cassette_id": 0x00181007,
}
"""Identifiers of devices: told apart, but not told."""

CODED: Mapping[str, int] = {"acquisition_device_type": 0x00220015, "illumination_type": 0x00220016}
"""Code sequences, of which the first code's value is taken."""


def read_parameters(dataset: Dataset, *, site_key: bytes | None = None) -> Mapping[str, Value]:
    """Acquisition parameters of an object, by snake_case keyword; every key is there, absence is None.

    A value that is not what its attribute holds is None too, and its key stands in the entry ``malformed``. Nothing in
    a header makes this raise, and the data set is not changed.

    Parameters
    ----------
    dataset
        The original header; pixel data need not be there.
    site_key
        The site's key, at least 32 random bytes. Without it identifiers of devices are None, not hashed.
    """
    malformed: list[str] = []

    def attempt(key: str, read: Callable[[], Value]) -> Value:
        try:
            return read()
        except _UNREADABLE:
            malformed.append(key)
            return None

    keyed = None if site_key is None else KeyedHash(site_key, "device")
    parameters: dict[str, Value] = {}
    for key, reading in READINGS.items():
        parameters[key] = attempt(key, partial(_read, dataset, reading))
    for key, tag in HASHED.items():
        parameters[key] = attempt(key, partial(_hashed, dataset, tag, keyed))
    for key, tag in CODED.items():
        parameters[key] = attempt(key, partial(_code_value, dataset, tag))
    if parameters["exposure_mas"] is None and isinstance(parameters["exposure_in_uas"], float):
        parameters["exposure_mas"] = parameters["exposure_in_uas"] / 1000
    parameters["patient_age_years"] = attempt("patient_age_years", partial(_age_years, dataset))
    parameters["transfer_syntax_uid"] = attempt("transfer_syntax_uid", partial(_transfer_syntax_uid, dataset))
    parameters["malformed"] = tuple(malformed)
    return parameters


def device_key(parameters: Mapping[str, Value]) -> str:
    """Short readable name of the device that made an image, such as ``SIEMENS YSIO · VB10 · 1F2E3D4C``.

    Spellings of one device are one: case, spaces and the maker's legal form do not count. The last part tells
    devices of one kind apart and is a hash.
    """
    maker = normalise("manufacturer", _joined(parameters.get("manufacturer"))).upper()
    model, software = (_joined(parameters.get(key)).upper() for key in ("manufacturer_model_name", "software_versions"))
    serial = _joined(parameters.get("device_serial_number"))[:8]
    known = [part[:_LONGEST_TEXT] for part in (f"{maker} {model}".strip(), software, serial) if part]
    return " · ".join(known) or "unknown device"


def _joined(value: Value) -> str:
    """One line of text with single spaces, in the compatibility form that makes look-alikes equal (Unicode NFKC)."""
    text = " ".join(value) if isinstance(value, tuple) else str("" if value is None else value)
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _read(dataset: Dataset, reading: Reading) -> Value:
    found = _values(dataset, reading.tag)
    return reading.convert(found) if found else None


def _hashed(dataset: Dataset, tag: int, keyed: KeyedHash | None) -> Value:
    found = _values(dataset, tag)
    if not found or keyed is None:
        return None
    return keyed.hexadecimal(" ".join(str(part) for part in found).casefold(), _HASH_DIGITS)


def _code_value(dataset: Dataset, tag: int) -> Value:
    element = dataset.get_item(tag, keep_deferred=True)
    if isinstance(element, RawDataElement):
        if not element.value:
            return None
        element = convert_raw_data_element(element, encoding=_encodings(dataset), ds=dataset)
    if element is None or not element.value:
        return None
    for code_tag in (0x00080100, 0x00080119):
        found = _values(element.value[0], code_tag)
        if found:
            return _printable(found[0])
    return None


def _age_years(dataset: Dataset) -> Value:
    """(0010,1010) *Patient's Age*, or the time from birth to the study where that is missing; years."""
    found = _values(dataset, 0x00101010)
    if found:
        match = _AGE.fullmatch(str(found[0]))
        if match is None:
            raise Malformed
        return min(int(match[1]) * _YEARS[match[2]], OLDEST_AGE_YEARS)
    birth = _values(dataset, 0x00100030)
    studied = _values(dataset, 0x00080020) or _values(dataset, 0x00080022) or _values(dataset, 0x00080023)
    if not birth or not studied:
        return None
    days = (_date(studied[0]) - _date(birth[0])).days
    if days < 0:
        raise Malformed
    # As coarse as (0010,1010) is written: an age in days would give the birth date away.
    years = days / 365.25
    return min(float(int(years)), OLDEST_AGE_YEARS) if years >= _WHOLE_YEARS_FROM else int(years * 12) / 12


def _date(value: Scalar) -> date:
    text = str(value)
    if re.fullmatch(r"\d{8}", text) is None:
        raise Malformed
    return date(int(text[:4]), int(text[4:6]), int(text[6:]))


def _transfer_syntax_uid(dataset: Dataset) -> Value:
    file_meta = getattr(dataset, "file_meta", None)
    found = [] if file_meta is None else _values(file_meta, 0x00020010)
    return _printable(found[0]) if found else None


def _values(dataset: Dataset, tag: int) -> list[Scalar]:
    """The values of an element without padding, none if it is absent or holds nothing; decodes only what it returns."""
    element = dataset.get_item(tag, keep_deferred=True)
    if not isinstance(element, DataElement | RawDataElement) or element.value is None:
        return []
    vr = dictionary_VR(tag) if element.VR in (None, "UN") else element.VR
    value = element.value
    if isinstance(value, bytes):
        if vr in _STRUCTS:
            kind = _STRUCTS[vr]
            little = element.is_little_endian if isinstance(element, RawDataElement) else True
            count = len(value) // struct.calcsize(f"<{kind}")
            return list(struct.unpack(f"{'<' if little else '>'}{count}{kind}", value))
        value = _text_of(value, dataset).split("\\")
    parts: Iterable[object] = value if isinstance(value, MultiValue | list | tuple) else [value]
    found: list[Scalar] = [part if type(part) in (int, float) else str(part).strip(" \x00") for part in parts]  # type: ignore[misc]
    return found if any(part != "" for part in found) else []


def _text_of(value: bytes, dataset: Dataset) -> str:
    """Text of bytes; in another character set by its first encoding, which is enough for the names of devices."""
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        return value.decode(_encodings(dataset)[0], "replace")


def _encodings(dataset: Dataset) -> list[str]:
    encoding = dataset.original_character_set or default_encoding
    return [encoding] if isinstance(encoding, str) else list(encoding)


def _printable(value: Scalar) -> str:
    text = str(value)
    if not all(character.isprintable() for character in text):
        raise Malformed
    return text[:_LONGEST_TEXT]


def _finite(value: Scalar) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise Malformed
    return number
