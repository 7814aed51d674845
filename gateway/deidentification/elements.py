"""Reading the elements of a data set without changing it: decoded only where needed, and never trusted."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import cast

from pydicom import DataElement, Dataset
from pydicom.charset import default_encoding
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue

from gateway.deidentification.values import vr_in_dictionary, vr_of

Element = DataElement | RawDataElement

UNREADABLE = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, OSError, EOFError),
    *(NotImplementedError, RecursionError, struct.error, BytesLengthException),
)
"""What pydicom raises for a value that is not what it says it is."""

_TEXT_VRS = frozenset(["CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"])
_ITEM = b"\xfe\xff\x00\xe0"


def element_of(source: Dataset, tag: int) -> Element | None:
    """The element as it was read, None if there is none; what was left in the file is read now."""
    element = source.get_item(tag, keep_deferred=True)
    if isinstance(element, RawDataElement) and element.value is None and element.length:
        element = source[tag]
    return element if isinstance(element, DataElement | RawDataElement) else None


def empty_like(source: Dataset) -> Dataset:
    """An empty data set that writes undecoded elements of `source` as they are."""
    copy = Dataset()
    implicit, little = source.original_encoding
    copy.set_original_encoding(implicit, little, source.original_character_set or default_encoding)
    return copy


def is_empty(element: Element) -> bool:
    """Whether the element has no value."""
    if isinstance(element, RawDataElement):
        return not element.value
    return element.is_empty


def decoded(source: Dataset, element: Element) -> DataElement | None:
    """The element as Python objects, None if it cannot be read; `source` keeps its undecoded one.

    A sequence of VR UN is read as PS3.5 6.2.2 says: implicit VR, little endian.
    """
    if isinstance(element, DataElement):
        return element
    if element.VR == "UN" and isinstance(element.value, bytes) and element.value[:4] == _ITEM:
        element = element._replace(VR="SQ", is_implicit_VR=True, is_little_endian=True)
    elif element.VR in (None, "UN") and not int(element.tag) >> 16 & 1:
        element = element._replace(VR=_definite_vr(source, int(element.tag)) or element.VR)
    try:
        return convert_raw_data_element(element, encoding=_encoding_of(source), ds=source)
    except UNREADABLE:
        return None


def _definite_vr(source: Dataset, tag: int) -> str | None:
    """The VR of an attribute whose VR the dictionary leaves open; None for the others."""
    try:
        known = vr_in_dictionary(tag)
    except KeyError:
        return None
    if " or " not in known:
        return None
    if "OW" in known:
        return "OW"
    return "SS" if number_of(source, 0x00280103, 0) == 1 else "US"


def _encoding_of(source: Dataset) -> list[str]:
    encoding = source.original_character_set or default_encoding
    return [encoding] if isinstance(encoding, str) else list(encoding)


def texts(element: Element) -> list[str]:
    """The values of an element of a text VR, without padding; not decoded ones as ASCII."""
    value = element.value
    if isinstance(value, bytes):
        value = value.decode("ascii", "backslashreplace").split("\\")
    parts: Iterable[object] = value if isinstance(value, MultiValue | list | tuple) else [value]
    return ["" if part is None else str(part).strip(" \x00") for part in parts]


def text_of(source: Dataset, tag: int) -> str:
    """The first value of an element, or the empty text."""
    element = source.get_item(tag, keep_deferred=True)
    return texts(element)[0] if isinstance(element, DataElement | RawDataElement) and not is_empty(element) else ""


def decoded_text_of(source: Dataset, tag: int) -> str:
    """All of an element's text in the character set of its data set, so that it is the same in every one."""
    element = source.get_item(tag, keep_deferred=True)
    if not isinstance(element, DataElement | RawDataElement) or is_empty(element):
        return ""
    if isinstance(element, RawDataElement) and element.VR in _TEXT_VRS and _is_plain(element.value):
        return "\\".join(texts(element))
    readable = decoded(source, element)
    return "\\".join(texts(element if readable is None else readable))


def _is_plain(value: bytes | None) -> bool:
    """Whether the bytes are the same text in every character set."""
    return value is not None and value.isascii() and b"\x1b" not in value


def number_of(source: Dataset, tag: int, default: int) -> int:
    """A whole number from an element of a number VR, or `default`."""
    element = source.get_item(tag, keep_deferred=True)
    if not isinstance(element, DataElement | RawDataElement) or is_empty(element):
        return default
    if isinstance(element, RawDataElement) and (element.VR or vr_of(tag)) == "US":
        return int.from_bytes(cast(bytes, element.value)[:2], "little" if element.is_little_endian else "big")
    try:
        return int(texts(element)[0])
    except ValueError:
        return default


def items_of(source: Dataset, tag: int) -> list[Dataset]:
    """The items of a sequence, none if there is no such sequence."""
    element = element_of(source, tag)
    readable = None if element is None or is_empty(element) else decoded(source, element)
    return list(readable.value) if readable is not None and readable.VR == "SQ" else []
