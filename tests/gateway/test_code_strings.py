"""Code strings: terms of the standard and of devices stay, names and numbers in capital letters do not."""

from __future__ import annotations

import warnings

import pydicom
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_files

from gateway.deidentification.repeats import PatientWords
from gateway.deidentification.terms import is_term

# Read in PS3.3 (Defined Terms, Enumerated Values) and in headers of devices, by hand.
TERMS = """
    ORIGINAL|PRIMARY|DERIVED|SECONDARY|AXIAL|LOCALIZER|REFORMATTED|AVERAGE|PROJECTION IMAGE|MIP|MINIP|VOLUME
    VOLREND|MOSAIC|DIXON|WATER|FAT|IN_PHASE|OPP_PHASE|DIFFUSION|TRACEW|ADC|FA|PERFUSION|T2_STAR|PHASE MAP|M_FFE
    M_SE|CSA RESAMPLED|DIS2D|NORM|FM3|SCREEN SAVE|HELICAL MODE|SCOUT MODE|CINE MODE|FAST_GEMS|SK|OSP|TRSS|CHEST
    HEADNECK|CSPINE|TSPINE|LSPINE|KNEE|WHOLEBODY|EYE|RETINA|BREAST|ABDOMEN|PELVIS|CAROTID|EXTREMITY|AP|PA|LL|MLO
    CC|XCCL|HFS|FFP|PORTRAIT|LANDSCAPE|35CMX43CM|DIRECT|SCINTILLATOR|STORAGE|FILM|AREA|SLOT|FIXED|GRID|FOCUSED
    CROSSED|ROUND|RECTANGLE|MOLYBDENUM|TUNGSTEN|COPPER|AUTOMATIC|MANUAL|YES|NO|NO TRIGGER|CCD|CMOS|SINGLE PLANE
    COLUMN|CARM|MAMMOGRAPHIC|MONOCHROME2|YBR_FULL_422|YBR_ICT|PALETTE COLOR|RGB|ISO_10918_1|ISO_14495_1|IDENTITY
    INVERSE|LINEAR_EXACT|SIGMOID|FOR PRESENTATION|FOR PROCESSING|LIN|GEOMETRY|FIDUCIAL|REMOVED|UNMODIFIED
    TRANSMISSION|EMISSION|BRIGHTFIELD|SECTOR_PHASED|CURVED LINEAR|SMALL PARTS|0001|UNSPECIFIED|EXPOSED|ABORTED|TSE
    EPI|SPIRAL|RADIAL|CARTESIAN|SPECTRAL|MULTI_ENERGY|STANDARD|NONE|UNKNOWN|OTHER
"""

NO_TERMS = """
    ZQ48XKPLUM|SMITH|SMITH_JOHN|JOHNDOE|MUELLER|MUSTERMANN|HOSPITAL|MRN123456|PAT0042|A1234567|19630417|TOKEN17|SECRET
    KRANKENHAUS|ERIKA|P4711X|4711008151
"""


@pytest.mark.parametrize("term", [each.strip() for each in TERMS.replace("\n", "|").split("|") if each.strip()])
def test_terms_stay(term: str) -> None:
    assert is_term(term.strip())


@pytest.mark.parametrize("text", [each.strip() for each in NO_TERMS.replace("\n", "|").split("|") if each.strip()])
def test_names_and_numbers_do_not(text: str) -> None:
    assert not is_term(text)


def test_code_strings_of_real_devices_stay() -> None:
    seen, gone = set(), set()
    for path in get_testdata_files():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                dataset = pydicom.dcmread(path, stop_before_pixels=True)
                elements = [each for each in dataset.iterall() if each.VR == "CS" and not each.tag.is_private]
            except Exception:  # noqa: BLE001 - what pydicom cannot read is not this test's subject
                continue
        for element in elements:
            values = element.value if element.VM > 1 else [element.value]
            if element.tag != 0x00080005:
                seen |= {(element.keyword, str(value)) for value in values if value}
    gone = {(keyword, value) for keyword, value in seen if not is_term(value)}
    assert len(seen) > 300
    assert {keyword for keyword, _ in gone} <= {
        *("ContentLabel", "StudyStatusID", "MappingResource", "ContextIdentifier"),
        *("FileSetID", "FileSetDescriptorFileID", "ReferencedFileID"),  # of directories
    }


def test_a_name_that_a_short_field_cut_goes_too() -> None:
    original = Dataset()
    original.PatientName = "Wrzesniewski^Balthasar"
    words = PatientWords(original)
    assert words.are_in(["HEAD Wrzesniewsk"])
    assert words.are_in(["wrzesn"])
    assert not words.are_in(["WRZE 7", "HEAD 32", "MAKER"])
