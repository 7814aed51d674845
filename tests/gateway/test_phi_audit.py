"""The audit against the engine: each planted kind is found, on the engine's output nothing, and one thing put back."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, OphthalmicPhotography8BitImageStorage

from gateway.deidentify import Deidentifier
from gateway.errors import DeidentificationError
from gateway.phi_audit import Suspicion, _name, audit_folder
from gateway.phi_elements import (
    CODED_TEXTS,
    OF_DEVICES,
    OF_INSTITUTIONS,
    OF_PATIENTS,
    TECHNICAL_TEXTS,
    UNREADABLE,
)
from gateway.phi_patterns import TextRules

KEY = hashlib.sha512(b"a key for these tests").digest()
NAME = "KOWALCZYK"


def kinds(folder: Path, **more: object) -> list[str]:
    return [suspicion.kind for suspicion in audit_folder(folder, **more)]  # type: ignore[arg-type]


def found(folder: Path, **more: object) -> set[tuple[str, str]]:
    return {(suspicion.kind, suspicion.where) for suspicion in audit_folder(folder, **more)}  # type: ignore[arg-type]


def deidentified(name: str) -> Dataset:
    return Deidentifier(KEY).dataset(pydicom.dcmread(str(get_testdata_file(name))))


@pytest.fixture
def clean() -> Dataset:
    """A CT by the engine in the default profile."""
    return deidentified("CT_small.dcm")


def jpeg(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def fundus(stream: bytes) -> Dataset:
    """A de-identified fundus photograph with this stream as its one frame."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.SOPClassUID, dataset.SOPInstanceUID = OphthalmicPhotography8BitImageStorage, "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = "1.2.3.5", "1.2.3.6", "OP"
    dataset.PatientName, dataset.PatientID = "DOE^JANE", "7"
    dataset.Rows = dataset.Columns = 64
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "YBR_FULL_422", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = encapsulate([jpeg()])
    copy = Deidentifier(KEY).dataset(dataset)
    copy.PixelData = encapsulate([stream])
    copy["PixelData"].is_undefined_length = True
    return copy


def write(dataset: Dataset, folder: Path, name: str = "00000000000000ab.dcm") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    dataset.save_as(folder / name, enforce_file_format=True)
    return folder / name


def test_nothing_is_found_in_what_the_engine_makes_of_pydicoms_test_files(tmp_path: Path) -> None:
    engine, number = Deidentifier(KEY), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of the originals
        for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*")):
            if not path.is_file() or path.stat().st_size > 1_500_000:
                continue
            try:
                copy = engine.dataset(pydicom.dcmread(path))
            except (DeidentificationError, pydicom.errors.InvalidDicomError, *UNREADABLE):
                continue
            number += 1
            write(copy, tmp_path, f"{number:016x}.dcm")
    assert number > 50
    assert list(audit_folder(tmp_path)) == []


def test_originals_are_suspicious(tmp_path: Path) -> None:
    shutil.copy(str(get_testdata_file("CT_small.dcm")), tmp_path / "0.dcm")
    kinds_found = set(kinds(tmp_path))
    assert {"person name", "patient ID", "date", "time", "UID", "private attribute", "free text"} <= kinds_found
    assert {"identifier", "file meta"} <= kinds_found


def _set(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, keyword, value)


def _add(tag: int, vr: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: dataset.add(DataElement(tag, vr, value))


def _nested(dataset: Dataset) -> None:
    inner, outer = Dataset(), Dataset()
    inner.PersonName = f"{NAME}^ANNA"
    outer.ContentSequence = [inner]
    dataset.ContentSequence = [outer]


def _meta(tag: int, vr: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: dataset.file_meta.add(DataElement(tag, vr, value))


def _preamble(dataset: Dataset) -> None:
    dataset.preamble = b"SCANNED BY KOWALCZYK".ljust(128, b"\x00")


def _longer_pixels(dataset: Dataset) -> None:
    dataset.PixelData += b"KOWALCZYK ANNA  "


def _private_in_private(dataset: Dataset) -> None:
    inner = Dataset()
    inner.private_block(0x0011, "INNER", create=True).add_new(0x02, "LO", NAME)
    dataset.private_block(0x0009, "OUTER", create=True).add_new(0x01, "SQ", [inner])


def _code(dataset: Dataset) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "121320", "DCM", "Seen by dr.who@example.org"
    dataset.ProcedureCodeSequence = [code]


PLANTED: Sequence[tuple[str, Callable[[Dataset], None], str, str]] = (
    ("person", _set("ReferringPhysicianName", f"{NAME}^JAN"), "person name", "(0008,0090)"),
    ("patient", _set("PatientName", f"{NAME}^ANNA"), "person name", "(0010,0010)"),
    ("nested person", _nested, "person name", "(0040,A730)[0]>(0040,A730)[0]>(0040,A123)"),
    ("patient ID", _set("PatientID", "12345678"), "patient ID", "(0010,0020)"),
    ("patient ID of 16 digits", _set("PatientID", "1234567812345678"), "patient ID", "(0010,0020)"),
    ("birth date", _set("PatientBirthDate", "19581123"), "birth date", "(0010,0030)"),
    ("date", _set("AcquisitionDate", "20240102"), "date", "(0008,0022)"),
    ("moment", _set("AcquisitionDateTime", "20240102030405.123"), "date", "(0008,002A)"),
    ("time", _set("StudyTime", "101112"), "time", "(0008,0030)"),
    ("age", _set("PatientAge", "093Y"), "age over 89", "(0010,1010)"),
    ("phone", _set("PatientComments", "call +49 30 1234567"), "phone", "(0010,4000)"),
    ("phone, US", _set("PatientComments", "call (555) 123-4567"), "phone", "(0010,4000)"),
    ("e-mail", _set("ImageComments", "anna@example.org"), "e-mail", "(0020,4000)"),
    ("URL", _set("RetrieveURL", "https://pacs.example.org/wado"), "URL or host name", "(0008,1190)"),
    ("host", _set("ManufacturerModelName", "ct1.radiology.example.org"), "URL or host name", "(0008,1090)"),
    ("address", _set("InstitutionAddress", "12 Linden Street"), "address", "(0008,0081)"),
    ("address, German", _set("ImageComments", "wohnt Lindenstraße 12"), "address", "(0020,4000)"),
    ("SSN", _set("ImageComments", "123-45-6789"), "social security number", "(0020,4000)"),
    ("NHS number", _set("ImageComments", "NHS 943 476 5919"), "NHS number", "(0020,4000)"),
    ("insurance", _set("ImageComments", "A123456789"), "insurance number", "(0020,4000)"),
    ("free text", _set("StudyDescription", "fell down the stairs"), "free text", "(0008,1030)"),
    ("institution", _set("InstitutionName", "Charité"), "free text", "(0008,0080)"),
    ("identifier", _set("AccessionNumber", "X17"), "identifier", "(0008,0050)"),
    ("identifier of 16 digits", _set("AccessionNumber", "1234567812345678"), "identifier", "(0008,0050)"),
    ("private", _add(0x00091001, "LO", NAME), "private attribute", "(0009,1001)"),
    ("UID", _set("FrameOfReferenceUID", "1.2.840.113619.2.1.1"), "UID", "(0020,0052)"),
    ("number as 2.25", _set("FrameOfReferenceUID", "2.25.12345678"), "UID", "(0020,0052)"),
    ("AE title", _set("RetrieveAETitle", "CT_ROOM_4"), "AE title", "(0008,0054)"),
    ("name as term", _set("BodyPartExamined", "JOHNSON"), "person name", "(0018,0015)"),
    ("name in a device", _set("StationName", "ROOM OF JOHNSON"), "person name", "(0008,1010)"),
    ("mail in a code", _code, "e-mail", "(0008,1032)[0]>(0008,0104)"),
    ("local code", _set("AcquisitionDeviceProcessingCode", "Dr. Who"), "person name", "(0018,1401)"),
    ("overlay", _add(0x60003000, "OW", bytes(8)), "overlay", "(6000,3000)"),
    ("curve", _add(0x50003000, "OW", bytes(8)), "curve", "(5000,3000)"),
    ("padding", _add(0xFFFCFFFC, "OB", b"KOWALCZYK "), "trailing bytes", "(FFFC,FFFC)"),
    (
        "text among bytes",
        _add(0x00282000, "OB", b"\x00\x01Copyright Anna Kowalczyk\x00"),
        "text among bytes",
        "(0028,2000)",
    ),
    ("pixel slack", _longer_pixels, "trailing bytes", "(7FE0,0010)"),
    ("unknown attribute", _add(0x00080FFE, "LO", "x"), "attribute that no dictionary has", "(0008,0FFE)"),
    ("burned in", _set("BurnedInAnnotation", "YES"), "text burned in, as the object says", "(0028,0301)"),
    ("source AE title", _meta(0x00020016, "AE", "CT_ROOM_4"), "file meta", "(0002,0016)"),
    ("private file meta", _meta(0x00020102, "OB", b"KOWALCZYK "), "file meta", "(0002,0102)"),
    ("implementation", _meta(0x00020012, "UI", "1.2.276.0.99.1"), "file meta", "(0002,0012)"),
    ("preamble", _preamble, "preamble", "preamble"),
    ("document", _add(0x00420011, "OB", b"%PDF-1.4"), "encapsulated document", "(0042,0011)"),
    ("signature", _add(0x04000110, "UI", "1.2.3"), "signature or encrypted attribute", "(0400,0110)"),
)


@pytest.mark.parametrize(("change", "kind", "where"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_what_is_put_back_is_found_and_nothing_else(
    clean: Dataset, tmp_path: Path, change: Callable[[Dataset], None], kind: str, where: str
) -> None:
    write(clean, tmp_path)
    assert list(audit_folder(tmp_path)) == []
    change(clean)
    write(clean, tmp_path)
    suspicions = list(audit_folder(tmp_path))
    assert [suspicion.kind for suspicion in suspicions] == [kind]
    assert suspicions[0].where.split(" ")[0] == where
    assert suspicions[0].path == tmp_path / "00000000000000ab.dcm"


def test_private_attributes_in_private_sequences_are_found(clean: Dataset, tmp_path: Path) -> None:
    _private_in_private(clean)
    write(clean, tmp_path)
    assert found(tmp_path) == {
        ("private attribute", "(0009,1001)"),
        ("private attribute", "(0009,1001)[0]>(0011,1002)"),
    }


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x010E], exif[0x0132] = f"Retina of {NAME}", "2024:01:02 03:04:05"
    return exif.tobytes()


def _segment(marker: int, payload: bytes) -> bytes:
    stream = jpeg()
    return stream[:2] + bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload + stream[2:]


@pytest.mark.parametrize(
    ("stream", "kind"),
    [
        (jpeg(exif=_exif()), "EXIF"),
        (jpeg(comment=f"patient {NAME}".encode()), "JPEG comment"),
        (_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\x00<x:xmpmeta/>"), "XMP"),
        (_segment(0xED, b"Photoshop 3.0\x008BIM"), "JPEG APP13"),
        (_segment(0xEF, b"maker note of a camera"), "JPEG APP15"),
        (_segment(0xE0, b"JFIF\x00\x01\x01\x01\x00H\x00H\x01\x01\xff\x00\x00"), "JPEG APP0"),  # with a thumbnail
        (jpeg() + b"KOWALCZYK", "trailing bytes"),
    ],
)
def test_what_compressed_frames_carry_is_found(stream: bytes, kind: str, tmp_path: Path) -> None:
    write(fundus(jpeg()), tmp_path / "clean")
    assert list(audit_folder(tmp_path / "clean")) == []
    write(fundus(stream), tmp_path / "planted")
    assert found(tmp_path / "planted") == {(kind, "(7FE0,0010) PixelData")}


def test_jpeg_2000_comments_and_bytes_behind_are_found(tmp_path: Path) -> None:
    original = pydicom.dcmread(str(get_testdata_file("JPEG2000.dcm")))
    (stream,) = list(pydicom.encaps.generate_frames(original.PixelData, number_of_frames=1))
    clean = deidentified("JPEG2000.dcm")
    write(clean, tmp_path)
    assert list(audit_folder(tmp_path)) == []
    (cleaned,) = list(pydicom.encaps.generate_frames(clean.PixelData, number_of_frames=1))
    comment = b"patient KOWALCZYK"
    segment = b"\xff\x64" + (len(comment) + 4).to_bytes(2, "big") + b"\x00\x01" + comment
    siz_end = 4 + int.from_bytes(cleaned[4:6], "big")
    for planted, kind in (
        (cleaned[:siz_end] + segment + cleaned[siz_end:], "JPEG 2000 comment"),
        (cleaned.rstrip(b"\x00") + b"KOWALCZYK", "trailing bytes"),
    ):
        clean.PixelData = encapsulate([planted])
        clean["PixelData"].is_undefined_length = True
        write(clean, tmp_path)
        assert found(tmp_path) == {(kind, "(7FE0,0010) PixelData")}
    assert len(stream) > 0


def test_bytes_behind_rle_segments_are_found(tmp_path: Path) -> None:
    clean = deidentified("MR_small_RLE.dcm")
    write(clean, tmp_path)
    assert list(audit_folder(tmp_path)) == []
    (frame,) = list(pydicom.encaps.generate_frames(clean.PixelData, number_of_frames=1))
    clean.PixelData = encapsulate([frame + b"KOWALCZYK "])
    clean["PixelData"].is_undefined_length = True
    write(clean, tmp_path)
    assert found(tmp_path) == {("trailing bytes", "(7FE0,0010) PixelData")}


def test_bytes_behind_the_data_set_are_found(clean: Dataset, tmp_path: Path) -> None:
    path = write(clean, tmp_path)
    path.write_bytes(path.read_bytes() + b"PATIENT: KOWALCZYK ANNA, BORN 1958")
    assert kinds(tmp_path)


def test_given_names_are_found_anywhere(clean: Dataset, tmp_path: Path) -> None:
    names = ["Kowalczyk^Anna", "Żółtaszek"]
    write(clean, tmp_path)
    assert list(audit_folder(tmp_path, names=names)) == []
    clean.StationName = "CT zoltaszek 1"
    clean.PixelData = clean.PixelData[:100] + b"kowalczyk" + clean.PixelData[109:]
    write(clean, tmp_path)
    assert ("given name", "(0008,1010) StationName") in found(tmp_path, names=names)
    clean.StationName = "CT 1"
    write(clean, tmp_path)
    assert found(tmp_path, names=names) == {("given name", "bytes of the file")}
    assert list(audit_folder(tmp_path)) == []


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (_set("SeriesNumber", "4711470"), "(0020,0011) SeriesNumber"),
        (_set("SliceLocation", "4711470"), "(0020,1041) SliceLocation"),
        (_set("StationName", "CT4711470A"), "(0008,1010) StationName"),
        (_set("FrameOfReferenceUID", "2.25.200287135826140695164711470640960158"), "(0020,0052) FrameOfReferenceUID"),
    ],
)
def test_given_numbers_are_found_in_numbers(
    clean: Dataset, tmp_path: Path, change: Callable[[Dataset], None], where: str
) -> None:
    change(clean)
    write(clean, tmp_path)
    assert list(audit_folder(tmp_path)) == []
    assert ("given name", where) in found(tmp_path, names=["4711470"])


def test_links_pipes_and_closed_folders_are_suspicious_and_stop_nothing(clean: Dataset, tmp_path: Path) -> None:
    write(clean, tmp_path)
    (tmp_path / "a").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "b")
    assert found(tmp_path) == {("link", "file"), ("no regular file", "file")}


def test_claimed_options_explain_that_attributes_are_there_but_not_what_they_say(
    clean: Dataset, tmp_path: Path
) -> None:
    clean.DeviceSerialNumber = "4711"
    write(clean, tmp_path)
    assert list(audit_folder(tmp_path)) == []
    kept = clean.DeidentificationMethodCodeSequence
    clean.DeidentificationMethodCodeSequence = [item for item in kept if item.CodeValue != "113109"]
    write(clean, tmp_path)
    assert ("identifier", "(0018,1000) DeviceSerialNumber") in found(tmp_path)
    clean.DeidentificationMethodCodeSequence = kept
    clean.DeviceSerialNumber = "Dr. Kowalczyk"
    write(clean, tmp_path)
    assert found(tmp_path) == {("person name", "(0018,1000) DeviceSerialNumber")}


def test_modified_dates_may_be_there_unless_they_are_recent(clean: Dataset, tmp_path: Path) -> None:
    clean.StudyDate = "20150607"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113107", "DCM", "Modified Dates"
    clean.DeidentificationMethodCodeSequence.append(code)
    clean.LongitudinalTemporalInformationModified = "MODIFIED"
    write(clean, tmp_path)
    assert list(audit_folder(tmp_path)) == []
    clean.StudyDate = "20991231"
    write(clean, tmp_path)
    assert found(tmp_path) == {("date", "(0008,0020) StudyDate")}


def test_excerpts_never_show_the_text(clean: Dataset, tmp_path: Path) -> None:
    clean.ReferringPhysicianName = f"{NAME}^JAN"
    clean.ImageComments = f"{NAME}, 12 Linden Street, +49 30 1234567"
    write(clean, tmp_path)
    suspicions = list(audit_folder(tmp_path, names=[NAME]))
    assert len(suspicions) >= 2
    for suspicion in suspicions:
        shown = f"{suspicion.where} {suspicion.kind} {suspicion.excerpt}".upper()
        assert "OWALCZYK" not in shown and "LINDEN" not in shown and "1234567" not in shown
    excerpt = next(s.excerpt for s in suspicions if s.kind == "person name")
    assert excerpt == "K... (13 characters)"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Johnson, Mary.dcm", "person name"),
        ("JOHNSON_MARY/0000000000000001.dcm", "person name"),
        ("MRN0012345678.dcm", "number"),
        ("20240102.dcm", "number"),
        ("1.2.840.113619.2.55.3.604688119.dcm", "UID"),
        ("anna@example.org.dcm", "e-mail"),
    ],
)
def test_names_of_files_and_folders_are_looked_at(clean: Dataset, tmp_path: Path, name: str, kind: str) -> None:
    write(clean, (tmp_path / name).parent, Path(name).name)
    assert found(tmp_path) == {(kind, "file name")}


@pytest.mark.parametrize(
    "name", ["2.25.123456789012345678901234567890123456.dcm", "0a1b2c3d4e5f6071", "CT_head_3mm.dcm"]
)
def test_neutral_names_are_not_suspicious(clean: Dataset, tmp_path: Path, name: str) -> None:
    write(clean, tmp_path, name)
    assert list(audit_folder(tmp_path)) == []


def _png(text: str | None) -> bytes:
    buffer, chunks = io.BytesIO(), PngImagePlugin.PngInfo()
    if text:
        chunks.add_text("Author", text)
    Image.new("L", (8, 8)).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def _dicom_json(clean: Dataset) -> str:
    clean.PatientName = f"{NAME}^ANNA"
    return clean.to_json()


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.png", _png(f"by {NAME}"), "PNG tEXt"),
        ("a.png", _png(None) + b"KOWALCZYK", "trailing bytes"),
        ("a.jpg", jpeg(exif=_exif()), "EXIF"),
        ("a.pdf", b"%PDF-1.4\n", "PDF document"),
        ("a.zip", b"PK\x03\x04" + bytes(20), "archive or office document"),
        ("a.bin", bytes(range(32)) * 9, "unknown kind of file"),
        ("a.json", json.dumps({"patientName": "A.N."}).encode(), "personal field"),
        ("a.json", json.dumps({"notes": ["write to anna@example.org"]}).encode(), "e-mail"),
        ("a.jsonl", b'{"path": "a"}\n{"mrn": "A-17"}\n', "personal field"),
        ("a.csv", b"file,birth date\nx.dcm,1958\n", "personal field"),
        ("a.txt", b"nothing here\nbut a date 23.11.1958\n", "date"),
        ("a.log", "Dr. Müller was here\n".encode(), "person name"),
    ],
)
def test_other_files_are_looked_into(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert kinds(tmp_path) == [kind]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", _png(None)),
        ("a.jpg", jpeg()),
        ("a.txt", b"CT of the chest, 12 files\n"),
        ("a.csv", b"file,findings\n00000000000000ab.dcm,nodule\n"),
        ("a.json", json.dumps({"sha256": "0" * 64, "bytes": 12345678, "ok": True}).encode()),
        ("empty", b""),
    ],
)
def test_harmless_other_files_are_not_suspicious(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert kinds(tmp_path) == []


def test_dicom_json_and_files_without_preamble_are_read_as_data_sets(clean: Dataset, tmp_path: Path) -> None:
    path = write(clean, tmp_path)
    path.write_bytes(path.read_bytes()[132:])
    assert list(audit_folder(tmp_path)) == []
    clean.PatientName = f"{NAME}^ANNA"
    path = write(clean, tmp_path)
    path.write_bytes(path.read_bytes()[132:])
    assert found(tmp_path) == {("person name", "(0010,0010) PatientName")}
    path.unlink()
    (tmp_path / "a.json").write_text(_dicom_json(clean))
    assert "person name" in kinds(tmp_path)


class _Finds:
    """A finder that answers as told and remembers how often it was asked."""

    def __init__(self, boxes: int) -> None:
        self.boxes, self.asked = boxes, 0

    def find(self, picture: np.ndarray) -> Sequence[object]:
        assert picture.dtype == np.uint8
        self.asked += 1
        return ["a box"] * self.boxes


def test_a_finder_is_asked_for_text_burned_in(clean: Dataset, tmp_path: Path) -> None:
    write(clean, tmp_path)
    finds = _Finds(1)
    assert found(tmp_path, finder=finds) == {("text burned in", "frame 1")}
    assert finds.asked == 1
    assert list(audit_folder(tmp_path, finder=_Finds(0))) == []


def test_broken_files_are_suspicious_and_stop_nothing(clean: Dataset, tmp_path: Path) -> None:
    path = write(clean, tmp_path, "00000000000000aa.dcm")
    path.write_bytes(path.read_bytes()[:700])
    clean.PatientName = f"{NAME}^ANNA"
    write(clean, tmp_path, "00000000000000ab.dcm")
    by_path: dict[str, list[Suspicion]] = {}
    for suspicion in audit_folder(tmp_path):
        by_path.setdefault(suspicion.path.name, []).append(suspicion)
    assert "person name" in [suspicion.kind for suspicion in by_path["00000000000000ab.dcm"]]


def test_memory_does_not_grow_with_the_number_of_files(clean: Dataset, tmp_path: Path) -> None:
    for number in range(24):
        write(clean, tmp_path / f"{number % 3:016x}", f"{number:016x}.dcm")
    peaks = []
    for folder in (tmp_path / f"{0:016x}", tmp_path):
        tracemalloc.start()
        assert list(audit_folder(folder)) == []
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 200_000


def test_the_audit_imports_nothing_of_the_engine() -> None:
    code = (
        "import sys, gateway.phi_audit; bad = [name for name in sys.modules if name.startswith('gateway.deidentif')]; "
        "sys.exit(len(bad))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_keywords_of_the_audit_are_those_of_the_dictionary() -> None:
    for keyword in OF_DEVICES | TECHNICAL_TEXTS | OF_INSTITUTIONS | OF_PATIENTS | CODED_TEXTS:
        assert tag_for_keyword(keyword) is not None, keyword


def test_names_made_of_hashes_say_nothing_by_chance() -> None:
    digits = random.Random(20)
    rules = TextRules()
    for _ in range(5000):
        folder, name = f"{digits.getrandbits(64):016x}", f"{digits.getrandbits(128):032x}"
        assert rules.likely(f"{folder}/{folder[::-1]}/{name}.dcm") is None
        assert list(_name(f"{name}.dcm", rules)) == []
    assert rules.likely("9434765919") == ("NHS number", "9434765919")
