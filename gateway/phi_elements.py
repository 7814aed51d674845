"""Attributes of a data set, for the audit: which should not be there, and what their values look like.

References
----------
PS3.5 6.2 (VRs), 7.8 (private attributes), A.4 (encapsulated pixel data); PS3.6 (dictionary); PS3.15 E.3.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_has_tag, keyword_for_tag
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue
from pydicom.uid import UID

from gateway.phi_patterns import PSEUDONYM, PUBLIC_UID, TextRules
from gateway.phi_streams import leftovers, of_rle, texts_in, words_in

UNREADABLE = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, OSError, EOFError, RecursionError),
    *(NotImplementedError, struct.error, BytesLengthException, zlib.error),
)
"""What pydicom raises for bytes that are not what they say they are."""

_Found = tuple[str, str, str]
_Judged = tuple[str, str] | None

_DUMMY_TEXTS = re.compile(
    r"|REMOVED|ANONYM(?:IZED|OUS|ISED)|DE-?IDENTIFIED|UNKNOWN|NONE|N/?A|0+|Local code|urn:removed", re.IGNORECASE
)
_DUMMY_MOMENTS = re.compile(r"(?:1900|0001)(?:01(?:01)?)?(?:0[0.]*)?|0*(?:\.0*)?")
_PSEUDONYM_NAME = re.compile(rf"{PSEUDONYM.pattern}|(?:ANON\w*|SUBJECT|CASE|REMOVED|UNKNOWN)(?:[\^_ -][0-9A-F-]*)?|\^*")
_HASH = re.compile(r"[0-9A-F]{16,64}|[0-9a-f]{16,64}")
_LETTER_OF_HASH = re.compile(r"[A-Fa-f]")
_TERM = re.compile(r"[A-Z0-9_ ]{0,16}")
_LEAST_NAME_IN_TERM = 5
"""Terms are often short for something, and the same as a short name."""
_IDENTIFIER = re.compile(r"(?:ID|IDs|Identifier|Number|Code)$")

OF_DEVICES = frozenset(
    [
        *("DeviceSerialNumber", "StationName", "GantryID", "DetectorID", "PlateID", "CassetteID", "GeneratorID"),
        *("SecondaryCaptureDeviceID", "DeviceID", "DeviceDescription", "DeviceLabel"),
        *("TransducerIdentificationSequence", "SourceManufacturer", "SourceSerialNumber"),
        *("ManufacturerDeviceIdentifier", "UniqueDeviceIdentifier", "XRaySourceID", "XRayDetectorID", "LensMake"),
        *("LensModel", "LensSerialNumber", "LensSpecification", "ManufacturerModelVersion"),
        *("PerformedStationName", "ScheduledStationName", "DateOfManufacture"),
        *("DateOfLastCalibration", "TimeOfLastCalibration", "DateTimeOfLastCalibration", "DateOfInstallation"),
        *("DateOfLastDetectorCalibration", "TimeOfLastDetectorCalibration", "ScheduledStudyLocation"),
        *("CalibrationDate", "CalibrationTime", "CalibrationDateTime", "XRayDetectorLabel", "TreatmentMachineName"),
        *("ScheduledProcedureStepLocation", "HardcopyCreationDeviceID", "BeamHoldTransitionDateTime"),
        *("ManufacturerDeviceClassUID", "DeviceUID"),
    ]
)
"""What 113109, the Retain Device Identity Option, explains."""
TECHNICAL_TEXTS = frozenset(
    [
        *("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "SequenceName", "PulseSequenceName"),
        *("SecondaryCaptureDeviceManufacturer", "SecondaryCaptureDeviceManufacturerModelName", "ConvolutionKernel"),
        *("SecondaryCaptureDeviceSoftwareVersions", "VideoImageFormatAcquired", "DigitalImageFormatAcquired"),
        *("AcquisitionDeviceProcessingCode", "ReceiveCoilName", "TransmitCoilName", "TransducerData"),
        *("ReceiveCoilManufacturerName", "TransmitCoilManufacturerName", "MultiCoilElementName"),
        *("ProcessingFunction", "DetectorManufacturerName", "DetectorManufacturerModelName", "RescaleType"),
        *("ModalityLUTType", "LUTExplanation", "ReconstructionAlgorithm", "CodingSchemeDesignator"),
        *("CodingSchemeVersion", "CodingSchemeName", "CodingSchemeRegistry", "DeidentificationMethod", "FilterType"),
        *("ContentQualification", "ColorSpace", "StackID", "LUTLabel", "DimensionDescriptionLabel", "SegmentLabel"),
        *("ImplementationVersionName", "FieldOfViewDescription", "CSSFontName"),
        *("ContrastBolusRoute", "CollimatorGridName", "PlateType", "DetectorDescription", "DetectorMode"),
        *("PositionReferenceIndicator", "ImagedNucleus"),
    ]
)
"""Texts about machines and methods: looked at for names and addresses, but there by right."""
OF_INSTITUTIONS = frozenset(
    [
        *("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName"),
        *("ClinicalTrialCoordinatingCenterName", "ClinicalTrialSiteName", "ClinicalTrialSiteID"),
        *("ClinicalTrialProtocolEthicsCommitteeName", "SourceOfPreviousValues"),
    ]
)
OF_PATIENTS = frozenset(
    [
        *("EthnicGroup", "PatientSpeciesDescription", "PatientBreedDescription", "Allergies"),
        *("SpecialNeeds", "PatientState", "PreMedication"),
    ]
)
"""What 113108, the Retain Patient Characteristics Option, explains."""
CODED_TEXTS = frozenset(["CodeValue", "CodeMeaning", "LongCodeValue", "URNCodeValue"])
PUBLIC_SCHEMES = frozenset(
    [
        *("ACR", "ATC", "BARI", "BI", "CD10", "DCM", "FMA", "HL7", "I10", "I10P", "I11", "I9", "I9C", "ICDO3", "IBSI"),
        *("ISO3166_1", "ISO639_1", "LN", "MSH", "NCDR", "NCIt", "NEU", "RADLEX", "RFC5646", "RXNORM", "SCT", "SRT"),
        *("SNM3", "UBERON", "UCUM", "UMLS", "UNS", "PUBCHEM_CID", "ITIS_TSN", "MDC", "DUNS", "POS", "NICIP"),
    ]
)
"""Of PS3.16 Table 8-1."""
_CLEANED = ("113103", "113104", "113105")
_DATES_KEPT = frozenset(["113106", "113107"])
_TOOLKITS = (
    *("1.2.826.0.1.3680043.8.498.", "1.2.826.0.1.3680043.9.3811.", "1.2.276.0.7230010.3.0.3."),
    *("1.2.826.0.1.3680043.2.1143.", "1.2.40.0.13.1."),
)
"""Roots of implementation class UIDs of free toolkits: pydicom, pynetdicom, DCMTK, GDCM, dcm4che."""
_META_WITHOUT_PEERS = frozenset([0x00020000, 0x00020001, 0x00020002, 0x00020003, 0x00020010, 0x00020012, 0x00020013])
_PIXELS = frozenset([0x7FE00008, 0x7FE00009, 0x7FE00010])
_BULK = frozenset(["OB", "OW", "OF", "OD", "OL", "OV", "UN", "OB or OW"])
_TEXT_VRS = frozenset(["LO", "LT", "SH", "ST", "UC", "UT"])


class DataSetAudit:
    """One look at one data set with its file meta.

    Parameters
    ----------
    dataset
        Decoded as far as it is looked at.
    rules
        For texts.
    """

    def __init__(self, dataset: Dataset, rules: TextRules) -> None:
        self._dataset = dataset
        self._rules = rules
        self._codes = frozenset(_claimed_codes(dataset))
        self._dates = str(dataset.get("LongitudinalTemporalInformationModified", "") or "")
        file_meta = getattr(dataset, "file_meta", None)
        self._transfer_syntax = str(file_meta.get("TransferSyntaxUID", "")) if file_meta is not None else ""
        self._today = datetime.now(UTC).strftime("%Y%m%d")

    def run(self) -> Iterator[_Found]:
        """Where, kind and text of each suspicion, at most one a value."""
        yield from self._file_meta()
        waiting: list[tuple[Dataset, str]] = [(self._dataset, "")]
        while waiting:
            here, path = waiting.pop()
            private = _private_blocks(here)
            for tag in sorted(int(tag) for tag in here.keys()):  # noqa: SIM118 - decodes one by one
                where = f"{path}({tag >> 16:04X},{tag & 0xFFFF:04X})"
                try:
                    element = here[tag]
                    if element.VR == "SQ":
                        waiting += [(item, f"{where}[{number}]>") for number, item in enumerate(element.value)]
                    judged = self._judge(element, here, private)
                except UNREADABLE:
                    judged = ("unreadable value", "")
                if judged is not None:
                    yield f"{where} {keyword_for_tag(tag)}".rstrip(), *judged

    def _judge(self, element: DataElement, here: Dataset, private: Mapping[int, bool]) -> _Judged:
        tag = int(element.tag)
        by_place = self._judge_place(element, private)
        if by_place is not None or tag & 0xFFFF == 0 or element.VR == "SQ":
            return by_place
        if tag in _PIXELS:
            return self._pixels(element, here)
        if element.VR in _BULK or isinstance(element.value, bytes):
            return self._bulk(element)
        for value in _values(element):
            judged = self._value(element, str(value).strip(" \x00"), here)
            if judged is not None:
                return judged
        return None

    def _judge_place(self, element: DataElement, private: Mapping[int, bool]) -> _Judged:
        """What is suspicious by where it stands, whatever its value."""
        tag, group = int(element.tag), int(element.tag) >> 16
        empty = element.is_empty
        if group % 2:
            if tag & 0xFFFF <= 0xFF:  # a private creator: named with its attributes, or here if it has none
                return None if empty or private.get(tag, False) else ("private attribute", _text(element))
            return None if "113111" in self._codes else ("private attribute", _text(element))
        if 0x5000 <= group <= 0x50FF:
            return ("curve", _text(element))
        if 0x6000 <= group <= 0x60FF and "113103" not in self._codes:
            return ("overlay", _text(element))
        if tag == 0xFFFCFFFC:
            return ("trailing bytes", _text(element))
        if group in (0xFFFA, 0x0400) and not empty:
            return ("signature or encrypted attribute", "")
        if tag == 0x00420011 and not empty and bytes(element.value).strip(b"\x00"):
            return ("encapsulated document", "")
        if tag == 0x00880200 and not empty:
            return ("icon", "")
        if tag & 0xFFFF and not dictionary_has_tag(tag) and not keyword_for_tag(tag):
            return ("attribute that no dictionary has", _text(element))
        return None

    def _value(self, element: DataElement, text: str, here: Dataset) -> _Judged:
        """One value of an attribute of a text or number VR."""
        tag, vr = int(element.tag), element.VR
        if not text:
            return None
        if vr == "PN":
            return None if self._is_pseudonym(text, here) else ("person name", text)
        if tag == 0x00100020:
            return None if self._is_pseudonymous_id(text, here) else ("patient ID", text)
        if vr in ("IS", "DS", "UI", "DA", "DT"):
            given = self._rules.given(text)
            if given is not None:
                return "given name", given
        if vr in ("DA", "DT", "TM"):
            return self._moment(tag, vr, text)
        if vr == "AS":
            return ("age over 89", text) if _years(text) > 90 else None
        if vr == "UI":
            return self._uid(element, text)
        if vr == "AE":
            return None if _DUMMY_TEXTS.fullmatch(text) else ("AE title", text)
        if vr == "UR":
            return None if _DUMMY_TEXTS.fullmatch(text) else ("URL or host name", text)
        if vr == "CS":
            return self._term(tag, text)
        return self._text(element, text, here) if vr in _TEXT_VRS else None

    def _is_pseudonym(self, text: str, here: Dataset) -> bool:
        return bool(_PSEUDONYM_NAME.fullmatch(text)) and self._rules.given(text) is None

    def _is_pseudonymous_id(self, text: str, here: Dataset) -> bool:
        """Of the form of a hash: a number of 16 digits is one only if the patient's name says so too."""
        if _DUMMY_TEXTS.fullmatch(text):
            return True
        if not _HASH.fullmatch(text) or self._rules.given(text) is not None:
            return False
        return bool(_LETTER_OF_HASH.search(text)) or str(here.get("PatientName", "")).endswith(f"^{text}")

    def _moment(self, tag: int, vr: str, text: str) -> _Judged:
        if _DUMMY_MOMENTS.fullmatch(text.replace(".", "") if vr != "TM" else text):
            return None
        if tag == 0x00100030:
            return "birth date", text
        if keyword_for_tag(tag) in OF_DEVICES and "113109" in self._codes:
            return None
        if self._dates == "UNMODIFIED" and "113106" in self._codes:
            return None
        if self._dates == "MODIFIED" and "113107" in self._codes:
            recent = (
                vr != "TM" and re.sub(r"\D", "", text)[:8] >= self._today
            )  # a day in the past is one moved, or none
            return ("date", text) if recent else None
        return ("time" if vr == "TM" else "date"), text

    def _uid(self, element: DataElement, text: str) -> _Judged:
        if PUBLIC_UID.fullmatch(text) or UID(text).name != text or "113110" in self._codes:
            return None
        if element.keyword in OF_DEVICES and "113109" in self._codes:
            return None
        return "UID", text

    def _term(self, tag: int, text: str) -> _Judged:
        if tag == 0x00080005:
            return None
        if tag == 0x00280301 and text == "YES":
            return "text burned in, as the object says", text
        likely = self._rules.likely(text.replace("_", " "))
        if likely is not None and (likely[0] != "person name" or len(likely[1]) >= _LEAST_NAME_IN_TERM):
            return likely
        return None if _TERM.fullmatch(text) else ("term that is none", text)

    def _text(self, element: DataElement, text: str, here: Dataset) -> _Judged:
        keyword = element.keyword
        if _DUMMY_TEXTS.fullmatch(text) or (_HASH.fullmatch(text) and _LETTER_OF_HASH.search(text)):
            return None if self._rules.given(text) is None else ("given name", text)
        if keyword in TECHNICAL_TEXTS or (keyword in OF_DEVICES and "113109" in self._codes):
            named = None if keyword == "Manufacturer" else self._rules.likely(_without_numbers(text))
            return self._rules.certain(text) or named
        if keyword in CODED_TEXTS:
            if str(here.get("CodingSchemeDesignator", "")).strip() in PUBLIC_SCHEMES:
                return self._rules.certain(text)
            if any(code in self._codes for code in _CLEANED):
                return self._rules.likely(text, clean=True)
            return "code of no public scheme", text
        if keyword in OF_INSTITUTIONS and "113112" in self._codes:
            return self._given(text)
        if keyword in OF_PATIENTS and "113108" in self._codes:
            return self._rules.likely(text, clean=True)
        if keyword == "TimezoneOffsetFromUTC" and re.fullmatch(r"[+-]\d{4}", text) and self._codes & _DATES_KEPT:
            return None
        if int(element.tag) >> 16 & 1 or any(code in self._codes for code in _CLEANED):
            return self._rules.likely(text, clean=True)
        kind = "identifier" if _IDENTIFIER.search(keyword) else "free text"
        return self._rules.likely(text) or (kind, text)

    def _given(self, text: str) -> _Judged:
        given = self._rules.given(text)
        return None if given is None else ("given name", given)

    def _bulk(self, element: DataElement) -> _Judged:
        """Words and addresses among bytes; whole texts where the VR is unknown."""
        value = element.value if isinstance(element.value, bytes) else bytes(element.value or b"")
        is_table = int(element.tag) >> 8 in (0x002812, 0x002830)  # ramps run through the letters
        for text in texts_in(value):
            found = self._rules.certain(text)
            if found is not None and not (is_table and found[0] == "person name"):
                return found
        declared_safe = int(element.tag) >> 16 & 1 and "113111" in self._codes
        words = b"" if is_table or declared_safe else words_in(value)
        return ("text among bytes", words.decode("ascii")) if words else None

    def _pixels(self, element: DataElement, here: Dataset) -> _Judged:
        """Pixel data: what follows the last pixel, and what compressed streams carry besides."""
        value = element.value
        if not isinstance(value, bytes):
            return "unreadable value", ""
        encapsulated = element.is_undefined_length or value[:4] == b"\xfe\xff\x00\xe0"
        if encapsulated:
            is_rle = self._transfer_syntax == "1.2.840.10008.1.2.5"
            pixels = int(here.get("Rows", 0) or 0) * int(here.get("Columns", 0) or 0)
            for stream in _streams(value, one_each=is_rle):
                for kind, payload in of_rle(stream, pixels) if is_rle else leftovers(stream):
                    return kind, words_in(payload).decode("ascii", "replace")
            return None
        expected = _native_bytes(here)
        if here.original_encoding[1] is False:  # bytes of words are swapped, the one that fills up too
            expected += expected % 2
        slack = value[expected:] if 0 < expected < len(value) else b""
        if len(slack) > 1 or slack.strip(b"\x00"):
            return "trailing bytes", words_in(slack).decode("ascii", "replace")
        return None

    def _file_meta(self) -> Iterator[_Found]:
        for element in getattr(self._dataset, "file_meta", None) or ():
            tag, where = int(element.tag), f"(0002,{int(element.tag) & 0xFFFF:04X}) {element.keyword}".rstrip()
            text = str(element.value or "").strip(" \x00")
            of_a_peer = tag not in _META_WITHOUT_PEERS and not element.is_empty
            own = tag == 0x00020012 and not text.startswith(_TOOLKITS) and self._uid(element, text)
            if of_a_peer or own or (tag == 0x00020013 and self._rules.likely(text)):
                yield where, "file meta", text
            elif tag in (0x00020002, 0x00020003, 0x00020010):
                judged = self._uid(element, text)
                if judged is not None:
                    yield where, *judged


def _claimed_codes(dataset: Dataset) -> Iterator[str]:
    try:
        for item in dataset.get("DeidentificationMethodCodeSequence", None) or ():
            if item.get("CodingSchemeDesignator") == "DCM":
                yield str(item.get("CodeValue", ""))
    except UNREADABLE:
        return


def _private_blocks(here: Dataset) -> dict[int, bool]:
    """Private creators of a data set, and whether an attribute of their block is there."""
    tags = [int(tag) for tag in here.keys() if int(tag) >> 16 & 1]  # noqa: SIM118
    blocks = {tag & 0xFFFF0000 | (tag & 0xFFFF) >> 8 for tag in tags if tag & 0xFFFF > 0xFF}
    return {tag: tag in blocks for tag in tags if tag & 0xFFFF <= 0xFF}


def _values(element: DataElement) -> Iterable[Any]:
    value = element.value
    if value is None:
        return ()
    return value if isinstance(value, MultiValue | list | tuple) else (value,)


def _text(element: DataElement) -> str:
    value = element.value
    if isinstance(value, bytes):
        return words_in(value).decode("ascii")
    return "" if element.VR == "SQ" or value is None else str(value)


def _years(text: str) -> float:
    found = re.fullmatch(r"(\d{3})([DWMY])", text)
    return int(found[1]) / {"D": 365.25, "W": 52.2, "M": 12, "Y": 1}[found[2]] if found else 0


def _without_numbers(text: str) -> str:
    """Versions and serial numbers look like dates and identifiers; what is left may still be a name."""
    return re.sub(r"[\w.-]*\d[\w.-]*", " ", text)


def _native_bytes(here: Dataset) -> int:
    """Bytes of native pixel data (PS3.5 8.1.1); 0 if the attributes that say so are missing."""
    samples = int(here.get("SamplesPerPixel", 1) or 1)
    if here.get("PhotometricInterpretation") == "YBR_FULL_422":
        samples = 2
    bits = int(here.get("BitsAllocated", 0) or 0) * samples * int(here.get("NumberOfFrames", 1) or 1)
    return (bits * int(here.get("Rows", 0) or 0) * int(here.get("Columns", 0) or 0) + 7) // 8


def _streams(value: bytes, *, one_each: bool) -> Iterator[memoryview | bytes]:
    """Compressed streams: fragments behind the offset table, those of one frame joined unless each is a frame."""
    view, position, first = memoryview(value), 0, True
    pieces: list[memoryview] = []
    while position + 8 <= len(view) and value[position : position + 4] == b"\xfe\xff\x00\xe0":
        (length,) = struct.unpack_from("<L", value, position + 4)
        fragment = view[position + 8 : position + 8 + length]
        position += 8 + length
        if first:
            first = False
            continue
        start = bytes(fragment[:4])
        if pieces and (one_each or start[:2] == b"\xff\xd8" or start == b"\xff\x4f\xff\x51"):
            yield b"".join(pieces) if len(pieces) > 1 else pieces[0]
            pieces = []
        pieces.append(fragment)
    if pieces:
        yield b"".join(pieces) if len(pieces) > 1 else pieces[0]
    rest = bytes(view[position:])
    if rest.strip(b"\x00") and rest[:4] != b"\xfe\xff\xdd\xe0":
        yield b"\xff\xd8\xff\xd9" + rest
