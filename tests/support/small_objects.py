"""Small whole objects of several kinds, as data sets and as bytes. Synthetic; imports nothing of the gateway's."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

from pydicom import Dataset, Sequence
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    ComprehensiveSRStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    OphthalmicPhotography8BitImageStorage,
)

NATIVE_SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
# 16 x 16 grey pixels; written once with Pillow (quality 75).
TINY_JPEG = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb004300080606070605080707070909080a0c140d0c0b0b0c1912130f141d1a1f1e1d"
    "1a1c1c20242e2720222c231c1c2837292c30313434341f27393d38323c2e333432ffc0000b080010001001011100ffc4001f000001050101"
    "0101010100000000000000000102030405060708090a0bffc400b5100002010303020403050504040000017d010203000411051221314106"
    "13516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728292a3435363738393a434445464748494a535455"
    "565758595a636465666768696a737475767778797a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9ba"
    "c2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9faffda0008010100003f00e668a28affd9"
)


def _base(sop_class_uid: str, modality: str, syntax: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class_uid, "1.2.3.4.5"
    dataset.StudyDate, dataset.Modality, dataset.AccessionNumber = "20200101", modality, ""
    dataset.Manufacturer = "MAKER"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Müller^Jane", "SECRET-1", "19500101"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.4.6", "1.2.3.4.7"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99X", "Meaning"
    dataset.ProcedureCodeSequence = Sequence([code])
    dataset.private_block(0x0009, "GATEWAY TEST", create=True).add_new(0x01, "OB", b"\1\2\3\4")
    dataset.file_meta.MediaStorageSOPClassUID = sop_class_uid
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def ct(syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """A CT image of 4 x 4 pixels of 16 bits."""
    dataset = _base(CTImageStorage, "CT", syntax)
    _pixels(dataset, 4, 16)
    dataset.PixelData = bytes(range(32))
    return dataset


def photograph(syntax: str = JPEGBaseline8Bit) -> Dataset:
    """A photograph in two fragments of JPEG."""
    dataset = _base(OphthalmicPhotography8BitImageStorage, "OP", syntax)
    _pixels(dataset, 16, 8)
    dataset.PixelData = encapsulate([TINY_JPEG], fragments_per_frame=2)
    dataset["PixelData"].is_undefined_length = True
    return dataset


def _pixels(dataset: Dataset, side: int, bits: int) -> None:
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = side, side, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0


def report(syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """A structured report with sequences of defined and of undefined length."""
    dataset = _base(ComprehensiveSRStorage, "SR", syntax)
    dataset.ValueType, dataset.ContinuityOfContent = "CONTAINER", "SEPARATE"
    name = Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = "121071", "DCM", "Finding"
    item = Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", "text"
    item.ConceptNameCodeSequence = Sequence([name])
    dataset.ContentSequence = Sequence([item, item])
    dataset["ContentSequence"].is_undefined_length = True
    for each in dataset.ContentSequence:
        each.is_undefined_length_sequence_item = True
    return dataset


def document(syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """An encapsulated PDF."""
    dataset = _base(EncapsulatedPDFStorage, "DOC", syntax)
    dataset.EncapsulatedDocument = b"%PDF-1.4\n%%EOF\n\0"
    return dataset


KINDS: Mapping[str, Callable[..., Dataset]] = {"ct": ct, "photograph": photograph, "report": report, "pdf": document}


def encoded(dataset: Dataset) -> bytes:
    """The data set's bytes, without preamble and file meta."""
    stream = BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    content = stream.getvalue()
    return content[144 + int(struct.unpack("<I", content[140:144])[0]) :]


def every_object() -> list[tuple[str, str, bytes, Any]]:
    """(name, transfer syntax, bytes, data set) of each kind in each syntax."""
    made = []
    for name, make in KINDS.items():
        for syntax in (JPEGBaseline8Bit,) if name == "photograph" else NATIVE_SYNTAXES:
            dataset = make(syntax)
            made.append((f"{name} {syntax.name}", str(syntax), encoded(dataset), dataset))
    return made
