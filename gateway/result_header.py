"""What a result takes over from its source: the patient and the study, byte for byte.

The source may be anything that a modality sent: no character set, characters of another one, values its VR forbids.
What identifies the patient and the study is taken over as bytes, never decoded and encoded again, so that the PACS
sees the same patient. What does not identify is taken over only where it is legal.

References
----------
PS3.3 C.7.1.1 (Patient), C.7.2.1 (General Study), C.7.2.2 (Patient Study), C.12.1 (SOP Common).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import BinaryIO, cast

from pydicom import Dataset
from pydicom.charset import convert_encodings, decode_bytes, default_encoding, python_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.valuerep import PersonName

from gateway.errors import ResultMismatchError, UnreadableError

# Type 1 and 2 of the Patient and General Study modules; the patient's and study's identity, as it is.
IDENTITY: tuple[str, ...] = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "AccessionNumber",
    "StudyInstanceUID",
)
# Type 2: taken over where legal, otherwise present and empty.
DESCRIBING: tuple[str, ...] = (
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "ReferringPhysicianName",
)
# Type 3: taken over where legal and not empty.
OPTIONAL: tuple[str, ...] = (
    "PatientBirthTime",
    "StudyDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "LongitudinalTemporalInformationModified",
)

_COPIED = ("SpecificCharacterSet", "TimezoneOffsetFromUTC", *IDENTITY, *DESCRIBING, *OPTIONAL)
_STUDY_INSTANCE_UID = 0x0020000D

# PS3.5 section 6.2, the VRs that occur above.
_LEGAL: dict[str, re.Pattern[bytes]] = {
    "DA": re.compile(rb"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"),
    "TM": re.compile(rb"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?"),
    "AS": re.compile(rb"\d{3}[DWMY]"),
    "DS": re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"),
    "SH": re.compile(rb"[^\\\x00-\x1a\x1c-\x1f]{0,16}"),
    "LO": re.compile(rb"[^\\\x00-\x1a\x1c-\x1f]{0,64}"),
    "PN": re.compile(rb"[^\\\x00-\x1a\x1c-\x1f]{0,194}"),
    "CS": re.compile(rb"[A-Z0-9_ ]{0,16}"),
}
_ENUMERATED: dict[str, frozenset[bytes]] = {
    "PatientSex": frozenset({b"M", b"F", b"O"}),
    "PatientIdentityRemoved": frozenset({b"YES", b"NO"}),
    "LongitudinalTemporalInformationModified": frozenset({b"UNMODIFIED", b"MODIFIED", b"REMOVED"}),
}
_DS_BYTES = 16
_OFFSET = re.compile(r"([+-])(\d{2})([0-5]\d)")


def raw_value(dataset: Dataset, keyword: str) -> bytes:
    """An attribute's bytes as they stand in the file, without padding; empty where it is missing.

    Nothing is decoded, so no value, however illegal, raises or warns.
    """
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in dataset:
        return b""
    element = dataset.get_item(tag)
    value = element.value if isinstance(element, RawDataElement | DataElement) else None
    if isinstance(value, PersonName):
        value = value.original_string
    if isinstance(value, MultiValue | list):
        value = "\\".join(map(str, value))
    if not isinstance(value, bytes):
        value = str("" if value is None else value).encode("utf-8")
    return bytes(value).rstrip(b" \0")


def text_value(dataset: Dataset, keyword: str) -> str:
    """An attribute's text, ASCII only (other bytes become ``?``), stripped; for coded strings, UIDs and numbers."""
    return raw_value(dataset, keyword).decode("ascii", errors="replace").replace("�", "?").strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who and what a data set belongs to. Holds PHI: never logged, never in an error."""

    patient_id: str
    issuer_of_patient_id: str
    patient_name: str
    study_instance_uid: str
    accession_number: str


def identity_of(dataset: Dataset) -> Identity:
    """The identity of a data set, decoded by its own character set, without padding and trailing carets."""
    return Identity(
        patient_id=_decoded(dataset, "PatientID").strip(),
        issuer_of_patient_id=_decoded(dataset, "IssuerOfPatientID").strip(),
        patient_name=re.sub(r"[\^ ]+(?==|$)", "", _decoded(dataset, "PatientName")).rstrip("="),
        study_instance_uid=text_value(dataset, "StudyInstanceUID"),
        accession_number=_decoded(dataset, "AccessionNumber").strip(),
    )


def require_same_identity(one: Dataset, other: Dataset) -> None:
    """Make sure that two data sets belong to one patient, study and order.

    Raises
    ------
    ResultMismatchError
        They do not; names the attributes, not their values.
    """
    first, second = identity_of(one), identity_of(other)
    differing = [name for name in Identity.__slots__ if getattr(first, name) != getattr(second, name)]
    if differing:
        raise ResultMismatchError(f"result and source differ in {', '.join(differing)}")


def require_same_bytes(result: Dataset, sources: Sequence[Dataset], what: str = "source") -> None:
    """Make sure that a result names patient, study and order with the very bytes of one of `sources`, but for padding.

    Raises
    ------
    ResultMismatchError
        It does with those of none; names the attributes in which it differs from the first, and `what` the sources are,
        never values.
    """
    differing = [
        [keyword for keyword in IDENTITY if raw_value(result, keyword) != raw_value(source, keyword)]
        for source in sources
    ]
    if all(differing):
        raise ResultMismatchError(f"result and {what} differ in the bytes of {', '.join(differing[0])}")


def identity_values(source: Dataset) -> dict[str, bytes]:
    """The bytes that :func:`copy_identity` needs, by keyword, without padding; what is missing is left out."""
    return {keyword: raw_value(source, keyword) for keyword in _COPIED if keyword in source}


def identity_header(values: Mapping[str, bytes]) -> Dataset:
    """A source for :func:`copy_identity` with nothing but what :func:`identity_values` gave."""
    header = Dataset()
    for keyword, value in values.items():
        tag = Tag(keyword)
        header[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)
    return header


def read_identity(source: Path | BinaryIO) -> Dataset:
    """A file's data set up to (0020,000D) *Study Instance UID*, behind which nothing says whose it is.

    Raises
    ------
    OSError
        The file is gone or cannot be read.
    UnreadableError
        It is not DICOM; says nothing of what it holds.
    """
    if isinstance(source, Path):
        with source.open("rb") as stream:
            return read_identity(stream)
    try:
        return cast(Dataset, read_partial(source, stop_when=lambda tag, vr, length: tag > _STUDY_INSTANCE_UID))
    except (InvalidDicomError, RecursionError, ValueError, NotImplementedError, AttributeError, LookupError) as error:
        raise UnreadableError(f"a file cannot be read to see whose it is: {type(error).__name__}") from None


def _decoded(dataset: Dataset, keyword: str) -> str:
    value = raw_value(dataset, keyword)
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    terms = [term for term in _character_set_terms(dataset) if term in python_encoding] or [""]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a wrong character set only makes the text odd, and equal text stays equal
        return str(decode_bytes(value, convert_encodings(terms), {0x5C, 0x5E, 0x3D}))


def _character_set_terms(dataset: Dataset) -> list[str]:
    text = text_value(dataset, "SpecificCharacterSet")
    terms = [term.strip() for term in text.split("\\")] if text else []
    # A common slip is ISO-IR 100 or ISO_IR_100 for ISO_IR 100; the meaning is plain, so the defined term is written.
    return [re.sub(r"^ISO[ _-]IR[ _-]?(\d+)$", r"ISO_IR \1", term) for term in terms]


def copy_identity(source: Dataset) -> Dataset:
    """A new data set with the patient and study attributes of `source`, and its character set and time zone.

    Text that is added to it must be ASCII, which every character set of DICOM includes.
    """
    header = Dataset()
    terms = _character_set_terms(source)
    if terms and all(term in python_encoding for term in terms):
        header.SpecificCharacterSet = terms if len(terms) > 1 else terms[0]
    if offset_of(source) is not None:
        _take(header, source, "TimezoneOffsetFromUTC")
    for keyword in IDENTITY:
        if raw_value(source, keyword) or keyword != "IssuerOfPatientID":
            _take(header, source, keyword)
    for keyword in DESCRIBING:
        if _is_legal(source, keyword):
            _take(header, source, keyword)
        else:
            setattr(header, keyword, None)
    for keyword in OPTIONAL:
        if raw_value(source, keyword) and _is_legal(source, keyword):
            _take(header, source, keyword)
    # Without this the writer decodes every raw element and encodes it again, which is not always the same bytes.
    written = header.get("SpecificCharacterSet")
    header.set_original_encoding(False, True, convert_encodings(written) if written else default_encoding)
    return header


def _take(header: Dataset, source: Dataset, keyword: str) -> None:
    """Copy one attribute as the bytes it has, or make it empty."""
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in source:
        setattr(header, keyword, None)
        return
    element = source.get_item(tag)
    if isinstance(element, RawDataElement):
        value = raw_value(source, keyword)
        vr = dictionary_VR(tag)
        value += (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
        header[tag] = element._replace(VR=vr, value=value, length=len(value), is_implicit_VR=False, value_tell=0)
    else:
        header[tag] = element


def _is_legal(source: Dataset, keyword: str) -> bool:
    value = raw_value(source, keyword)
    if not value:
        return True
    tag = tag_for_keyword(keyword)
    vr = dictionary_VR(tag) if tag is not None else ""
    if keyword in _ENUMERATED:
        return value in _ENUMERATED[keyword]
    if vr == "DS" and len(value) > _DS_BYTES:
        return False
    pattern = _LEGAL.get(vr)
    return pattern is not None and pattern.fullmatch(value.strip()) is not None


def offset_of(source: Dataset) -> timezone | None:
    """(0008,0201) *Timezone Offset From UTC*, or ``None`` where it is missing or illegal."""
    match = _OFFSET.fullmatch(text_value(source, "TimezoneOffsetFromUTC"))
    if match is None:
        return None
    sign, hours, minutes = match.groups()
    span = timedelta(hours=int(hours), minutes=int(minutes))
    return timezone(-span if sign == "-" else span) if span < timedelta(hours=15) else None


def local_time(now: datetime, source: Dataset) -> datetime:
    """`now` in the source's time zone, or in this machine's where the source states none (PS3.3 C.12.1)."""
    return now.astimezone(offset_of(source))
