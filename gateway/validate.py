"""Is a received data set whole, and whose is it? Read before Success is answered, without loading pixel data.

The file is mapped, not read: the walk touches the header of each element and item and jumps over the values, so that a
1 GB object costs no more memory than a small one. Every length is held against what is there, to the last byte.

What pydicom reads with leniency is accepted here too (a single element or a sequence in implicit VR inside an explicit
data set, tags out of order): the gateway stores what it was sent. What ends early, overlaps, or lacks the four UIDs
that every composite instance has is not understood.

References
----------
PS3.5 section 7.1 (data elements), 7.5 (sequences), 6.2.2 (UN), 9.1 (UIDs), Annex A (transfer syntaxes).
"""

from __future__ import annotations

import mmap
import re
import struct
import tempfile
import zlib
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from pydicom import Dataset
from pydicom._dicom_dict import DicomDictionary
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import RawDataElement, empty_value_for_VR
from pydicom.tag import BaseTag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, STANDARD_VR

from gateway.errors import NotUnderstoodError, OutOfResourcesError

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNDEFINED = 0xFFFFFFFF
_ITEM = 0xFFFEE000
_ITEM_END = 0xFFFEE00D
_SEQUENCE_END = 0xFFFEE0DD
_PIXEL_GROUP = 0x7FE0
_SPECIFIC_CHARACTER_SET = 0x00080005
_DELIMITER_GROUP = 0xFFFE

_LONG_VRS = frozenset(str(vr).encode() for vr in EXPLICIT_VR_LENGTH_32)
_KNOWN_VRS = frozenset(str(vr).encode() for vr in STANDARD_VR)
_SEQUENCE_TAGS = frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ")
_KEPT_VALUE_BYTES = 1 << 16
"""Longer values are not kept in :attr:`Inspection.header`: no attribute that routing or the worklist reads is."""

UID_PATTERN = re.compile(r"[0-9.]{1,64}\Z")
"""What is stored as a UID. Looser than PS3.5 section 9.1 (components may start with 0), since devices are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a header may cost. Pixel data (group 7FE0) counts towards none of these."""

    depth: int = 48
    """Nested sequences. pydicom reads recursively and fails near 300; real reports stay under 20."""
    elements: int = 2_000_000
    header_bytes: int = 256 << 20
    inflated_bytes: int = 2 << 30
    """Of a deflated data set: a bomb ends here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How a transfer syntax encodes a data set."""

    implicit: bool = False
    little_endian: bool = True
    deflated: bool = False


_ENCODINGS: Mapping[str, Encoding] = {
    # PS3.5 Annex A; UIDs in PS3.6 Table A-1.
    "1.2.840.10008.1.2": Encoding(implicit=True),
    "1.2.840.10008.1.2.1": Encoding(),
    "1.2.840.10008.1.2.1.98": Encoding(),
    "1.2.840.10008.1.2.1.99": Encoding(deflated=True),
    "1.2.840.10008.1.2.2": Encoding(little_endian=False),
    "1.2.840.10008.1.2.4.95": Encoding(deflated=True),
    "1.2.840.10008.1.2.4.205": Encoding(deflated=True),
    "1.2.840.10008.1.2.5": Encoding(),
    "1.2.840.10008.1.2.8.1": Encoding(),
}
_ENCAPSULATED_ROOT = "1.2.840.10008.1.2.4."


def encoding_of(transfer_syntax_uid: str) -> Encoding | None:
    """How the transfer syntax encodes a data set; ``None`` when the gateway does not know.

    All syntaxes under 1.2.840.10008.1.2.4 (JPEG, JPEG-LS, JPEG 2000, HTJ2K, JPEG XL, MPEG, HEVC), those to come
    included, are explicit VR little endian with encapsulated pixel data by PS3.5 Annex A.4.
    """
    known = _ENCODINGS.get(transfer_syntax_uid)
    if known is None and transfer_syntax_uid.startswith(_ENCAPSULATED_ROOT):
        return Encoding()
    return known


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What the gateway needs to know of an instance before it answers. Holds PHI."""

    header: Dataset
    """Top-level attributes without sequences, pixel data and values over 64 KiB."""
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str


def inspect(path: Path, *, offset: int, transfer_syntax_uid: str, limits: Limits | None = None) -> Inspection:
    """Walk the data set that starts at `offset` in the file and say whose it is.

    Raises
    ------
    NotUnderstoodError
        It is truncated, malformed, over a limit, or lacks a UID that every composite instance has; the message says
        where, by tag and byte, and holds no value.
    OutOfResourcesError
        A deflated data set could not be inflated for want of space.
    """
    limits = limits or Limits()
    encoding = encoding_of(transfer_syntax_uid)
    if encoding is None:
        raise NotUnderstoodError(f"unknown transfer syntax {transfer_syntax_uid}")
    with path.open("rb") as stream:
        if encoding.deflated:
            with _inflated(stream, offset, path, limits) as inflated:
                return _inspect_stream(inflated, 0, encoding, limits)
        return _inspect_stream(stream, offset, encoding, limits)


def _inspect_stream(stream: IO[bytes], offset: int, encoding: Encoding, limits: Limits) -> Inspection:
    try:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            walk = _Walk(buffer=buffer, encoding=encoding, limits=limits)
            walk.whole(offset)
            header = _header(walk.kept, encoding)
    except ValueError as error:  # mmap of an empty file
        raise NotUnderstoodError("the data set is empty") from error
    return Inspection(
        header=header,
        sop_class_uid=_uid(walk.kept, 0x00080016, "SOP Class UID"),
        sop_instance_uid=_uid(walk.kept, 0x00080018, "SOP Instance UID"),
        study_instance_uid=_uid(walk.kept, 0x0020000D, "Study Instance UID"),
        series_instance_uid=_uid(walk.kept, 0x0020000E, "Series Instance UID"),
    )


def _header(kept: Mapping[int, RawDataElement], encoding: Encoding) -> Dataset:
    header = Dataset({BaseTag(tag): element for tag, element in kept.items()})
    named = kept.get(_SPECIFIC_CHARACTER_SET)
    names = bytes(named.value or b"").decode("ascii", "replace").strip(" \0").split("\\") if named else [""]
    try:
        character_set = convert_encodings([name.strip() for name in names])
    except LookupError:
        character_set = [default_encoding]
    header.set_original_encoding(encoding.implicit, encoding.little_endian, character_set)
    return header


def _uid(kept: Mapping[int, RawDataElement], tag: int, name: str) -> str:
    element = kept.get(tag)
    if element is None or not element.value:
        raise NotUnderstoodError(f"the data set has no {name}")
    text = bytes(element.value).decode("ascii", "replace").rstrip("\0 ")
    if UID_PATTERN.match(text) is None:
        raise NotUnderstoodError(f"the {name} is not a UID of at most 64 digits and dots")
    return text


@contextmanager
def _inflated(stream: IO[bytes], offset: int, path: Path, limits: Limits) -> Iterator[IO[bytes]]:
    """The inflated data set (PS3.5 section A.5, raw deflate) as a file without a name beside `path`."""
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    total = 0
    stream.seek(offset)
    with tempfile.TemporaryFile(dir=path.parent) as inflated:
        try:
            while not decompressor.eof:
                chunk = decompressor.unconsumed_tail or stream.read(1 << 16)
                if not chunk:
                    raise NotUnderstoodError("the deflated data set is truncated")
                piece = decompressor.decompress(chunk, 1 << 20)
                total += len(piece)
                if total > limits.inflated_bytes:
                    raise NotUnderstoodError(f"the data set inflates to more than {limits.inflated_bytes} bytes")
                inflated.write(piece)
            inflated.flush()
        except zlib.error as error:
            raise NotUnderstoodError("the deflated data set is damaged") from error
        except OSError as error:
            raise OutOfResourcesError(f"no space to inflate the data set: {error.strerror}") from error
        yield inflated


@dataclass(slots=True, kw_only=True)
class _Walk:
    """One pass over a data set."""

    buffer: mmap.mmap
    encoding: Encoding
    limits: Limits
    kept: dict[int, RawDataElement] = field(default_factory=dict)
    elements: int = 0
    header_bytes: int = 0
    tag_and_length: struct.Struct = field(init=False)
    short_length: struct.Struct = field(init=False)
    long_length: struct.Struct = field(init=False)

    def __post_init__(self) -> None:
        endian = "<" if self.encoding.little_endian else ">"
        self.tag_and_length = struct.Struct(f"{endian}HHI")
        self.short_length = struct.Struct(f"{endian}H")
        self.long_length = struct.Struct(f"{endian}I")

    def whole(self, offset: int) -> None:
        """Walk the data set from `offset` to the end of the file."""
        end = len(self.buffer)
        if offset >= end:
            raise NotUnderstoodError("the data set is empty")
        self.data_set(offset, end, implicit=self.encoding.implicit, depth=0, delimited=False)

    def data_set(self, position: int, end: int, *, implicit: bool, depth: int, delimited: bool) -> int:
        """Walk elements from `position` to `end`, or to an Item Delimitation Item; returns where it stopped."""
        tag = 0
        while position < end:
            start = position
            if end - position < 8:
                if depth == 0 and tag >> 16 >= _PIXEL_GROUP and not any(self.buffer[position:end]):
                    return end  # some senders pad what follows pixel data with zeros
                raise self._truncated(position, 0)
            tag, vr, length, position, element_implicit = self._element_header(position, end, implicit)
            group = tag >> 16
            if tag == _ITEM_END and delimited:
                if length:
                    raise NotUnderstoodError(f"an item delimiter with a length at byte {start}")
                return position
            if group == _DELIMITER_GROUP or (depth == 0 and group < 0x0008 and group != 0x0004):
                raise NotUnderstoodError(f"{_text(tag)} at byte {start} cannot stand in a data set")
            self.elements += 1
            if self.elements > self.limits.elements:
                raise NotUnderstoodError(f"more than {self.limits.elements} data elements")
            value = position
            position = self._value(tag, vr, length, value, end, element_implicit, depth)
            if depth == 0:
                self._note(tag, vr, length, value, position, element_implicit)
        if delimited:
            raise NotUnderstoodError(f"the data set ends inside a sequence item, at byte {end}")
        return position

    def _element_header(self, position: int, end: int, implicit: bool) -> tuple[int, bytes | None, int, int, bool]:
        """Tag, VR (``None`` in implicit VR), length, where the value starts, and whether it was implicit VR."""
        group, number, length = self.tag_and_length.unpack_from(self.buffer, position)
        tag = group << 16 | number
        if implicit or group == _DELIMITER_GROUP:
            return tag, None, length, position + 8, implicit
        vr = self.buffer[position + 4 : position + 6]
        if vr in _LONG_VRS:
            if end - position < 12:
                raise self._truncated(position, tag)
            return tag, vr, self.long_length.unpack_from(self.buffer, position + 8)[0], position + 12, False
        if vr in _KNOWN_VRS or b"AA" <= vr <= b"ZZ":
            return tag, vr, self.short_length.unpack_from(self.buffer, position + 6)[0], position + 8, False
        # Some writers switch to implicit VR inside an explicit data set; pydicom reads that, so it is whole.
        return tag, None, length, position + 8, True

    def _value(
        self, tag: int, vr: bytes | None, length: int, position: int, end: int, implicit: bool, depth: int
    ) -> int:
        """Walk or jump over a value; returns where the next element starts."""
        is_sequence = vr == b"SQ" or (vr is None and tag in _SEQUENCE_TAGS)
        if length != _UNDEFINED:
            stop = position + length
            if stop > end:
                raise self._truncated(position, tag)
            if is_sequence:
                self._sequence(tag, position, stop, implicit, depth + 1, delimited=False)
            return stop
        if is_sequence or vr == b"UN" or (vr is None and tag >> 16 != _PIXEL_GROUP):
            # UN of undefined length holds implicit VR items whatever surrounds it (PS3.5 section 6.2.2, note 2), but
            # some writers keep to explicit VR.
            item_implicit = implicit or (vr == b"UN" and not self._looks_explicit(position, end))
            return self._sequence(tag, position, end, item_implicit, depth + 1, delimited=True)
        return self._fragments(tag, position, end)

    def _looks_explicit(self, position: int, end: int) -> bool:
        """Whether the first element of the first item at `position` carries a VR."""
        return position + 14 <= end and self.buffer[position + 12 : position + 14] in _KNOWN_VRS

    def _sequence(self, tag: int, position: int, end: int, implicit: bool, depth: int, *, delimited: bool) -> int:
        """Walk items to `end`, or to a Sequence Delimitation Item (PS3.5 section 7.5)."""
        if depth > self.limits.depth:
            raise NotUnderstoodError(f"sequences are nested deeper than {self.limits.depth}")
        while position < end:
            if end - position < 8:
                raise self._truncated(position, tag)
            group, number, length = self.tag_and_length.unpack_from(self.buffer, position)
            position += 8
            mark = group << 16 | number
            if mark == _SEQUENCE_END and delimited:
                return position
            if mark != _ITEM:
                raise NotUnderstoodError(f"sequence {_text(tag)} has no item at byte {position - 8}")
            if length == _UNDEFINED:
                position = self.data_set(position, end, implicit=implicit, depth=depth, delimited=True)
                continue
            if position + length > end:
                raise self._truncated(position, tag)
            position = self.data_set(position, position + length, implicit=implicit, depth=depth, delimited=False)
        if delimited:
            raise self._truncated(position, tag)
        return position

    def _fragments(self, tag: int, position: int, end: int) -> int:
        """Jump over the fragments of encapsulated pixel data (PS3.5 section A.4)."""
        while end - position >= 8:
            group, number, length = self.tag_and_length.unpack_from(self.buffer, position)
            position += 8
            mark = group << 16 | number
            if mark == _SEQUENCE_END:
                return position
            if mark != _ITEM or length == _UNDEFINED:
                raise NotUnderstoodError(f"{_text(tag)} has no fragment at byte {position - 8}")
            position += length
        raise self._truncated(position, tag)

    def _note(self, tag: int, vr: bytes | None, length: int, value: int, stop: int, implicit: bool) -> None:
        """Count a top-level element, and keep it where routing or the worklist may read it."""
        if tag >> 16 == _PIXEL_GROUP:
            return
        self.header_bytes += stop - value
        if self.header_bytes > self.limits.header_bytes:
            raise NotUnderstoodError(f"a header of more than {self.limits.header_bytes} bytes")
        is_sequence = vr in (b"SQ", b"UN") or (vr is None and tag in _SEQUENCE_TAGS)
        if is_sequence or length > _KEPT_VALUE_BYTES:
            return
        text = vr.decode("ascii") if vr else None
        self.kept[tag] = RawDataElement(
            BaseTag(tag),
            text,
            length,
            self.buffer[value:stop] if length else cast(bytes | None, empty_value_for_VR(text, raw=True)),
            value,
            implicit,
            self.encoding.little_endian,
        )

    def _truncated(self, position: int, tag: int) -> NotUnderstoodError:
        where = f"in {_text(tag)} " if tag else ""
        return NotUnderstoodError(f"the data set is truncated {where}at byte {min(position, len(self.buffer))}")


def _text(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
