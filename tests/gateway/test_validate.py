"""The walk over received data sets, held against pydicom's reader and against every truncation of a small object."""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from importlib.util import find_spec
from pathlib import Path

import highdicom
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from intake_rig import data_set_bytes, encoded, small_dataset
from pydicom import Dataset, Sequence
from pydicom.datadict import keyword_for_tag
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)
from small_objects import every_object

from gateway.content_elements import LAST_ELEMENTS, PIXEL_DATA
from gateway.errors import NotUnderstoodError
from gateway.routing import attribute_values
from gateway.spool import file_meta
from gateway.validate import Limits, encoding_of, inspect

# Why the gateway does not take some of pydicom's own test files.
NOT_TAKEN = {
    "rtplan_truncated.dcm": "truncated",
    "MR_truncated.dcm": "truncated",
    "bad_sequence.dcm": "the SOP Instance UID is not a UID",
    "rtdose_rle.dcm": "no SOP Class UID",
    "rtdose_rle_1frame.dcm": "no SOP Class UID",
    "explicit_VR-UN.dcm": "no SOP Class UID",
    # Computed radiographs without pixel data, made to test character sets: no different from one that was cut off.
    "chrJapMulti.dcm": "truncated: it ends with",
    "chrJapMultiExplicitIR6.dcm": "truncated: it ends with",
    "chrKoreanMulti.dcm": "truncated: it ends with",
}


def inspect_bytes(tmp_path: Path, content: bytes, syntax: str = ExplicitVRLittleEndian, limits: Limits | None = None):  # type: ignore[no-untyped-def]
    path = tmp_path / "file"
    path.write_bytes(b"x" * 300 + content)
    return inspect(path, offset=300, transfer_syntax_uid=str(syntax), limits=limits)


def rich_dataset(syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """Sequences of defined and undefined length, nested, private elements, long VRs, empty values."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99X", "Meaning"
    inner = Dataset()
    inner.ConceptNameCodeSequence = Sequence([code])
    inner.TextValue = "text"
    dataset = small_dataset(SOPInstanceUID="1.2.3.4", SpecificCharacterSet="ISO_IR 192", AccessionNumber="")
    dataset.ContentSequence = Sequence([inner, inner])
    dataset["ContentSequence"].is_undefined_length = True
    for item in dataset.ContentSequence:
        item.is_undefined_length_sequence_item = True
    dataset.ProcedureCodeSequence = Sequence([code])
    block = dataset.private_block(0x0099, "GATEWAY TEST", create=True)
    block.add_new(0x01, "OB", b"\1\2\3\4")
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_pydicom_on_its_test_files() -> None:
    checked = 0
    folders = [Path(pydicom.__file__).parent / "data" / "test_files"]
    more = find_spec("data_store")  # the package pydicom-data
    if more is not None:
        folders.extend(Path(each) / "data" for each in more.submodule_search_locations or ())
    for path in sorted(each for folder in folders for each in folder.rglob("*.dcm")):
        try:
            dataset = pydicom.dcmread(path)
            syntax = dataset.file_meta.TransferSyntaxUID
        except (pydicom.errors.InvalidDicomError, AttributeError, OSError):
            continue
        offset = path.stat().st_size - len(data_set_bytes(path))
        if "StudyInstanceUID" not in dataset:
            continue
        if path.name in NOT_TAKEN:
            with pytest.raises(NotUnderstoodError, match=NOT_TAKEN[path.name]):
                inspect(path, offset=offset, transfer_syntax_uid=str(syntax))
            continue
        found = inspect(path, offset=offset, transfer_syntax_uid=str(syntax))
        assert found.sop_class_uid == dataset.SOPClassUID, path.name
        assert found.sop_instance_uid == dataset.SOPInstanceUID, path.name
        assert found.study_instance_uid == dataset.StudyInstanceUID, path.name
        assert found.series_instance_uid == dataset.SeriesInstanceUID, path.name
        for keyword in ("PatientName", "PatientID", "Modality", "ImageType", "StudyDescription", "Rows"):
            assert attribute_values(found.header, keyword) == attribute_values(dataset, keyword), (path.name, keyword)
        checked += 1
    assert checked >= 100


@pytest.mark.parametrize(
    ("name", "syntax", "whole", "dataset"), every_object(), ids=lambda each: each if isinstance(each, str) else ""
)
def test_truncation_at_every_byte(tmp_path: Path, name: str, syntax: str, whole: bytes, dataset: Dataset) -> None:
    """Between two top-level elements as well: what is left is then well-formed, and lacks the content."""
    found = inspect_bytes(tmp_path, whole, syntax)
    assert (found.sop_instance_uid, found.sop_class_uid) == (dataset.SOPInstanceUID, dataset.SOPClassUID)
    packer = zlib.decompressobj(-15)
    padding = 0
    if syntax == DeflatedExplicitVRLittleEndian:
        packer.decompress(whole)
        padding = len(packer.unused_data)  # to an even length (PS3.5 section A.5)
    for length in range(len(whole) - padding):
        with pytest.raises(NotUnderstoodError):
            inspect_bytes(tmp_path, whole[:length], syntax)


def test_what_ends_before_its_content(tmp_path: Path) -> None:
    """Whatever the SOP class: Bits Allocated means that pixel data follow, unless they are elsewhere."""
    dataset = small_dataset(SOPClassUID="1.2.3.4.5")
    del dataset.PixelData
    for syntax in (ExplicitVRLittleEndian, "1.2.840.10008.1.2.4.94"):
        with pytest.raises(NotUnderstoodError, match=r"truncated: it ends with \(0028,0103\)"):
            inspect_bytes(tmp_path, encoded(dataset), syntax)
    dataset.PixelDataProviderURL = "https://example.org/image"
    assert inspect_bytes(tmp_path, encoded(dataset), "1.2.840.10008.1.2.4.94")
    with pytest.raises(NotUnderstoodError, match="before its content"):
        inspect_bytes(tmp_path, encoded(dataset))
    del dataset.BitsAllocated
    assert inspect_bytes(tmp_path, encoded(dataset)), "of a private class nothing else is known"


def test_last_elements_are_of_their_classes() -> None:
    """Each row against the attributes that highdicom's copy of PS3.3 gives for that IOD."""
    folder = Path(highdicom.__file__).parent / "_standard"
    iods, modules, classes = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("iod_module_map", "module_attribute_map", "sop_class_iod_map")
    )
    checked = 0
    for sop_class_uid, tag in LAST_ELEMENTS.items():
        if sop_class_uid not in classes:
            continue
        of_iod = {
            attribute["keyword"]
            for module in iods[classes[sop_class_uid]]
            for attribute in modules.get(module["key"], [])
            if not attribute["path"]
        }
        names = {keyword_for_tag(each) for each in ((tag, tag + 1, tag + 8) if tag == PIXEL_DATA else (tag,))}
        assert names & of_iod, sop_class_uid
        checked += 1
    assert checked > 150


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_fewer_pixels_than_the_header_says(tmp_path: Path, syntax: str) -> None:
    dataset = small_dataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    assert inspect_bytes(tmp_path, encoded(dataset), syntax)
    dataset.PixelData += bytes(10)
    assert inspect_bytes(tmp_path, encoded(dataset), syntax), "longer is padded, which devices do"
    for keyword, value in (("Rows", 9), ("NumberOfFrames", "2"), ("SamplesPerPixel", 3), ("BitsAllocated", 32)):
        shorter = small_dataset(**{keyword: value})
        shorter.file_meta.TransferSyntaxUID = syntax
        with pytest.raises(NotUnderstoodError, match="truncated: 128 bytes of pixel data where"):
            inspect_bytes(tmp_path, encoded(shorter), syntax)
    for attributes, size in (({"BitsAllocated": 1}, 8), ({"PhotometricInterpretation": "YBR_FULL_422"}, 256)):
        exact = small_dataset(PixelData=bytes(size), **attributes)
        exact.file_meta.TransferSyntaxUID = syntax
        assert inspect_bytes(tmp_path, encoded(exact), syntax)


def test_encapsulated_pixel_data_are_not_counted(tmp_path: Path) -> None:
    dataset = small_dataset(Rows=4000, Columns=4000)
    dataset.PixelData = encapsulate([b"\xff\xd8" + bytes(20)])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    assert inspect_bytes(tmp_path, encoded(dataset), JPEGBaseline8Bit)


def test_zeros_after_the_end_are_tolerated_and_nothing_else(tmp_path: Path) -> None:
    whole = encoded(small_dataset())
    assert inspect_bytes(tmp_path, whole + bytes(7))
    for rest in (b"\1", bytes(8), b"\0\0\0\1"):
        with pytest.raises(NotUnderstoodError):
            inspect_bytes(tmp_path, whole + rest)


@pytest.mark.parametrize("depth", [10, 300, 20_000])
def test_nesting(tmp_path: Path, depth: int) -> None:
    whole = encoded(small_dataset())
    split = whole.index(struct.pack("<HH2s", 0x0010, 0x0010, b"PN"))
    level = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    close = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    content = whole[:split] + level * depth + close * depth + whole[split:]
    if depth == 10:
        assert inspect_bytes(tmp_path, content)
    else:
        with pytest.raises(NotUnderstoodError, match="nested deeper"):
            inspect_bytes(tmp_path, content)


def test_defined_length_nesting_in_implicit_vr(tmp_path: Path) -> None:
    """Implicit VR names no sequences: the data dictionary does."""
    dataset = rich_dataset(ImplicitVRLittleEndian)
    whole = encoded(dataset)
    position = whole.index(struct.pack("<HH", 0x0008, 0x1032)) + 8  # Procedure Code Sequence
    assert whole[position : position + 4] == b"\xfe\xff\x00\xe0"
    with pytest.raises(NotUnderstoodError, match=r"\(0008,1032\) has no item"):
        inspect_bytes(tmp_path, whole[:position] + b"\1" + whole[position + 1 :], ImplicitVRLittleEndian)


def test_un_of_undefined_length_is_implicit_inside(tmp_path: Path) -> None:
    """PS3.5 section 6.2.2: whatever the transfer syntax."""
    whole = encoded(small_dataset())
    split = whole.index(struct.pack("<HH2s", 0x0010, 0x0010, b"PN"))
    # Its first bytes, 0x4242 as the low half of the length, would read as the VR "BB".
    element = struct.pack("<HHI", 0x0009, 0x1001, 0x4242) + bytes(0x4242)
    unknown = (
        struct.pack("<HH2sHI", 0x0009, 0x1000, b"UN", 0, 0xFFFFFFFF)
        + struct.pack("<HHI", 0xFFFE, 0xE000, len(element))
        + element
        + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    )
    assert inspect_bytes(tmp_path, whole[:split] + unknown + whole[split:])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.filterwarnings("ignore:Expected")
def test_the_first_element_tells_the_encoding(tmp_path: Path, syntax: str) -> None:
    """As in pydicom, which reads the object later: a walk that sees other elements vouches for nothing."""
    other = ImplicitVRLittleEndian if syntax == ExplicitVRLittleEndian else ExplicitVRLittleEndian
    dataset = rich_dataset(other)
    content = encoded(dataset)
    found = inspect_bytes(tmp_path, content, syntax)
    assert found.header.PatientName == dataset.PatientName
    path = tmp_path / "whole.dcm"
    path.write_bytes(file_meta(dataset.SOPClassUID, dataset.SOPInstanceUID, str(syntax)) + content)
    assert pydicom.dcmread(path).PatientName == dataset.PatientName
    first = encoded(small_dataset(SpecificCharacterSet="ISO_IR 100"))
    foreign = struct.pack("<HHI", 0x0008, 0x0001, 4) + bytes(4)
    with pytest.raises(NotUnderstoodError):
        inspect_bytes(tmp_path, foreign + first, ExplicitVRLittleEndian)


def test_limits(tmp_path: Path) -> None:
    dataset = small_dataset()
    dataset.private_block(0x0099, "GATEWAY TEST", create=True).add_new(0x01, "OB", bytes(5000))
    whole = encoded(dataset)
    assert inspect_bytes(tmp_path, whole, limits=Limits(header_bytes=6000))
    with pytest.raises(NotUnderstoodError, match="header of more than 5000"):
        inspect_bytes(tmp_path, whole, limits=Limits(header_bytes=5000))
    with pytest.raises(NotUnderstoodError, match="more than 5 data elements"):
        inspect_bytes(tmp_path, whole, limits=Limits(elements=5))


def test_deflated(tmp_path: Path) -> None:
    dataset = small_dataset()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated = encoded(dataset)
    found = inspect_bytes(tmp_path, deflated, DeflatedExplicitVRLittleEndian)
    assert found.sop_instance_uid == dataset.SOPInstanceUID
    for content in (deflated[:-8], b"\xff" * 50, b""):
        with pytest.raises(NotUnderstoodError):
            inspect_bytes(tmp_path, content, DeflatedExplicitVRLittleEndian)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    assert len(bomb) < 80_000
    with pytest.raises(NotUnderstoodError, match="inflates to more"):
        inspect_bytes(tmp_path, bomb, DeflatedExplicitVRLittleEndian, Limits(inflated_bytes=32 << 20))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "syntax", [DeflatedExplicitVRLittleEndian, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"]
)
def test_a_bomb_must_be_sent_at_a_size_of_its_own(tmp_path: Path, syntax: str) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(8 << 20)) + packer.flush()
    limits = Limits(inflated_freely_bytes=1 << 20, inflation=100)
    with pytest.raises(NotUnderstoodError, match=f"inflates to more than {1 << 20} bytes"):
        inspect_bytes(tmp_path, bomb, syntax, limits)
    dataset = small_dataset(
        SOPInstanceUID="1.2.3.4", PixelDataProviderURL="https://example.org/", Rows=1024, Columns=768
    )
    dataset.PixelData = b"".join(struct.pack("<I", number * 2654435761 & 0xFFFFFFFF) for number in range(3 << 17))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    honest = packer.compress(encoded(dataset)) + packer.flush()
    assert inspect_bytes(tmp_path, honest, syntax, limits).sop_instance_uid == "1.2.3.4"


@pytest.mark.parametrize("vr", [b"UN", b"SQ", None])
@pytest.mark.parametrize("tag", [(0x0008, 0x1140), (0x2005, 0x1402)])
def test_nesting_that_names_itself_unknown(tmp_path: Path, vr: bytes | None, tag: tuple[int, int]) -> None:
    """Of defined length it may be jumped over, but pydicom's dictionaries, private ones too, make it a sequence."""
    content = b""
    for _ in range(300):
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
        content = struct.pack("<HHI", *tag, len(item)) + item
    syntax = ExplicitVRLittleEndian
    whole = encoded(small_dataset())
    split = whole.index(struct.pack("<HH2s", 0x0028, 0x0002, b"US"))
    if vr is None:
        dataset = small_dataset()
        dataset.file_meta.TransferSyntaxUID = syntax = ImplicitVRLittleEndian
        whole = encoded(dataset)
        split = whole.index(struct.pack("<HHI", 0x0028, 0x0002, 2))
    elif vr == b"UN":
        content = struct.pack("<HH2sHI", *tag, vr, 0, len(item)) + item
    else:
        content = struct.pack("<HH2sHI", *tag, vr, 0, len(item)) + item
    with pytest.raises(NotUnderstoodError, match="nested deeper"):
        inspect_bytes(tmp_path, whole[:split] + content + whole[split:], syntax)


@pytest.mark.filterwarnings("ignore:Unknown encoding")
@pytest.mark.parametrize(
    ("vr", "value", "is_taken"),
    [
        (b"CS", b"ISO 2022 IR 6\\ISO 2022 IR 87 ", True),
        (b"CS", b"", True),
        (b"CS", b"no such set ", True),  # pydicom falls back to its default
        (b"CS", b"ISO_IR 192\0\0", True),
        (b"CS", b"ISO\0IR 192", False),
        (b"CS", b"hex ", False),
        (b"CS", b"unicode_escape", False),
        (b"CS", b"punycode", False),
        (b"FD", b"ISO_IR 192", False),
        (b"ZZ", b"ISO_IR 192", False),
    ],
)
def test_character_sets(tmp_path: Path, vr: bytes, value: bytes, is_taken: bool) -> None:
    """pydicom reads none of what is refused: it decodes this one attribute while it reads. Nested ones too."""
    element = struct.pack("<HH2sH", 0x0008, 0x0005, vr, len(value)) + value
    whole = encoded(small_dataset())
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(element)) + element
    nested = whole.index(struct.pack("<HH2s", 0x0010, 0x0010, b"PN"))
    sequence = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, len(item)) + item
    for content in (element + whole, whole[:nested] + sequence + whole[nested:]):
        if is_taken:
            assert attribute_values(inspect_bytes(tmp_path, content).header, "PatientID") == ("SECRET-4711",)
        else:
            with pytest.raises(NotUnderstoodError, match="Specific Character Set"):
                inspect_bytes(tmp_path, content)


def test_header_is_a_data_set(tmp_path: Path) -> None:
    """Its elements are made when they are asked for, in whatever way a data set can be asked."""
    dataset = small_dataset(SpecificCharacterSet="ISO_IR 192", PatientName="Müller", ImageType=["A", "B"])
    header = inspect_bytes(tmp_path, encoded(dataset)).header
    assert "PatientName" in header
    assert "StudyDate" not in header
    assert (header.PatientName, header.Rows, header[0x00080008].value) == ("Müller", 8, ["A", "B"])
    assert header.get("StudyDate") is None
    assert header.get_item("Modality").value == b"CT"
    del dataset.PixelData
    assert [each.tag for each in header] == [each.tag for each in dataset]
    assert dict(header.items()).keys() == dict(dataset.items()).keys()
    assert header == dataset


def test_every_transfer_syntax_that_pydicom_names() -> None:
    for syntax in pydicom.uid.AllTransferSyntaxes:
        if syntax.startswith("1.2.840.10008.1.2.7"):  # real-time video, not for DIMSE (PS3.22)
            assert encoding_of(syntax) is None
            continue
        encoding = encoding_of(syntax)
        assert encoding is not None, syntax.name
        assert encoding.implicit == syntax.is_implicit_VR
        assert encoding.little_endian == syntax.is_little_endian
        assert encoding.deflated == (syntax.is_deflated or syntax == "1.2.840.10008.1.2.4.205")
    for other in ("1.2.3", "", "1.2.840.10008.1.2.6.1", "1.2.840.10008.1.20"):
        assert encoding_of(other) is None


@pytest.mark.parametrize(
    "uid",
    ["", "../../etc/passwd", "/etc/passwd", "..", "1..2", "1.2.", "1.2.3/4", "1." * 40, "1" * 65, "1.2.3\0.4", "a.b"],
)
def test_uids(tmp_path: Path, uid: str) -> None:
    whole = encoded(small_dataset(SeriesInstanceUID="1.2.3.4"))
    value = uid.encode() + b"\0" * (len(uid) % 2)
    old = struct.pack("<HH2sH", 0x0020, 0x000E, b"UI", 8) + b"1.2.3.4\0"
    assert old in whole
    new = struct.pack("<HH2sH", 0x0020, 0x000E, b"UI", len(value)) + value
    with pytest.raises(NotUnderstoodError, match="Series Instance UID"):
        inspect_bytes(tmp_path, whole.replace(old, new))


WHOLE = encoded(rich_dataset())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, len(WHOLE) - 1), junk=st.binary(min_size=1, max_size=12))
def test_any_change_is_taken_or_not_understood(tmp_path: Path, position: int, junk: bytes) -> None:
    """Whatever bytes come: an inspection or NotUnderstoodError, never another exception; and its header can be read."""
    changed = WHOLE[:position] + junk + WHOLE[position + len(junk) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
            try:
                found = inspect_bytes(tmp_path, changed, syntax)
            except NotUnderstoodError:
                continue
            for keyword in ("PatientName", "Modality", "Rows", "ImageType", "StudyDate"):
                attribute_values(found.header, keyword)


@pytest.mark.parametrize("length", [0xFFFFFFFE, 0x7FFFFFFF])
def test_lengths_beyond_the_file(tmp_path: Path, length: int) -> None:
    whole = encoded(small_dataset())[:-136]
    content = whole + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, length) + bytes(8)
    with pytest.raises(NotUnderstoodError, match=r"truncated in \(7FE0,0010\)"):
        inspect_bytes(tmp_path, content)
