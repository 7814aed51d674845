"""The allow-list: what a reader, a model and a monitor need is on it, free text and what identifies is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.uid import UID

from gateway.acquisition import CODED, HASHED, READINGS
from gateway.deidentification import allow_list, profile
from gateway.deidentification.allow_list import allowed

ACCEPTED = sorted(allow_list.ACCEPTED_SOP_CLASSES)
FOLDER = Path(profile.__file__).parent
DX, CT, SC = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
OP = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
PET, BASIC_TEXT_SR, RT_PLAN = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("128", "88.11", "481.5"))

DISPLAYED_BY = """
    SamplesPerPixel PhotometricInterpretation PlanarConfiguration Rows Columns BitsAllocated BitsStored HighBit
    PixelRepresentation NumberOfFrames PixelAspectRatio SmallestImagePixelValue LargestImagePixelValue PixelPaddingValue
    PixelPaddingRangeLimit RescaleIntercept RescaleSlope RescaleType ModalityLUTSequence WindowCenter WindowWidth
    VOILUTFunction VOILUTSequence PresentationLUTShape PixelIntensityRelationship PixelIntensityRelationshipSign
    RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    SegmentedRedPaletteColorLookupTableData ColorSpace FrameIncrementPointer FrameTime CineRate
    RecommendedDisplayFrameRate SpecificCharacterSet PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing
    ImageOrientationPatient ImagePositionPatient SliceThickness SpacingBetweenSlices SliceLocation PatientPosition
    PatientOrientation Laterality ImageLaterality BodyPartExamined ViewPosition ImageType InstanceNumber SeriesNumber
    AcquisitionNumber LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod BurnedInAnnotation
    SequenceOfUltrasoundRegions
"""
"""Read from PS3.3 C.7.6.3, C.7.6.5, C.11 and C.12 by hand, with what hangs and measures a picture."""


def generator() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "make_deidentification_table.py"
    spec = importlib.util.spec_from_file_location("make_deidentification_table", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def table() -> dict[str, dict[str, dict[str, object]]]:
    loaded: dict[str, dict[str, dict[str, object]]] = json.loads((FOLDER / "allow_list.json").read_text("utf-8"))
    return loaded


def listed(tag: int) -> bool:
    return f"{tag:08X}" in profile.table()


def every_row() -> Iterator[tuple[int, int | None]]:
    yield from ((int(text, 16), None) for text in table()["top_level"])
    for path in table()["nested"]:
        parent, tag = path.split(">")
        yield int(tag, 16), int(parent, 16)


def test_the_eight_families_are_taken_and_others_are_known() -> None:
    names = {UID(sop_class).name for sop_class in ACCEPTED}
    for family in (
        *("Computed Radiography", "Digital X-Ray Image Storage - For Presentation"),
        *("Digital X-Ray Image Storage - For Processing", "Digital Mammography X-Ray Image Storage - For Presentation"),
        *("Digital Mammography X-Ray Image Storage - For Processing", "CT Image", "Enhanced CT", "MR Image"),
        *("Enhanced MR Image", "Ultrasound Image", "Ultrasound Multi-frame", "Secondary Capture Image"),
        *("Ophthalmic Photography 8 Bit", "Ophthalmic Photography 16 Bit"),
    ):
        assert any(name.startswith(family) for name in names), family
    assert allow_list.ACCEPTED_SOP_CLASSES < allow_list.KNOWN_SOP_CLASSES
    assert PET in allow_list.KNOWN_SOP_CLASSES and PET not in allow_list.ACCEPTED_SOP_CLASSES
    assert RT_PLAN not in allow_list.KNOWN_SOP_CLASSES
    assert not {name for name in names if "Waveform" in name or "Encapsulated" in name or "SR" in name}


@pytest.mark.parametrize("sop_class", ACCEPTED, ids=lambda sop_class: str(UID(sop_class).name))
def test_what_the_monitors_read_may_stay(sop_class: str) -> None:
    missing = {
        key
        for key, reading in READINGS.items()
        if not listed(reading.tag) and allowed(reading.tag, None, sop_class) is None
    }
    assert not missing
    for tag in CODED.values():
        assert allowed(tag, None, sop_class)
    for tag in HASHED.values():
        row = profile.table().get(f"{tag:08X}")
        assert row is None or row.options["retain_device_identity"] == "K"


@pytest.mark.parametrize("sop_class", ACCEPTED, ids=lambda sop_class: str(UID(sop_class).name))
def test_what_a_picture_is_decoded_displayed_and_measured_by_may_stay(sop_class: str) -> None:
    for keyword in DISPLAYED_BY.split():
        tag = tag_for_keyword(keyword)
        assert tag is not None and not listed(tag)
        reason = allowed(tag, None, sop_class)
        assert reason is not None and reason.startswith("allow-list: ") and ":" in reason[12:], keyword


def test_every_row_has_a_reason_and_no_free_text() -> None:
    rows = list(every_row())
    assert len(rows) > 2500
    for tag, parent in rows:
        vr = dictionary_VR(tag)
        free = set(vr.split(" or ")) & {
            "AE",
            "DA",
            "DT",
            "LO",
            "LT",
            "OB",
            "OW",
            "PN",
            "SH",
            "ST",
            "TM",
            "UC",
            "UN",
            "UR",
            "UT",
        }
        named = profile.KEPT_TEXTS.keys() | profile.CLEANED_TEXTS.keys() | profile.KEPT_BULK.keys()
        assert not free or tag in named, keyword_for_tag(tag)
        assert not listed(tag) and tag not in profile.REMOVED and tag >> 16 & 1 == 0
        if parent is not None:
            assert dictionary_VR(parent) == "SQ"
    assert all(str(row["reason"]).count(": ") == 1 for row in table()["modules"].values())


@pytest.mark.parametrize(
    ("keyword", "parent"),
    [
        ("IssuerOfAccessionNumberSequence", None),
        ("RetrieveURL", None),
        ("WindowCenterWidthExplanation", None),
        ("EncryptedAttributesSequence", None),
        ("RequestingServiceCodeSequence", None),
        ("PrivateDataElementCharacteristicsSequence", None),
        ("WaveformSequence", None),
        ("PatientBodyMassIndex", None),
        ("PatientBreedCodeSequence", None),
        ("LongitudinalTemporalOffsetFromEvent", None),
        ("PartialViewDescription", None),
        ("GridID", None),
        ("Rows", "AnatomicRegionSequence"),
        ("EncapsulatedDocument", None),
        ("ExtendedOffsetTable", None),
        ("GPSLatitude", None),
    ],
)
def test_what_identifies_or_belongs_elsewhere_may_not_stay(keyword: str, parent: str | None) -> None:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    assert all(allowed(tag, tag_for_keyword(parent) if parent else None, sop_class) is None for sop_class in ACCEPTED)


def test_reasons_come_from_the_module_of_the_object() -> None:
    distance = 0x00181110
    assert allowed(distance, None, CT) == "allow-list: CT Image: acquisition, geometry and dose"
    assert allowed(distance, None, DX) == "allow-list: DX Positioning: view and geometry"
    borrowed = allowed(distance, None, OP)
    assert borrowed is not None and borrowed.endswith("(of another IOD)")
    assert allowed(0x00280010, None, RT_PLAN) is None and allowed(0x00280010, None, "") is None
    assert allowed(0x0040A30A, 0x0040A300, BASIC_TEXT_SR)


def test_items_of_private_sequences_may_hold_what_some_sequence_may() -> None:
    assert allowed(0x00280010, 0x00091001, DX)
    assert allowed(0x00281055, 0x00091001, DX) is None


def test_texts_that_are_cleaned_lose_what_is_no_word_of_imaging() -> None:
    chosen = profile.Profile(frozenset())
    for tag in profile.CLEANED_TEXTS:
        classes = [each for each in allow_list.KNOWN_SOP_CLASSES if allowed(tag, None, each)]
        for each in classes:
            assert chosen.action(tag, None, each) is profile.Action.CLEAN_TEXT
        assert classes or keyword_for_tag(tag) in {
            "StackID",
            "DimensionDescriptionLabel",
            "LUTExplanation",
            "SegmentLabel",
        }


def test_the_file_is_what_the_generator_makes() -> None:
    made = generator()
    committed = table()
    if committed["header"]["taken_from"] != {
        "package": f"highdicom {importlib.metadata.version('highdicom')}",
        "licence": "MIT",
    }:
        pytest.skip("another version of highdicom is installed than the one the file was made from")
    rows = json.loads((FOLDER / "confidentiality_profile.json").read_text("utf-8"))["rows"]
    assert made.allow_list(rows) == {key: part for key, part in committed.items() if key != "header"}


def test_every_option_column_was_compared_with_another_reading_of_the_standard() -> None:
    header = json.loads((FOLDER / "confidentiality_profile.json").read_text("utf-8"))["header"]
    compared = header["all_columns_compared_with"]
    assert compared["edition"] == "2024b" and len(compared["member_sha256"]) == 64
    assert compared["rows_that_agree_in_every_column"] + len(header["column_differences"]) == header["rows"] == 657
    assert all("; " in why for why in header["column_differences"].values())


def test_the_comparison_of_columns_sees_every_kind_of_difference() -> None:
    made = generator()
    other = json.dumps(
        [
            {"id": "0008002a", "basicProfile": "X", "rtnLongFullDatesOpt": "K", "name": "", "tag": ""},
            {"id": "00080050", "basicProfile": "Z", "name": "", "tag": ""},
            {"id": "ggggeeee-where-gggg-is-odd", "basicProfile": "X", "rtnSafePrivOpt": "C", "name": "", "tag": ""},
        ]
    )
    compared = made.read_all_columns(other.encode())
    rows = [
        {"tag": "0008002A", "basic": "X", "options": {"retain_longitudinal_full_dates": "C"}},
        {"tag": "PRIVATE", "basic": "X", "options": {"retain_safe_private": "C"}},
        {"tag": "00100010", "basic": "Z", "options": {}},
    ]
    assert made.column_differences(rows, compared) == {
        "0008002A": {"retain_longitudinal_full_dates": "C / K"},
        "00080050": {"basic": "None / Z"},
        "00100010": {"basic": "Z / None"},
    }
    with pytest.raises(SystemExit, match="not known"):
        made.read_all_columns(b'[{"id": "00080050", "basicProfile": "Z", "newOpt": "K"}]')
