from __future__ import annotations

import pytest
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.tag import Tag

from drift.acquisition import (
    MALFORMED,
    MISSING,
    PARAMETERS,
    UNREADABLE,
    AcquisitionFinding,
    judge_acquisition,
    normalise,
    unknown_keywords,
)
from gateway.acquisition import read_parameters
from models.card import AcquisitionRange, NumericRange

KOWA = AcquisitionRange(
    values={
        "manufacturer": ("Kowa",),
        "manufacturer_model_name": ("VX-10 alpha",),
        "photometric_interpretation": ("RGB", "YBR_FULL_422"),
        "bits_stored": ("8",),
    },
    ranges={"rows": NumericRange(minimum=400, maximum=3000), "pixel_spacing_row_mm": NumericRange(maximum=0.02)},
    severity={"manufacturer_model_name": "critical", "rows": "info"},
)
IN_RANGE = {
    "manufacturer": "KOWA Company, Ltd.",
    "manufacturer_model_name": "VX-10α",
    "photometric_interpretation": "YBR_FULL_422",
    "bits_stored": 8,
    "rows": 2848,
    "pixel_spacing_row_mm": 0.0042,
}


@pytest.mark.parametrize("keyword", sorted(PARAMETERS))
def test_tag_is_the_one_the_standard_gives_the_keyword(keyword: str) -> None:
    parameter = PARAMETERS[keyword]
    number = tag_for_keyword(parameter.keyword)
    assert number is not None
    tag = Tag(number)
    assert parameter.tag == f"({tag.group:04X},{tag.element:04X})"


def test_image_in_range_has_no_finding() -> None:
    assert judge_acquisition(IN_RANGE, KOWA) == ()


def test_new_model_name_is_flagged_with_tag_value_and_the_card_s_severity() -> None:
    (finding,) = judge_acquisition(IN_RANGE | {"manufacturer_model_name": "TRC-NW400"}, KOWA)
    assert finding == AcquisitionFinding(
        tag="(0008,1090)",
        keyword="manufacturer_model_name",
        value="TRC-NW400",
        expected="VX-10 alpha",
        severity="critical",
        message="This device model was not validated for this model version: TRC-NW400 (validated: VX-10 alpha).",
    )


@pytest.mark.parametrize("absent", [None, "", "  ", ()])
def test_missing_value_is_a_finding(absent: str | tuple[()] | None) -> None:
    (finding,) = judge_acquisition(IN_RANGE | {"manufacturer": absent}, KOWA)
    assert (finding.value, finding.severity) == (MISSING, "warning")
    assert finding.message == "The image does not state its manufacturer (validated: Kowa)."


def test_parameter_that_the_reader_left_out_is_missing_too() -> None:
    parameters = {keyword: value for keyword, value in IN_RANGE.items() if keyword != "rows"}
    (finding,) = judge_acquisition(parameters, KOWA)
    assert (finding.keyword, finding.value) == ("rows", MISSING)


def test_value_that_the_reader_could_not_make_out_is_not_called_missing() -> None:
    (finding,) = judge_acquisition(IN_RANGE | {"rows": None, "malformed": ("rows", "kvp")}, KOWA)
    assert (finding.keyword, finding.value) == ("rows", UNREADABLE)
    assert finding.message == "The image's number of rows cannot be read (validated: 400 to 3000)."


def test_every_parameter_that_the_gateway_reads_stands_in_the_table() -> None:
    assert set(read_parameters(Dataset())) - {MALFORMED} <= set(PARAMETERS)


def test_absence_can_be_validated() -> None:
    validated = AcquisitionRange(values={"image_laterality": ("L", "R", "")})
    assert judge_acquisition({"image_laterality": None}, validated) == ()
    (finding,) = judge_acquisition({"image_laterality": "B"}, validated)
    assert finding.expected == f"L or R or {MISSING}"


@pytest.mark.parametrize(("rows", "side"), [(399, "below"), (3001, "above"), (float("nan"), "not a number")])
def test_out_of_range(rows: float, side: str) -> None:
    (finding,) = judge_acquisition(IN_RANGE | {"rows": rows}, KOWA)
    assert side in finding.message
    assert finding.severity == "info"


@pytest.mark.parametrize("edge", [400, 3000, "400"])
def test_bounds_are_inside(edge: int | str) -> None:
    assert judge_acquisition(IN_RANGE | {"rows": edge}, KOWA) == ()


def test_what_is_expected_is_said_once_in_the_card_s_first_spelling() -> None:
    validated = AcquisitionRange(
        values={"manufacturer": ("Kowa", "KOWA Company Ltd.", "Topcon", "TOPCON")},
        ranges={"bits_stored": NumericRange(minimum=8, maximum=8)},
    )
    maker, bits = judge_acquisition({"manufacturer": "Canon", "bits_stored": 16}, validated)
    assert maker.expected == "Kowa or Topcon"
    assert bits.expected == "8"


def test_one_sided_range_states_its_unit() -> None:
    (finding,) = judge_acquisition(IN_RANGE | {"pixel_spacing_row_mm": 0.1}, KOWA)
    assert finding.expected == "at most 0.02 mm"
    assert finding.tag == "(0028,0030)"


def test_nothing_validated_gives_one_finding_whatever_the_value() -> None:
    validated = AcquisitionRange(values={"software_versions": ()})
    for value in ("1.2.3", None):
        (finding,) = judge_acquisition({"software_versions": value}, validated)
        assert finding.expected == "not validated"
        assert finding.tag == "(0018,1020)"


@pytest.mark.parametrize(
    ("keyword", "one", "other"),
    [
        ("manufacturer", "SIEMENS", "Siemens Healthineers"),
        ("manufacturer", "Philips Medical Systems", "philips"),
        ("manufacturer", "GE MEDICAL SYSTEMS", "GE Healthcare"),
        ("manufacturer", "Carl Zeiss Meditec AG", "ZEISS"),
        ("manufacturer", "FUJI PHOTO FILM Co., ltd.", "FUJIFILM Corporation"),
        ("manufacturer", "KONICA_MINOLTA", "Konica Minolta, Inc."),
        ("manufacturer_model_name", "TRC-NW8F plus", "TRC NW8F Plus"),
        ("image_laterality", "R", "right"),
        ("view_position", " pa ", "PA"),
    ],
)
def test_spellings_that_are_one(keyword: str, one: str, other: str) -> None:
    assert judge_acquisition({keyword: one}, AcquisitionRange(values={keyword: (other,)})) == ()


@pytest.mark.parametrize(
    ("keyword", "one", "other"),
    [
        ("manufacturer", "Kowa", "Topcon"),
        ("manufacturer", "Medical Systems", "Imaging Solutions"),
        ("software_versions", "1.2", "12"),
        ("manufacturer_model_name", "CR-2", "CR-1"),
        ("lossy_image_compression", "00", "01"),
    ],
)
def test_spellings_that_differ(keyword: str, one: str, other: str) -> None:
    assert normalise(keyword, one) != normalise(keyword, other)
    assert len(judge_acquisition({keyword: one}, AcquisitionRange(values={keyword: (other,)}))) == 1


def test_multi_valued_attribute_passes_as_a_whole_or_value_by_value() -> None:
    whole = AcquisitionRange(values={"image_type": ("ORIGINAL\\PRIMARY",)})
    each = AcquisitionRange(values={"software_versions": ("A1", "B7")})
    assert judge_acquisition({"image_type": ("ORIGINAL", "PRIMARY")}, whole) == ()
    assert judge_acquisition({"software_versions": ("B7", "A1")}, each) == ()
    (finding,) = judge_acquisition({"software_versions": ("B7", "B8")}, each)
    assert finding.value == "B7\\B8"


def test_a_peer_s_text_is_shown_short_and_printable() -> None:
    (finding,) = judge_acquisition(IN_RANGE | {"manufacturer": "x\n\x1b[31m" + "y" * 500}, KOWA)
    assert len(finding.value) == 64
    assert finding.value.isprintable()


def test_unknown_keywords_finds_the_card_s_typing_error() -> None:
    assert unknown_keywords(KOWA) == ()
    assert unknown_keywords(AcquisitionRange(values={"manufacturer_model": ("x",)})) == ("manufacturer_model",)
