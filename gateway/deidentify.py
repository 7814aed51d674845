"""De-identification: the boundary before which objects hold PHI and behind which they do not.

PS3.15 Annex E, Basic Application Level Confidentiality Profile with the Retain Device Identity Option, and stricter
than it where the profile leaves room: see ``docs/deidentification.md``. Nothing is passed on by default. An attribute
stays because a row or a rule keeps it and its value has the form it should have; all else goes, at any depth.

Fundus photographs identify by themselves, and text burned into pixels is not looked for here: 113101 (Clean Pixel Data
Option) is never claimed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import cast

import numpy as np
from pydicom import DataElement, Dataset, Sequence
from pydicom._uid_dict import UID_dictionary
from pydicom.charset import default_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import FileMetaDataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian

from gateway.deidentification import values
from gateway.deidentification.icc import clean_icc_profile
from gateway.deidentification.keys import KeyedHash, load_or_create_key
from gateway.deidentification.profile import RETAIN_DEVICE_IDENTITY, Action, Profile, edition
from gateway.deidentification.streams import clean_encapsulated, frame_bytes, trim_native
from gateway.errors import DeidentificationError
from gateway.study import DeidentifiedInstance, DeidentifiedStudy, ReceivedInstance, Study

__all__ = ["IMPLEMENTATION_CLASS_UID", "Deidentifier", "load_or_create_key"]

IMPLEMENTATION_CLASS_UID = UID("2.25.219872641105362490867355410296743215098")
"""Of the objects that de-identification writes; made once, at random."""
IMPLEMENTATION_VERSION_NAME = "GATEWAY_DEID_1"

METHODS = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113109", "Retain Device Identity Option"),
)
"""What is written to (0012,0064): exactly what was done (PS3.16 CID 7050)."""

_UNREADABLE = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, OSError, EOFError),
    *(NotImplementedError, struct.error, BytesLengthException),
)
"""What pydicom raises for a value that is not what it says it is."""

_Element = DataElement | RawDataElement
_PIXEL_DATA = 0x7FE00010
_PSEUDONYM_DIGITS = 16


class Deidentifier:
    """Makes copies of objects that hold no identity, the same for the same key in every process.

    Parameters
    ----------
    key
        At least 32 random bytes, secret and kept: see :func:`load_or_create_key`.

    Raises
    ------
    DeidentificationError
        If the key is weak.
    """

    def __init__(self, key: bytes) -> None:
        self._uids = KeyedHash(key, "UID")
        self._patients = KeyedHash(key, "patient")
        self._codes = KeyedHash(key, "code")
        self._profile = Profile(frozenset({RETAIN_DEVICE_IDENTITY}))

    def uid(self, original: str) -> str:
        """The UID that stands for `original` wherever it occurs; at most 44 characters, ``2.25.`` form."""
        return self._uids.uid(original.strip(" \x00"))

    def patient_pseudonym(self, patient_id: str) -> str:
        """16 hexadecimal digits that stand for a patient ID."""
        return self._patients.hexadecimal(patient_id.strip(" \x00"), _PSEUDONYM_DIGITS)

    def local_code(self, scheme: str, value: str) -> str:
        """16 hexadecimal digits that stand for a code of a scheme that is not public."""
        return self._codes.hexadecimal(f"{scheme.strip()}\\{value.strip()}", 16)

    def study(self, study: Study) -> DeidentifiedStudy:
        """Every instance of a study, read and de-identified.

        Raises
        ------
        DeidentificationError
            If one of them cannot be; the text holds the gateway's own key for it and no PHI.
        """
        return DeidentifiedStudy(
            study_key=study.study_key, instances=tuple(self.instance(received) for received in study.instances)
        )

    def instance(self, received: ReceivedInstance) -> DeidentifiedInstance:
        """One instance of a study; raises as :meth:`study` does."""
        try:
            deidentified = self.dataset(received.read())
        except DeidentificationError as error:
            raise DeidentificationError(f"instance {received.instance_key}: {error}") from error
        return DeidentifiedInstance(instance_key=received.instance_key, dataset=deidentified)

    def dataset(self, original: Dataset) -> Dataset:
        """A de-identified copy with a file meta of its own, in the transfer syntax of the original.

        The original is not changed, and the copy shares nothing with it that can change. Native pixel data are not
        copied; encapsulated ones once.

        Raises
        ------
        DeidentificationError
            If the transfer syntax or SOP class is not known, or compressed streams cannot be walked.
        """
        return _Copy(self, self._profile, original).make()


class _Copy:
    """One run over one data set. Its work list stands in for recursion, so that depth costs no stack."""

    def __init__(self, deidentifier: Deidentifier, profile: Profile, original: Dataset) -> None:
        self._deidentifier = deidentifier
        self._profile = profile
        self._original = original
        self._transfer_syntax_uid = _transfer_syntax_of(original)
        self._sop_class_uid = _text_of(original, 0x00080016)
        patient_id = _patient_id_of(original)
        # Without an ID nothing says that two studies are of one patient: the study stands in.
        self._pseudonym = deidentifier.patient_pseudonym(patient_id or f"study {_text_of(original, 0x0020000D)}")
        self._work: list[tuple[Dataset, Dataset, int | None]] = []

    def make(self) -> Dataset:
        if not values.is_well_known_uid(0x00080016, self._sop_class_uid):
            raise DeidentificationError("the SOP class is private or missing")
        if not _text_of(self._original, 0x00080018):
            raise DeidentificationError("the object has no SOP Instance UID")
        copy = _empty_like(self._original)
        self._work.append((self._original, copy, None))
        while self._work:
            source, target, parent = self._work.pop()
            for tag in source.keys():  # noqa: SIM118 - iterating the data set itself would decode every value
                element = self._element(source, int(tag), parent)
                if element is not None:
                    target[tag] = element
        self._write_evidence(copy)
        copy.file_meta = self._file_meta(copy)
        return copy

    def _element(self, source: Dataset, tag: int, parent: int | None) -> _Element | None:
        """What stands for the element in the copy, None for nothing."""
        action = self._profile.action(tag, parent, self._sop_class_uid)
        if action is Action.REMOVE:
            return None
        element = cast(_Element, source.get_item(tag, keep_deferred=True))
        if isinstance(element, RawDataElement) and element.value is None and element.length:
            element = source[tag]  # left in the file until asked for
        vr = _vr_of(tag)
        if _is_empty(element) and action not in (Action.PATIENT_ID, Action.PATIENT_NAME):
            return None if action is Action.PIXELS else DataElement(tag, vr, None)
        if action is Action.KEEP:
            return self._kept(source, element, parent)
        if action is Action.CLEAN_ITEMS:
            return self._cleaned_items(source, element, parent)
        if action is Action.REPLACE_UID:
            return self._replaced_uid(source, element)
        if action is Action.CODE:
            return self._code(source, element, parent)
        if action is Action.PIXELS:
            return self._pixels(element)
        if action is Action.ICC_PROFILE:
            value = clean_icc_profile(element.value) if isinstance(element.value, bytes) else None
            return self._fallback(tag, parent) if value is None else DataElement(tag, "OB", value)
        if action is Action.PATIENT_ID:
            return DataElement(tag, vr, self._pseudonym_in(source, parent))
        if action is Action.PATIENT_NAME:
            return DataElement(tag, vr, f"PSEUDONYM^{self._pseudonym_in(source, parent)}")
        return _dummy(tag, vr) if action is Action.DUMMY else DataElement(tag, vr, None)

    def _fallback(self, tag: int, parent: int | None) -> DataElement | None:
        """For a value that may not stay: nothing, or what the IOD needs."""
        action = self._profile.fallback(tag, parent, self._sop_class_uid)
        if action is Action.REMOVE:
            return None
        vr = _vr_of(tag)
        return _dummy(tag, vr) if action is Action.DUMMY else DataElement(tag, vr, None)

    def _kept(self, source: Dataset, element: _Element, parent: int | None) -> _Element | None:
        tag = int(element.tag)
        declared = element.VR or dictionary_VR(tag)
        if declared == "UN" or not values.compatible(tag, declared):
            decoded = _decoded(source, element) if declared == "UN" else None
            if decoded is None or decoded.VR == "UN":
                return self._fallback(tag, parent)
            element, declared = decoded, decoded.VR
        if isinstance(element, RawDataElement) and self._is_foreign(element):
            decoded = _decoded(source, element)
            if decoded is None:
                return self._fallback(tag, parent)
            element = decoded
        if isinstance(element, RawDataElement):
            value = values.kept_value(tag, declared, cast(bytes, element.value))
            if value is None:
                return self._fallback(tag, parent)
            if tag != 0x00080005 and declared in ("LO", "SH", "ST", "LT", "UC", "UT") and not _is_plain(value):
                # Bytes of another character set are decoded here and encoded again when written.
                return _decoded(source, element) or self._fallback(tag, parent)
            return element if value == element.value else element._replace(value=value, length=len(value))
        if isinstance(element.value, bytes):
            kept = values.kept_value(tag, declared, element.value)
            return self._fallback(tag, parent) if kept is None else DataElement(tag, declared, kept)
        return self._kept_decoded(element, parent)

    def _is_foreign(self, element: RawDataElement) -> bool:
        """Whether the element is not encoded as the transfer syntax says, so that its bytes cannot be written again."""
        syntax = UID(self._transfer_syntax_uid)
        as_implicit = element.is_implicit_VR or element.VR is None
        return as_implicit != syntax.is_implicit_VR or element.is_little_endian != syntax.is_little_endian

    def _kept_decoded(self, element: DataElement, parent: int | None) -> DataElement | None:
        """:meth:`_kept` for an element whose value was set or read as Python objects."""
        tag, vr = int(element.tag), element.VR
        parts = list(element.value) if isinstance(element.value, MultiValue | list | tuple) else [element.value]
        if all(isinstance(part, int | float) for part in parts) and vr not in ("DS", "IS"):
            size = {"FD": 8, "SV": 8, "UV": 8, "US": 2, "SS": 2, "US or SS": 2}.get(vr, 4)
            encoded = values.kept_value(tag, vr, bytes(size * len(parts)))
            return self._fallback(tag, parent) if encoded is None else DataElement(tag, vr, _one_or_list(parts))
        text = "\\".join("" if part is None else str(part) for part in parts).encode("utf-8", "replace")
        kept = values.kept_value(tag, vr, text)
        if kept is None:
            return self._fallback(tag, parent)
        if kept == text:
            return DataElement(tag, vr, _one_or_list(parts))
        return DataElement(tag, vr, kept.decode("utf-8", "replace").rstrip(" "))

    def _cleaned_items(self, source: Dataset, element: _Element, parent: int | None) -> DataElement | None:
        decoded = _decoded(source, element)
        if decoded is None or decoded.VR != "SQ":
            return self._fallback(int(element.tag), parent)
        items = [_empty_like(item) for item in decoded.value]
        self._work += [(item, copy, int(element.tag)) for item, copy in zip(decoded.value, items, strict=True)]
        return DataElement(element.tag, "SQ", Sequence(items))

    def _replaced_uid(self, source: Dataset, element: _Element) -> DataElement | None:
        tag = int(element.tag)
        originals = _texts(element)
        replaced = [
            original if not original or values.is_well_known_uid(tag, original) else self._deidentifier.uid(original)
            for original in originals
        ]
        return DataElement(tag, "UI", _one_or_list(replaced))

    def _code(self, source: Dataset, element: _Element, parent: int | None) -> _Element | None:
        """A code's value and meaning: a public scheme's stay, a hospital's own become opaque but stay comparable."""
        scheme = _text_of(source, 0x00080102)
        if scheme in values.PUBLIC_SCHEMES:
            return self._kept(source, element, parent)
        tag = int(element.tag)
        if tag == 0x00080104:
            return DataElement(tag, "LO", "Local code")
        return DataElement(tag, dictionary_VR(tag), self._deidentifier.local_code(scheme, "\\".join(_texts(element))))

    def _pseudonym_in(self, source: Dataset, parent: int | None) -> str:
        nested_id = "" if parent is None else _patient_id_of(source)
        return self._deidentifier.patient_pseudonym(nested_id) if nested_id else self._pseudonym

    def _pixels(self, element: _Element) -> _Element | None:
        """Pixel data, with the metadata inside compressed streams and what lies behind the last pixel gone."""
        value = element.value
        if not isinstance(value, bytes):
            raise DeidentificationError("pixel data that are not in memory")
        frames = _number_of(self._original, 0x00280008, 1)
        if UID(self._transfer_syntax_uid).is_encapsulated:
            cleaned = clean_encapsulated(value, self._transfer_syntax_uid, frames)
            encapsulated = DataElement(element.tag, "OB", cleaned)
            encapsulated.is_undefined_length = True
            return encapsulated
        sizes = [_number_of(self._original, tag, 0) for tag in (0x00280010, 0x00280011, 0x00280002, 0x00280100)]
        value = trim_native(value, frame_bytes([*sizes, frames], _text_of(self._original, 0x00280004)))
        value = self._without_embedded_overlays(value)
        vr = element.VR or ("OW" if int(element.tag) == _PIXEL_DATA else dictionary_VR(int(element.tag)))
        if vr not in ("OB", "OW", "OF", "OD"):
            vr = "OW"
        return DataElement(element.tag, vr, value)

    def _without_embedded_overlays(self, value: bytes) -> bytes:
        """Retired overlays may lie in the unused bits of each pixel (PS3.3-2004 C.9.2): those bits are emptied."""
        groups = {int(tag) & 0xFFFF0000 for tag in self._original.keys() if 0x6000 <= tag >> 16 <= 0x60FF}  # noqa: SIM118
        embedded = any(_number_of(self._original, group | 0x0102, 0) for group in groups)
        allocated, stored, high = (_number_of(self._original, 0x00280000 | n, 0) for n in (0x0100, 0x0101, 0x0102))
        if not embedded or allocated not in (8, 16, 32) or not 0 < stored < allocated:
            return value
        order = ">" if self._transfer_syntax_uid == "1.2.840.10008.1.2.2" else "<"
        words = np.frombuffer(value, dtype=f"{order}u{allocated // 8}")
        mask = ((1 << stored) - 1) << max(high + 1 - stored, 0)
        return bytes((words & words.dtype.type(mask)).astype(words.dtype).tobytes())

    def _write_evidence(self, copy: Dataset) -> None:
        """The patient's pseudonym, and what was done (PS3.15 E.1.1 and PS3.3 C.12.1)."""
        copy.PatientName = f"PSEUDONYM^{self._pseudonym}"
        copy.PatientID = self._pseudonym
        copy.PatientIdentityRemoved = "YES"
        copy.DeidentificationMethod = [f"PS3.15 {edition()} Table E.1-1", *(meaning for _, meaning in METHODS)]
        codes = []
        for code_value, meaning in METHODS:
            code = Dataset()
            code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = code_value, "DCM", meaning
            codes.append(code)
        copy.DeidentificationMethodCodeSequence = Sequence(codes)
        copy.LongitudinalTemporalInformationModified = "REMOVED"

    def _file_meta(self, copy: Dataset) -> FileMetaDataset:
        file_meta = FileMetaDataset()
        file_meta.FileMetaInformationVersion = b"\x00\x01"
        file_meta.MediaStorageSOPClassUID = UID(self._sop_class_uid)
        file_meta.MediaStorageSOPInstanceUID = copy.get("SOPInstanceUID", "")
        file_meta.TransferSyntaxUID = UID(self._transfer_syntax_uid)
        file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
        file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
        return file_meta


def _transfer_syntax_of(original: Dataset) -> str:
    """The transfer syntax from the file meta, or that in which the data set was read.

    Raises
    ------
    DeidentificationError
        If it is private or cannot be known: then neither is what the pixel data hold.
    """
    file_meta = getattr(original, "file_meta", None)
    named = str(file_meta.get("TransferSyntaxUID", "")) if file_meta is not None else ""
    if named:
        if named not in UID_dictionary or not UID(named).is_transfer_syntax:
            raise DeidentificationError("the transfer syntax is private or not known")
        return named
    pixel_data = original.get_item(_PIXEL_DATA, keep_deferred=True)
    if getattr(pixel_data, "length", 0) == 0xFFFFFFFF or getattr(pixel_data, "is_undefined_length", False):
        raise DeidentificationError("encapsulated pixel data without a transfer syntax")
    implicit, little = original.original_encoding
    if little is False:
        return "1.2.840.10008.1.2.2"
    return "1.2.840.10008.1.2" if implicit else str(ExplicitVRLittleEndian)


def _empty_like(source: Dataset) -> Dataset:
    """An empty data set that writes undecoded elements of `source` as they are."""
    copy = Dataset()
    implicit, little = source.original_encoding
    copy.set_original_encoding(implicit, little, source.original_character_set or default_encoding)
    return copy


def _is_empty(element: _Element) -> bool:
    if isinstance(element, RawDataElement):
        return not element.value
    return element.is_empty


def _vr_of(tag: int) -> str:
    """A VR to write: the dictionary's, or the first of those it leaves open."""
    return dictionary_VR(tag).split(" or ")[0]


def _decoded(source: Dataset, element: _Element) -> DataElement | None:
    """The element as Python objects, None if it cannot be read; `source` keeps its undecoded one."""
    if isinstance(element, DataElement):
        return element
    try:
        return convert_raw_data_element(element, encoding=_encoding_of(source), ds=source)
    except _UNREADABLE:
        return None


def _encoding_of(source: Dataset) -> list[str]:
    encoding = source.original_character_set or default_encoding
    return [encoding] if isinstance(encoding, str) else list(encoding)


def _texts(element: _Element) -> list[str]:
    """The values of an element of a text VR, without padding."""
    value = element.value
    if isinstance(value, bytes):
        value = value.decode("ascii", "backslashreplace").split("\\")
    parts: Iterable[object] = value if isinstance(value, MultiValue | list | tuple) else [value]
    return ["" if part is None else str(part).strip(" \x00") for part in parts]


def _text_of(source: Dataset, tag: int) -> str:
    """The first value of an element, or the empty text."""
    element = source.get_item(tag, keep_deferred=True)
    return _texts(element)[0] if isinstance(element, DataElement | RawDataElement) and not _is_empty(element) else ""


def _patient_id_of(source: Dataset) -> str:
    """(0010,0020) *Patient ID* as text, so that one patient is one whatever character set an object is in."""
    element = source.get_item(0x00100020, keep_deferred=True)
    if not isinstance(element, DataElement | RawDataElement) or _is_empty(element):
        return ""
    decoded = _decoded(source, element)
    return "\\".join(_texts(element if decoded is None else decoded))


def _number_of(source: Dataset, tag: int, default: int) -> int:
    """A whole number from an element of a number VR, or `default`."""
    element = source.get_item(tag, keep_deferred=True)
    if not isinstance(element, DataElement | RawDataElement) or _is_empty(element):
        return default
    if isinstance(element, RawDataElement) and (element.VR or dictionary_VR(tag)) == "US":
        return int.from_bytes(cast(bytes, element.value)[:2], "little" if element.is_little_endian else "big")
    try:
        return int(_texts(element)[0])
    except ValueError:
        return default


def _is_plain(value: bytes) -> bool:
    return value.isascii() and b"\x1b" not in value


def _one_or_list(parts: list[str] | list[object]) -> object:
    return parts[0] if len(parts) == 1 else list(parts)


def _dummy(tag: int, vr: str) -> DataElement:
    if vr == "SQ":
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "REMOVED", "99GATEWAY", "Removed"
        return DataElement(tag, vr, Sequence([code]))
    return DataElement(tag, vr, values.DUMMIES[vr])
