"""Acquisition parameters: read from any header, never raising, never telling who."""

from __future__ import annotations

import hashlib
import io
import warnings

import pydicom
import pytest
from pydicom import Dataset, Sequence
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from drift.acquisition import PARAMETERS
from gateway.acquisition import CODED, HASHED, READINGS, device_key, read_parameters

KEY = hashlib.sha256(b"a key of these tests").digest()
NOT_READ = {"station_name", "protocol_name"}
"""May name a place or a person, so that the gateway reads neither."""


def header(syntax: str = ExplicitVRLittleEndian) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    made.PatientName, made.PatientID, made.PatientAge, made.PatientSex = "Doe^Jane", "4711", "045Y", "F"
    made.Modality, made.Manufacturer, made.ManufacturerModelName = "DX", "SIEMENS", "YSIO Max"
    made.SoftwareVersions, made.DeviceSerialNumber, made.DetectorID = ["VB10A", "2"], "12345", "DET1"
    made.KVP, made.Exposure, made.ViewPosition = "117.5", "2", "PA"
    made.PixelSpacing, made.ImagerPixelSpacing = ["0.15", "0.16"], ["0.139", "0.140"]
    made.Rows, made.Columns, made.BitsAllocated, made.BitsStored, made.HighBit = 2000, 1500, 16, 14, 13
    made.PixelRepresentation, made.PhotometricInterpretation = 0, "MONOCHROME1"
    made.HorizontalFieldOfView, made.PupilDilated = 45.0, "YES"
    device_type = Dataset()
    device_type.CodeValue, device_type.CodingSchemeDesignator, device_type.CodeMeaning = "409898007", "SCT", "Fundus"
    made.AcquisitionDeviceTypeCodeSequence = Sequence([device_type])
    return made


def encoded(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, None])
def test_parameters_are_the_same_in_memory_and_in_every_encoding(syntax: str | None) -> None:
    dataset = header() if syntax is None else pydicom.dcmread(io.BytesIO(encoded(header(syntax))))
    parameters = read_parameters(dataset, site_key=KEY)
    expected = {
        "manufacturer": "SIEMENS",
        "manufacturer_model_name": "YSIO Max",
        "software_versions": ("VB10A", "2"),
        "kvp_kv": 117.5,
        "exposure_mas": 2.0,
        "view_position": "PA",
        "pixel_spacing_row_mm": 0.15,
        "pixel_spacing_column_mm": 0.16,
        "imager_pixel_spacing_row_mm": 0.139,
        "rows": 2000,
        "bits_stored": 14,
        "pixel_representation": 0,
        "photometric_interpretation": "MONOCHROME1",
        "horizontal_field_of_view_degrees": 45.0,
        "pupil_dilated": "YES",
        "acquisition_device_type": "409898007",
        "patient_age_years": 45.0,
        "patient_sex": "F",
        "transfer_syntax_uid": syntax or ExplicitVRLittleEndian,
        "detector_type": None,
        "malformed": (),
    }
    assert {key: parameters[key] for key in expected} == expected


def test_every_parameter_that_the_check_knows_is_there() -> None:
    assert PARAMETERS.keys() - read_parameters(Dataset()).keys() == NOT_READ


def test_tags_are_those_of_the_check() -> None:
    tags = {key: reading.tag for key, reading in READINGS.items()} | dict(HASHED) | dict(CODED)
    known = {key: tag for key, tag in tags.items() if key in PARAMETERS}
    assert len(known) > 50
    assert {key: f"({tag >> 16:04X},{tag & 0xFFFF:04X})" for key, tag in known.items()} == {
        key: PARAMETERS[key].tag for key in known
    }


def test_an_empty_header_has_every_key_and_nothing_malformed() -> None:
    parameters = read_parameters(Dataset())
    assert parameters["malformed"] == ()
    assert all(value is None for key, value in parameters.items() if key != "malformed")


def test_identifiers_of_devices_are_hashed() -> None:
    parameters = read_parameters(header(), site_key=KEY)
    other = read_parameters(header(), site_key=hashlib.sha256(KEY).digest())
    assert "12345" not in str(parameters) and "DET1" not in str(parameters)
    assert len(str(parameters["device_serial_number"])) == 16
    assert parameters["device_serial_number"] == read_parameters(header(), site_key=KEY)["device_serial_number"]
    assert parameters["device_serial_number"] != other["device_serial_number"]
    without_key = read_parameters(header())
    assert without_key["device_serial_number"] is None and without_key["malformed"] == ()


def test_nothing_that_names_the_patient_is_read() -> None:
    dataset = header()
    dataset.StationName = dataset.ProtocolName = dataset.InstitutionName = dataset.StudyDescription = "Zqplanted"
    text = str(read_parameters(dataset, site_key=KEY))
    assert not any(planted in text for planted in ("Zqplanted", "Doe", "4711", "1.2.3'"))


@pytest.mark.parametrize(
    ("age", "birth", "study", "years"),
    [
        ("089Y", "", "", 89.0),
        ("090Y", "", "", 90.0),
        ("104Y", "", "", 90.0),
        ("006M", "", "", 0.5),
        ("003W", "", "", 21 / 365.25),
        ("002D", "", "", 2 / 365.25),
        ("", "19800615", "20200615", 14610 / 365.25),
        ("", "19000101", "20200615", 90.0),
        ("", "19400305", "20040826", 64.0),
        ("", "20190115", "20200615", 16 / 12),
        ("", "19800615", "", None),
    ],
)
def test_ages(age: str, birth: str, study: str, years: float | None) -> None:
    dataset = header()
    dataset.PatientAge, dataset.PatientBirthDate, dataset.StudyDate = age, birth, study
    parameters = read_parameters(dataset)
    assert parameters["patient_age_years"] == (years if years is None else pytest.approx(years))
    assert parameters["malformed"] == ()


# Values that a header may hold and its attribute may not, in the bytes of a file.
MALFORMED = [
    (b"DS\x06\x00117.5 ", b"DS\x06\x00abcdef", "kvp_kv"),
    (b"AS\x04\x00045Y", b"AS\x04\x00old!", "patient_age_years"),
    (b"CS\x02\x00F ", b"CS\x02\x00??", "patient_sex"),
    (b"DS\x0a\x000.15\\0.16 ", b"DS\x0a\x000.15\\0.1\\1", "pixel_spacing_row_mm"),
    (b"LO\x08\x00SIEMENS ", b"LO\x08\x00SIE\x00\x01\x02S ", "manufacturer"),
    (b"DS\x06\x00117.5 ", b"DS\x06\x001e9999", "kvp_kv"),
]


@pytest.mark.parametrize(("good", "bad", "key"), MALFORMED)
def test_malformed_values_are_none_and_named(good: bytes, bad: bytes, key: str) -> None:
    before = encoded(header())
    assert before.count(good) == 1
    dataset = pydicom.dcmread(io.BytesIO(before.replace(good, bad)))
    parameters = read_parameters(dataset, site_key=KEY)
    assert parameters[key] is None and key in parameters["malformed"]
    assert parameters["rows"] == 2000, "the others are read all the same"


def test_the_header_is_not_changed() -> None:
    dataset = pydicom.dcmread(io.BytesIO(encoded(header())))
    before = {tag: dataset.get_item(tag, keep_deferred=True) for tag in dataset.keys()}  # noqa: SIM118
    read_parameters(dataset, site_key=KEY)
    assert all(dataset.get_item(tag, keep_deferred=True) is value for tag, value in before.items())


def test_random_headers_never_raise() -> None:
    source = bytearray(encoded(header()))
    state = hashlib.sha256(b"start").digest()
    read = 0
    for _ in range(300):
        state = hashlib.sha256(state).digest()
        damaged = bytearray(source)
        for number in range(6):
            damaged[300 + int.from_bytes(state[number * 4 : number * 4 + 3], "big") % (len(source) - 300)] = state[
                -number
            ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, on reading
            try:
                dataset = pydicom.dcmread(io.BytesIO(damaged))
            except Exception:  # noqa: BLE001 - what cannot be opened is not this test's subject
                continue
            read_parameters(dataset, site_key=KEY)
        read += 1
    assert read > 100


def test_a_real_header() -> None:
    parameters = read_parameters(pydicom.dcmread(get_testdata_file("CT_small.dcm")), site_key=KEY)
    # As gdcmdump shows it: (0008,0070) GE MEDICAL SYSTEMS, (0008,1090) RHAPSODE, (0018,0060) 120, (0028,0010) 128.
    assert parameters["manufacturer"] == "GE MEDICAL SYSTEMS"
    assert parameters["manufacturer_model_name"] == "RHAPSODE"
    assert parameters["kvp_kv"] == 120.0 and parameters["rows"] == 128
    assert parameters["malformed"] == ()


def test_device_key_is_readable_and_one_for_all_spellings_of_a_device() -> None:
    keys = set()
    for maker, model in (("SIEMENS", "YSIO Max"), ("Siemens Healthineers", "Ysio  max "), ("Siemens AG", "YSIO MAX")):
        dataset = header()
        dataset.Manufacturer, dataset.ManufacturerModelName = maker, model
        parameters = read_parameters(dataset, site_key=KEY)
        assert parameters["manufacturer"] == maker, "the value itself is kept as received"
        keys.add(device_key(parameters))
    (only,) = keys
    assert only.startswith("SIEMENS YSIO MAX · VB10A 2 · ") and "12345" not in only

    dataset = header()
    dataset.DeviceSerialNumber = "54321"
    assert device_key(read_parameters(dataset, site_key=KEY)) not in keys
    dataset.SoftwareVersions = "VB10B"
    assert device_key(read_parameters(dataset, site_key=KEY)).startswith("SIEMENS YSIO MAX · VB10B · ")
    assert device_key(read_parameters(Dataset())) == "unknown device"
