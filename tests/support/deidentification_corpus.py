"""Objects of the eight families that models take, each with a hundred planted identifiers and what must stay.

Seeded: the same seed gives the same bytes. Three patients with two studies each, so that consistency across objects can
be judged: an identifier, a UID, a reference and the days between studies. Imports nothing of the gateway, which is
judged with it.

References
----------
M. Rutherford et al., A DICOM dataset for evaluation of medical image de-identification, Scientific Data 8:183, 2021
(the idea: synthetic identifiers in all the places where real ones occur, and the answers kept beside them).
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from corpus_images import FAMILIES, InStream, compress, scene
from corpus_places import plant_attributes, put
from corpus_tokens import DATES, NEVER, SAFE_PRIVATE, UIDS, Plant, Planter, byte_forms
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import DataElement, Dataset, Sequence, dcmwrite
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

__all__ = ["Corpus", "CorpusFile", "Plant", "build", "byte_forms", "large_radiograph"]

_SYNTAXES: Mapping[str, tuple[str, ...]] = {
    "DX": (ExplicitVRLittleEndian, JPEG2000Lossless, ImplicitVRLittleEndian),
    "CR": (ImplicitVRLittleEndian, JPEGLSLossless, DeflatedExplicitVRLittleEndian),
    "OP": (JPEGBaseline8Bit, JPEGBaseline8Bit, JPEG2000Lossless),
    "SC": (JPEGBaseline8Bit, RLELossless, ExplicitVRLittleEndian),
    "CT": (ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless),
    "MR": (RLELossless, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian),
    "US": (ExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGBaseline8Bit),
    "MG": (JPEG2000Lossless, JPEGLSLossless, ImplicitVRLittleEndian),
}
_BURNED_IN = frozenset([("US", 0), ("US", 2), ("SC", 0)])
"""Family and variant of those with a name in their pixels."""
_ONLY_IN_SC = frozenset(["EncapsulatedDocument", "MIMETypeOfEncapsulatedDocument"])
"""A document inside an image is rare, and some tools refuse the object for it: in one family of eight."""
_WHO = frozenset([
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID", "PatientSex",
    "PatientBirthDate", "StudyID", "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "ContentDate",
    "ContentTime", "FrameOfReferenceUID", "SynchronizationFrameOfReferenceUID", "AcquisitionContextSequence",
    "PositionReferenceIndicator", "PixelData",
])  # fmt: skip
"""What the objects of ``corpus_images`` have that Table E.1-1 lists, or that is compared otherwise."""
SAFE_CREATOR, SAFE_GROUP, SAFE_ELEMENT, SAFE_VALUE = "SIEMENS MR HEADER", 0x0019, 0x0C, "1000"
"""A private attribute that a site may declare safe, and its value in each object."""
LAST_WORDS = "CHEST PA"
"""Words of imaging in each description, that Clean Descriptors may leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """One of the three."""

    name: str
    """As PN, with what groups of components its character set has."""
    name_tokens: tuple[str, ...]
    patient_id: str
    issuer: str
    birth_date: str
    character_sets: tuple[Any, ...]
    age: str
    studies: tuple[tuple[str, str, str], ...]
    """(Study Instance UID, date, accession number) of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFile:
    """One object, what was planted in it and what must stay."""

    path: Path
    family: str
    is_hostile: bool
    """Invalid on purpose: it may be refused instead of de-identified."""
    syntax: str
    plants: tuple[Plant, ...]
    patient: int
    retained: Mapping[str, Any]
    """Place -> value of attributes that no row of Table E.1-1 lists: a model, a monitor or a reader needs them."""
    burned_in: NDArray[np.bool_] | None = None
    """bool [rows, columns], where letters of a name are burned into the pixels."""
    uids: Mapping[str, str] = field(default_factory=dict)
    """Place -> UID, of those that occur in several objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """All of them."""

    files: tuple[CorpusFile, ...]
    patients: tuple[Patient, ...]


def _patients(planter: Planter, rng: random.Random) -> tuple[Patient, ...]:
    made = []
    kinds: tuple[tuple[str, tuple[str, ...], tuple[Any, ...]], ...] = (
        ("^Shin=長谷川^慎太郎=はせがわ", ("長谷川", "慎太郎", "はせがわ"),
         (["", "ISO 2022 IR 87"], "ISO_IR 192")),
        ("Größenwälder^Jürgen", ("Größenwälder", "Jürgen"), ("ISO_IR 100", "ISO_IR 192")),
        ("Obrzychowska^Wanda", ("Obrzychowska",), ("", "ISO_IR 192")),
    )  # fmt: skip
    for number, (name, tokens, character_sets) in enumerate(kinds):
        family = planter.word()
        first = date(2021 + number, 2, 3) + timedelta(days=rng.randrange(200))
        days = (first, first + timedelta(days=93 + number))
        birth = date(1929, 5, 17) if number == 1 else date(1948 + 17 * number, 6, 11)
        made.append(
            Patient(
                name=f"{family}{name}",
                name_tokens=(family, *tokens),
                patient_id=f"MRN{rng.randrange(10**8, 10**9)}",
                issuer=planter.word(),
                birth_date=f"{birth:%Y%m%d}",
                character_sets=character_sets,
                age=f"{(days[0] - birth).days // 365:03}Y",
                studies=tuple(
                    (planter.new_uid(), f"{day:%Y%m%d}", f"ACC{rng.randrange(10**7, 10**8)}") for day in days
                ),
            )
        )
    return tuple(made)


def _who(dataset: Dataset, planter: Planter, patient: Patient, study: tuple[str, str, str]) -> None:
    dataset.PatientName, dataset.PatientID = patient.name, patient.patient_id
    for token in patient.name_tokens:
        planter.note(token, "PatientName", "name")
    planter.note(patient.patient_id, "PatientID", "identifier")
    dataset.IssuerOfPatientID = planter.note(patient.issuer, "IssuerOfPatientID", "identifier")
    dataset.PatientBirthDate = planter.note(patient.birth_date, "PatientBirthDate", "date")
    dataset.PatientAge, dataset.PatientSize, dataset.PatientWeight = patient.age, "1.71", "68.5"
    dataset.StudyInstanceUID = planter.note(study[0], "StudyInstanceUID", "UID", UIDS)
    dataset.StudyDate = planter.note(study[1], "StudyDate", "date", DATES)
    dataset.StudyTime = planter.time("StudyTime", DATES)
    dataset.AccessionNumber = planter.note(study[2], "AccessionNumber", "identifier")
    dataset.AcquisitionDate, dataset.AcquisitionTime = study[1], planter.time("AcquisitionTime", DATES)
    dataset.TimezoneOffsetFromUTC = "+0130"


def _private(dataset: Dataset, planter: Planter) -> None:
    """Private blocks of makers and of a site, with sequences in sequences."""
    siemens = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    csa = b"SV10\4\3\2\1" + f"PatientName {planter.surname('(0029,xx10) SIEMENS CSA HEADER', 'private')}".encode()
    siemens.add_new(0x10, "OB", csa + b"\0" * (len(csa) % 2))
    siemens.add_new(0x08, "CS", planter.surname("(0029,xx08) SIEMENS CSA HEADER", "private").upper())
    general = dataset.private_block(0x0009, "GEMS_IDEN_01", create=True)
    general.add_new(0x01, "LO", planter.surname("(0009,xx01) GEMS_IDEN_01", "private"))
    general.add_new(0x02, "SH", planter.identifier("(0009,xx02) GEMS_IDEN_01", "private"))
    general.add_new(0xE3, "UI", planter.uid("(0009,xxE3) GEMS_IDEN_01", NEVER))
    philips = dataset.private_block(0x2001, "Philips Imaging DD 001", create=True)
    inner, innermost = Dataset(), Dataset()
    below = inner.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    deepest = innermost.private_block(0x0011, "SITE NOTES", create=True)
    deepest.add_new(0x01, "PN", planter.person("(2001,xx5F)>(2005,xx80)>(0011,xx01)"))
    deepest.add_new(0x02, "UN", planter.surname("(2001,xx5F)>(2005,xx80)>(0011,xx02)", "private").encode("utf-16-le"))
    innermost.PatientName = planter.person("(2001,xx5F)>(2005,xx80)>PatientName")
    below.add_new(0x80, "SQ", Sequence([innermost]))
    inner.OperatorsName = planter.person("(2001,xx5F)>OperatorsName")
    philips.add_new(0x5F, "SQ", Sequence([inner]))
    site = dataset.private_block(0x0099, "SITE NOTES", create=True)
    site.add_new(0x01, "LT", f"call {planter.phone('(0099,xx01) SITE NOTES')}")
    site.add_new(0x02, "DA", planter.day("(0099,xx02) SITE NOTES"))
    safe = dataset.private_block(SAFE_GROUP, SAFE_CREATOR, create=True)
    safe.add_new(SAFE_ELEMENT, "IS", SAFE_VALUE)
    planter.note(SAFE_CREATOR, "(0019,0010)", "private creator", SAFE_PRIVATE)


def _graphics(dataset: Dataset, planter: Planter) -> None:
    """An overlay, a curve and an icon."""
    rows = columns = 32
    bits = f"{planter.surname('(6000,3000)', 'overlay')} {planter.surname('(6000,3000)', 'overlay')}".encode()
    for element, vr, value in (
        (0x0010, "US", rows), (0x0011, "US", columns), (0x0040, "CS", "G"), (0x0050, "SS", [1, 1]),
        (0x0022, "LO", planter.surname("(6000,0022)", "overlay")), (0x0100, "US", 1), (0x0102, "US", 0),
        (0x1500, "LO", planter.surname("(6000,1500)", "overlay")),
        (0x3000, "OW", bits.ljust(rows * columns // 8, b"\0")),
        (0x4000, "LT", planter.surname("(6000,4000)", "overlay")),
    ):  # fmt: skip
        dataset.add_new(0x60000000 | element, vr, value)
    for element, vr, value in (
        (0x0005, "US", 1), (0x0010, "US", 4), (0x0020, "CS", "ECG"),
        (0x0022, "LO", planter.surname("(5000,0022)", "curve")),
        (0x0103, "US", 0), (0x2500, "LO", planter.surname("(5000,2500)", "curve")),
        (0x3000, "OW", planter.surname("(5000,3000)", "curve").encode().ljust(32, b"\0")),
    ):  # fmt: skip
        dataset.add_new(0x50000000 | element, vr, value)
    icon = Dataset()
    icon.Rows = icon.Columns = 16
    icon.SamplesPerPixel, icon.PhotometricInterpretation = 1, "MONOCHROME2"
    icon.BitsAllocated, icon.BitsStored, icon.HighBit, icon.PixelRepresentation = 8, 8, 7, 0
    content = planter.surname("IconImageSequence>PixelData", "icon").encode().ljust(256, b"\x40")
    icon[0x7FE00010] = DataElement(0x7FE00010, "OB", content)
    dataset.IconImageSequence = Sequence([icon])


def _with_charset(dataset: Dataset, planter: Planter, patient: Patient, character_set: Any) -> None:
    """Free text in the object's own character set, and the same text in others where it does not belong."""
    if character_set:
        dataset.SpecificCharacterSet = character_set
    token = patient.name_tokens[1]
    if character_set != "":
        dataset.RequestedProcedureComments = f"Bild von {token}"
        planter.note(token, "RequestedProcedureComments", "name in text")
    utf_8 = planter.word() + "ßøé"
    block = dataset.private_block(0x0099, "SITE NOTES", create=True)
    block.add_new(0x07, "OB", _even(planter.note(utf_8, "(0099,xx07) as UTF-8", "encoding").encode()))
    utf_16 = planter.surname("(0099,xx08) as UTF-16", "encoding")
    block.add_new(0x08, "OB", _even(utf_16.encode("utf-16-be")))


def _even(content: bytes) -> bytes:
    return content + b"\0" * (len(content) % 2)


def _burn(dataset: Dataset, name: str) -> NDArray[np.bool_]:
    """Burn a name into native pixels; where its letters are."""
    rows, columns = dataset.Rows, dataset.Columns
    canvas = Image.new("L", (columns, rows), 0)
    ImageDraw.Draw(canvas).text((6, 4), name, fill=255, font=ImageFont.load_default(16))
    letters = np.asarray(canvas) > 127
    pixels = np.frombuffer(dataset.PixelData, np.uint8)[: rows * columns * dataset.SamplesPerPixel]
    pixels = pixels.reshape((rows, columns, -1)).copy()
    pixels[:30, :] //= 6
    pixels[letters] = 255
    dataset.PixelData, dataset.BurnedInAnnotation = pixels.tobytes(), "YES"
    dataset["PixelData"].VR = "OB"
    return letters


def _enlarge(dataset: Dataset, rows: int, columns: int) -> None:
    samples = dataset.SamplesPerPixel
    old = np.frombuffer(dataset.PixelData, np.uint8).reshape((dataset.Rows, dataset.Columns, samples))
    picture = Image.fromarray(old.squeeze()).resize((columns, rows), Image.Resampling.BICUBIC)
    dataset.Rows, dataset.Columns, dataset.PixelData = rows, columns, np.asarray(picture).tobytes()
    dataset["PixelData"].VR = "OB"
    if "SequenceOfUltrasoundRegions" in dataset:
        region = dataset.SequenceOfUltrasoundRegions[0]
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = columns - 1, rows - 1


def _spoil(dataset: Dataset, planter: Planter, syntax: str) -> None:
    """Make an object invalid in ways that occur, with texts where none belong."""
    overwritten = {"PatientComments", "VisitComments", "PatientState", "StudyDescription"}
    planter.plants[:] = [plant for plant in planter.plants if plant.place not in overwritten]
    if syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
        vr = dataset["PixelData"].VR
        content = dataset.PixelData + _even(planter.surname("behind the pixels", "pixel data").encode())
        dataset["PixelData"] = DataElement(0x7FE00010, vr, content)
    for keyword, vr in (("PatientComments", "UN"), ("VisitComments", "OB"), ("PatientState", "UN")):
        _raw(dataset, keyword, vr, planter.surname(f"{keyword} as {vr}", "wrong VR"), syntax)
    for keyword in ("FocalSpots", "ExposuresOnPlate", "ExposedArea"):
        _raw(dataset, keyword, "UN", planter.surname(f"{keyword} as UN", "wrong VR").ljust(16), syntax)
    _raw(dataset, "ScanLength", "LO", planter.surname("ScanLength as LO", "wrong VR"), syntax)
    _raw(dataset, "ActualFrameDuration", "PN", planter.surname("ActualFrameDuration as PN", "wrong VR"), syntax)
    too_long = f"{'x' * 80}\r\n{planter.surname('StudyDescription, too long', 'wrong VR')}"
    _raw(dataset, "StudyDescription", "LT", too_long, syntax)


def _raw(dataset: Dataset, keyword: str, vr: str, text: str, syntax: str) -> None:
    """Set an element to bytes that its VR does not allow."""
    tag, content = Tag(keyword), _even(text.encode())
    dataset[tag] = RawDataElement(tag, vr, len(content), content, 0, syntax == ImplicitVRLittleEndian, True)


def _in_stream(planter: Planter, syntax: str) -> InStream:
    if syntax not in (JPEGBaseline8Bit, JPEG2000Lossless, JPEGLSLossless):
        return InStream(comment=b"", exif=b"", xmp=b"")
    comment = f"photo of {planter.surname('comment in stream', 'stream')}".encode()
    if syntax != JPEGBaseline8Bit:
        return InStream(comment=comment, exif=b"", xmp=b"")
    exif = Image.Exif()
    exif[0x010E] = planter.surname("EXIF ImageDescription", "stream")
    exif[0x013B] = planter.surname("EXIF Artist", "stream")
    moment = date(1991, 3, 4) + timedelta(days=planter.rng.randrange(9000))
    exif[0x0132] = planter.note(f"{moment:%Y:%m:%d} 09:41:07", "EXIF DateTime", "stream")
    exif[0xA431] = planter.identifier("EXIF BodySerialNumber", "stream")
    xmp = f"<x:xmpmeta><dc:creator>{planter.surname('XMP creator', 'stream')}</dc:creator></x:xmpmeta>"
    return InStream(comment=comment, exif=exif.tobytes().removeprefix(b"Exif\0\0"), xmp=xmp.encode())


def _file_meta(dataset: Dataset, planter: Planter, syntax: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = planter.uid("(0002,0012)", NEVER)
    meta.ImplementationVersionName = planter.identifier("(0002,0013)", "host")
    meta.SourceApplicationEntityTitle = planter.ae_title("(0002,0016)")
    meta.SendingApplicationEntityTitle = planter.ae_title("(0002,0017)")
    meta.ReceivingApplicationEntityTitle = planter.ae_title("(0002,0018)")
    meta.SourcePresentationAddress = planter.url("(0002,0026)")
    meta.PrivateInformationCreatorUID = planter.uid("(0002,0100)", NEVER)
    meta.PrivateInformation = _even(planter.surname("(0002,0102)", "file meta").encode())
    return meta


def _written(dataset: Dataset, planter: Planter) -> bytes:
    dataset.preamble = planter.surname("preamble", "file").encode().ljust(128, b"\0")
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _needed(dataset: Dataset, way: str = "") -> Iterator[tuple[str, Any]]:
    """Place and value of all that has one, in the first item of sequences too."""
    for element in dataset:
        if element.keyword in _WHO:
            continue
        if element.VR != "SQ":
            if element.value not in ("", None):
                yield way + element.keyword, element.value
        elif element.value:
            yield from _needed(element.value[0], f"{way}{element.keyword}>")


def _one(
    folder: Path, number: int, patients: tuple[Patient, ...], planter: Planter, earlier: dict[Any, Any], hostile: bool
) -> CorpusFile:
    family = tuple(FAMILIES)[number % len(FAMILIES)]
    variant = number // len(FAMILIES) % 3
    syntax = _SYNTAXES[family][variant]
    makers = FAMILIES[family]
    dataset = makers[variant % len(makers)](number)
    patient_number = number % len(patients)
    patient = patients[patient_number]
    study = patient.studies[number // 3 % 2]
    burned_in = None
    if family in ("US", "SC") and (syntax, variant) in (
        (ExplicitVRLittleEndian, 0),
        (JPEGBaseline8Bit, 2),
        (JPEGBaseline8Bit, 0),
    ):
        _enlarge(dataset, 160, 288)
        burned_in = _burn(dataset, "OBRZYCHOWSKA, WANDA  11.06.1982")
    compress(dataset, syntax, _in_stream(planter, syntax))
    retained = dict(_needed(dataset))
    if burned_in is not None:
        del retained["BurnedInAnnotation"]
    character_set = patient.character_sets[number // 3 % len(patient.character_sets)]
    plant_attributes(dataset, planter, frozenset() if family == "SC" else _ONLY_IN_SC)
    _who(dataset, planter, patient, study)
    dataset.PatientSex = "F"
    _with_charset(dataset, planter, patient, character_set)
    dataset.SOPInstanceUID = planter.uid("SOPInstanceUID")
    series = earlier.setdefault(("series", study[0], family), planter.new_uid())
    dataset.SeriesInstanceUID = planter.note(series, "SeriesInstanceUID", "UID", UIDS)
    uids = {"StudyInstanceUID": study[0], "SeriesInstanceUID": series, "SOPInstanceUID": str(dataset.SOPInstanceUID)}
    for keyword in ("FrameOfReferenceUID", "SynchronizationFrameOfReferenceUID"):
        if keyword in dataset:
            frame = earlier.setdefault((keyword, study[0]), planter.new_uid())
            setattr(dataset, keyword, planter.note(frame, keyword, "UID", UIDS))
            uids[keyword] = frame
    before = earlier.get(patient_number)
    if before is not None:
        for keyword, value in zip(("ReferencedSOPClassUID", "ReferencedSOPInstanceUID"), before, strict=True):
            put(dataset, f"ReferencedImageSequence>{keyword}", value)
        uids["ReferencedImageSequence>ReferencedSOPInstanceUID"] = planter.note(
            before[1], "ReferencedImageSequence>ReferencedSOPInstanceUID", "UID", UIDS
        )
    earlier[patient_number] = (dataset.SOPClassUID, str(dataset.SOPInstanceUID))
    _private(dataset, planter)
    _graphics(dataset, planter)
    dataset.file_meta = _file_meta(dataset, planter, syntax)
    if hostile:
        _spoil(dataset, planter, syntax)
    path = folder / f"{number:04}.dcm"
    path.write_bytes(_written(dataset, planter))
    return CorpusFile(
        path=path,
        family=family,
        is_hostile=hostile,
        syntax=syntax,
        plants=tuple(planter.plants),
        patient=patient_number,
        retained=retained,
        burned_in=burned_in,
        uids=uids,
    )


def build(folder: Path, *, files: int = 24, hostile: int = 0, seed: int = 20261) -> Corpus:
    """Write `files` valid objects to a folder, and `hostile` invalid ones behind them.

    Three of a family are in three encodings, and so on around.
    """
    rng = random.Random(seed)
    taken: set[str] = set()
    patients = _patients(Planter(rng=rng, taken=taken), rng)
    earlier: dict[Any, Any] = {}
    made = [
        _one(folder, number, patients, Planter(rng=rng, taken=taken), earlier, number >= files)
        for number in range(files + hostile)
    ]
    return Corpus(files=tuple(made), patients=patients)


def large_radiograph(path: Path, *, seed: int = 5) -> None:
    """Write a DX of 8 MB (2048 x 2048 of 16 bits, explicit little endian) with all that is planted in the others."""
    rng = random.Random(seed)
    planter = Planter(rng=rng, taken=set())
    patient = _patients(planter, rng)[2]
    dataset = FAMILIES["DX"][0](seed)
    dataset.Rows = dataset.Columns = 2048
    dataset["PixelData"] = DataElement(0x7FE00010, "OW", scene(2048, 2048, 12, seed).astype("<u2").tobytes())
    plant_attributes(dataset, planter, _ONLY_IN_SC)
    _who(dataset, planter, patient, patient.studies[0])
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = planter.new_uid(), planter.new_uid()
    _private(dataset, planter)
    _graphics(dataset, planter)
    dataset.file_meta = _file_meta(dataset, planter, ExplicitVRLittleEndian)
    path.write_bytes(_written(dataset, planter))
