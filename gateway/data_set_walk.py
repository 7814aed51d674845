"""One pass over the bytes of a data set: every length held against what is there, no value decoded.

The header of each element and item is read and its value jumped over, so that a 1 GB object costs no more than a small
one. This runs on every object before it is acknowledged, so the loop is one function, with struct's compiled formats.

What pydicom reads with leniency is accepted here too (a single element or a sequence in implicit VR inside an explicit
data set, tags out of order): the gateway stores what it was sent.

References
----------
PS3.5 section 7.1 (data elements), 7.5 (sequences), 6.2.2 (UN), A.4 (encapsulated pixel data).
"""

from __future__ import annotations

import codecs
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from pydicom import Dataset
from pydicom._dicom_dict import DicomDictionary
from pydicom.charset import convert_encodings, default_encoding, python_encoding
from pydicom.dataelem import RawDataElement, empty_value_for_VR
from pydicom.tag import BaseTag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, STANDARD_VR

from gateway.errors import NotUnderstoodError

_UNDEFINED = 0xFFFFFFFF
_ITEM = 0xFFFEE000
_ITEM_END = 0xFFFEE00D
_SEQUENCE_END = 0xFFFEE0DD
_PIXEL_GROUP = 0x7FE0
_SPECIFIC_CHARACTER_SET = 0x00080005
_DELIMITER_GROUP = 0xFFFE
_PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})

_LENGTH_BYTES: Mapping[bytes, int] = {
    str(vr).encode(): 4 if vr in EXPLICIT_VR_LENGTH_32 else 2 for vr in (*STANDARD_VR, *EXPLICIT_VR_LENGTH_32)
}
"""How long the length field of each VR is (PS3.5 section 7.1.2)."""
_SEQUENCE_TAGS = frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ")
_CHARACTER_SET_VRS = frozenset({None, b"CS", b"UN", b"LO", b"SH"})
_NO_CHARACTER_SETS = frozenset({"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"})
_OPAQUE_VRS = (None, b"UN")
_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_KEPT_VALUE_BYTES = 1 << 16
"""Longer values are not kept: no attribute that routing or the worklist reads is."""

_Kept = tuple[bytes | None, bytes, int, bool]
"""VR (``None`` in implicit VR), value, where it stood, whether it was in implicit VR."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a header may cost. Pixel data (group 7FE0) counts towards none but the last two."""

    depth: int = 48
    """Nested sequences. pydicom reads recursively and fails near 300; real reports stay under 20."""
    elements: int = 1_000_000
    header_bytes: int = 256 << 20
    inflated_bytes: int = 1 << 30
    """Of a deflated data set."""
    inflated_freely_bytes: int = 256 << 20
    """A deflated data set may become this long whatever it was; longer, only :attr:`inflation` times as long as it was.
    Deflate packs zeros by 1032: a bomb must be sent at a tenth of the size that it wants to have."""
    inflation: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How a transfer syntax encodes a data set."""

    implicit: bool = False
    little_endian: bool = True
    deflated: bool = False


class HeaderElements(dict[int, object]):
    """Elements by tag as pydicom keeps them undecoded, each made when it is asked for: most never are."""

    def __init__(self, kept: Mapping[int, _Kept], *, little_endian: bool) -> None:
        super().__init__(kept)
        self._little_endian = little_endian

    def __getitem__(self, tag: int) -> object:
        found = super().__getitem__(tag)
        if type(found) is tuple:
            found = self._raw(tag, found)
            self[tag] = found
        return found

    def get(self, tag: int, default: object = None) -> object:
        try:
            return self[tag]
        except KeyError:
            return default

    def values(self) -> Iterator[object]:  # type: ignore[override]
        return (self[tag] for tag in self)

    def items(self) -> Iterator[tuple[int, object]]:  # type: ignore[override]
        return ((tag, self[tag]) for tag in self)

    def copy(self) -> dict[int, object]:
        return dict(self.items())

    def _raw(self, tag: int, kept: _Kept) -> RawDataElement:
        vr, value, position, implicit = kept
        text = vr.decode("ascii") if vr else None
        return RawDataElement(
            BaseTag(tag),
            text,
            len(value),
            value or cast(bytes | None, empty_value_for_VR(text, raw=True)),
            position,
            implicit,
            self._little_endian,
        )


def header_of(kept: Mapping[int, _Kept], encoding: Encoding) -> Dataset:
    """The kept elements as a data set, whose character sets pydicom decodes."""
    header = Dataset(HeaderElements(kept, little_endian=encoding.little_endian))  # type: ignore[arg-type]
    named = kept.get(_SPECIFIC_CHARACTER_SET)
    names = named[1].decode("ascii", "replace").strip(" \0").split("\\") if named else [""]
    try:
        character_set = convert_encodings([name.strip() for name in names])
    except (LookupError, ValueError):  # a name with a NUL in it is a ValueError
        character_set = [default_encoding]
    header.set_original_encoding(encoding.implicit, encoding.little_endian, character_set)
    return header


def _require_character_set(vr: bytes | None, value: bytes) -> None:
    """Refuse a (0008,0005) *Specific Character Set* that no reader gets past.

    pydicom decodes it while it reads a data set, and takes what is no defined term for the name of one of Python's
    codecs: some of those decode no text, or take a time that grows with the square of its length.
    """
    if vr not in _CHARACTER_SET_VRS:
        raise NotUnderstoodError("the Specific Character Set is not of VR CS")
    for name in value.decode("latin-1").rstrip("\0 ").split("\\"):
        if name.strip() in python_encoding:
            continue
        try:
            codec = codecs.lookup(name.strip())
        except LookupError:
            continue  # pydicom falls back to its default
        except ValueError as error:
            raise NotUnderstoodError("the Specific Character Set is malformed") from error
        if codec.name.replace("_", "-") in _NO_CHARACTER_SETS or not codec._is_text_encoding:
            raise NotUnderstoodError("the Specific Character Set is no character set")


@dataclass(slots=True, kw_only=True)
class Walk:
    """One pass over a data set; :meth:`whole` makes it, the other attributes are what it found."""

    buffer: mmap.mmap | bytes
    encoding: Encoding
    limits: Limits
    may_be_padded: bool = False
    """Whether zeros may follow the last element, as some writers leave them."""
    kept: dict[int, _Kept] = field(default_factory=dict)
    """Top-level elements that are no sequences, no pixel data and no longer than 64 KiB."""
    last_tag: int = 0
    """The highest tag at the top level."""
    pixel_bytes: int | None = None
    """Length of top-level pixel data in native form; ``None`` without."""
    elements: int = 0
    header_bytes: int = 0
    too_deep: bool = False
    _explicit: struct.Struct = field(init=False)
    _implicit: struct.Struct = field(init=False)
    _long: struct.Struct = field(init=False)

    def __post_init__(self) -> None:
        endian = "<" if self.encoding.little_endian else ">"
        self._explicit = struct.Struct(f"{endian}HH2sH")
        self._implicit = struct.Struct(f"{endian}HHI")
        self._long = struct.Struct(f"{endian}I")

    def whole(self, offset: int) -> None:
        """Walk the data set from `offset` to the end of the file.

        Raises
        ------
        NotUnderstoodError
            It ends early, overlaps, or is over a limit; the message says where, by tag and byte, and holds no value.
        """
        end = len(self.buffer)
        if offset >= end:
            raise NotUnderstoodError("the data set is empty")
        self._data_set(offset, end, self.encoding.implicit, 0, delimited=False)

    def _data_set(self, position: int, end: int, implicit: bool, depth: int, *, delimited: bool) -> int:
        """Walk elements from `position` to `end`, or to an Item Delimitation Item; returns where it stopped."""
        buffer, length_bytes, sequence_tags = self.buffer, _LENGTH_BYTES, _SEQUENCE_TAGS
        unpack_explicit, unpack_implicit, unpack_long = (
            self._explicit.unpack_from,
            self._implicit.unpack_from,
            self._long.unpack_from,
        )
        if end - position >= 6 and not (depth and implicit):
            # As pydicom does: the first element tells how all of a data set, or of an item, is encoded, whatever the
            # transfer syntax says; what would be read later in another way must not be walked in this one.
            implicit = not (0x40 < buffer[position + 4] < 0x5B and 0x40 < buffer[position + 5] < 0x5B)
        tag, vr, width = 0, None, 0
        while position < end:
            start = position
            if end - position < 8:
                if depth == 0 and tag >> 16 >= _PIXEL_GROUP and not any(buffer[position:end]):
                    return end  # some senders pad what follows pixel data with zeros
                raise self._truncated(position, 0)
            position += 8
            if implicit:
                group, number, length = unpack_implicit(buffer, start)
                element_implicit = True
            else:
                group, number, vr, length = unpack_explicit(buffer, start)
                element_implicit = False
                width = length_bytes.get(vr, 0)
                if width == 4:
                    if end - position < 4:
                        raise self._truncated(start, group << 16 | number)
                    length = unpack_long(buffer, position)[0]
                    position += 4
                elif width == 0 and not b"AA" <= vr <= b"ZZ":
                    # A delimiter; or one of the writers that switch to implicit VR inside an explicit data set, which
                    # pydicom reads, so that it is whole.
                    vr, element_implicit = None, group != _DELIMITER_GROUP
                    length = unpack_implicit(buffer, start)[2]
            tag = group << 16 | number
            if group >= _DELIMITER_GROUP or group < 8:
                if tag == _ITEM_END and delimited:
                    if length:
                        raise NotUnderstoodError(f"an item delimiter with a length at byte {start}")
                    return position
                if tag == 0 and depth == 0 and self.may_be_padded and not bytes(buffer[start:end]).strip(b"\0"):
                    return end
                if group == _DELIMITER_GROUP or (depth == 0 and group < 8 and group != 4):
                    raise NotUnderstoodError(f"{text_of(tag)} at byte {start} cannot stand in a data set")
            self.elements += 1
            if self.elements > self.limits.elements:
                raise NotUnderstoodError(f"more than {self.limits.elements} data elements")
            value = position
            is_sequence = vr == b"SQ" or (vr is None and tag in sequence_tags)
            if length == _UNDEFINED:
                position = self._undefined(tag, vr, value, end, element_implicit, depth, is_sequence=is_sequence)
            else:
                position = value + length
                if position > end:
                    raise self._truncated(value, tag)
                if is_sequence:
                    self._sequence(tag, value, position, element_implicit, depth + 1, delimited=False)
                elif tag == _SPECIFIC_CHARACTER_SET:
                    _require_character_set(vr, buffer[value:position])
                elif length >= 8 and vr in _OPAQUE_VRS and buffer[value : value + 4] in _ITEM_TAGS:
                    self._probe(tag, value, position, depth)
            if depth == 0:
                if tag > self.last_tag:
                    self.last_tag = tag
                if group != _PIXEL_GROUP:
                    self.header_bytes += position - value
                    if self.header_bytes > self.limits.header_bytes:
                        raise NotUnderstoodError(f"a header of more than {self.limits.header_bytes} bytes")
                    if length <= _KEPT_VALUE_BYTES and not is_sequence and vr != b"UN":
                        self.kept[tag] = (vr, buffer[value:position], value, element_implicit)
                elif tag in _PIXEL_TAGS:
                    self.pixel_bytes = None if length == _UNDEFINED else length
        if delimited:
            raise NotUnderstoodError(f"the data set is truncated inside a sequence item, at byte {end}")
        return position

    def _undefined(
        self, tag: int, vr: bytes | None, position: int, end: int, implicit: bool, depth: int, *, is_sequence: bool
    ) -> int:
        """Walk a value of undefined length; returns where it ends."""
        if is_sequence or vr == b"UN" or (vr is None and tag >> 16 != _PIXEL_GROUP):
            # UN of undefined length holds implicit VR items whatever surrounds it (PS3.5 section 6.2.2, note 2), but
            # some writers keep to explicit VR.
            item_implicit = implicit or (vr == b"UN" and not self._looks_explicit(position, end))
            return self._sequence(tag, position, end, item_implicit, depth + 1, delimited=True)
        return self._fragments(tag, position, end)

    def _looks_explicit(self, position: int, end: int) -> bool:
        """Whether the first element of the first item at `position` carries a VR."""
        return position + 14 <= end and self.buffer[position + 12 : position + 14] in _LENGTH_BYTES

    def _probe(self, tag: int, position: int, end: int, depth: int) -> None:
        """Look into a value that names itself no sequence but may be read as one, for its depth alone.

        pydicom reads UN, and private elements in implicit VR, as the sequences that its dictionaries say they are. What
        is then malformed it leaves as bytes; what is then too deep would end it.
        """
        for implicit in (True, False):
            try:
                self._sequence(tag, position, end, implicit, depth + 1, delimited=False)
            except NotUnderstoodError:
                if self.too_deep:
                    raise

    def _sequence(self, tag: int, position: int, end: int, implicit: bool, depth: int, *, delimited: bool) -> int:
        """Walk items to `end`, or to a Sequence Delimitation Item (PS3.5 section 7.5)."""
        if depth > self.limits.depth:
            self.too_deep = True
            raise NotUnderstoodError(f"sequences are nested deeper than {self.limits.depth}")
        unpack = self._implicit.unpack_from
        while position < end:
            if end - position < 8:
                raise self._truncated(position, tag)
            group, number, length = unpack(self.buffer, position)
            position += 8
            mark = group << 16 | number
            if mark == _SEQUENCE_END and delimited:
                return position
            if mark != _ITEM:
                raise NotUnderstoodError(f"sequence {text_of(tag)} has no item at byte {position - 8}")
            if length == _UNDEFINED:
                position = self._data_set(position, end, implicit, depth, delimited=True)
                continue
            if position + length > end:
                raise self._truncated(position, tag)
            position = self._data_set(position, position + length, implicit, depth, delimited=False)
        if delimited:
            raise self._truncated(position, tag)
        return position

    def _fragments(self, tag: int, position: int, end: int) -> int:
        """Jump over the fragments of encapsulated pixel data."""
        unpack = self._implicit.unpack_from
        while end - position >= 8:
            group, number, length = unpack(self.buffer, position)
            position += 8
            mark = group << 16 | number
            if mark == _SEQUENCE_END:
                return position
            if mark != _ITEM or length == _UNDEFINED:
                raise NotUnderstoodError(f"{text_of(tag)} has no fragment at byte {position - 8}")
            position += length
        raise self._truncated(position, tag)

    def _truncated(self, position: int, tag: int) -> NotUnderstoodError:
        where = f"in {text_of(tag)} " if tag else ""
        return NotUnderstoodError(f"the data set is truncated {where}at byte {min(position, len(self.buffer))}")


def text_of(tag: int) -> str:
    """A tag as it is written in the standard."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
