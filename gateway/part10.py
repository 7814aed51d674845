"""The head of a DICOM file, read as it arrives: preamble and File Meta Information, up to where the data set begins.

References
----------
PS3.10 section 7.1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from gateway.errors import NotUnderstoodError
from gateway.validate import UID_PATTERN, encoding_of

LONGEST_HEAD_BYTES = 64 * 1024
_PREAMBLE_BYTES = 132
_GROUP_LENGTH, _SOP_CLASS, _SOP_INSTANCE, _TRANSFER_SYNTAX = 0x0000, 0x0002, 0x0003, 0x0010
_LONG_VRS = frozenset({b"OB", b"OW", b"UN", b"UT", b"SQ", b"OD", b"OF", b"OL", b"OV", b"UC", b"UR", b"SV", b"UV"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHead:
    """Whose data set follows, by the file's own word. A text is empty where the file has none that is a UID."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


class HeadReader:
    """Takes the first bytes of a file until its data set begins."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = _PREAMBLE_BYTES
        self._uids: dict[int, str] = {}
        self._declared_end = 0

    def feed(self, piece: memoryview) -> tuple[FileHead, memoryview] | None:
        """Read on; gives the head and what of the data set is there already, once the head has ended.

        Raises
        ------
        NotUnderstoodError
            It is not a DICOM file, or its head is malformed or over :data:`LONGEST_HEAD_BYTES`.
        """
        taken = min(len(piece), LONGEST_HEAD_BYTES + 12 - len(self._buffer))
        self._buffer += piece[:taken]
        if not self._walk():
            if taken < len(piece):
                raise NotUnderstoodError(f"file meta information of more than {LONGEST_HEAD_BYTES} bytes")
            return None
        rest = bytes(self._buffer[self._position :]) + bytes(piece[taken:])
        return self.head, memoryview(rest)

    def end(self) -> FileHead:
        """The file has ended before its data set began.

        Raises
        ------
        NotUnderstoodError
            Always, for that reason or an earlier one.
        """
        if len(self._buffer) < _PREAMBLE_BYTES:
            raise NotUnderstoodError("not a DICOM file: it has no preamble")
        raise NotUnderstoodError("the data set is empty")

    @property
    def head(self) -> FileHead:
        """What is known so far."""
        return FileHead(
            sop_class_uid=self._uids.get(_SOP_CLASS, ""),
            sop_instance_uid=self._uids.get(_SOP_INSTANCE, ""),
            transfer_syntax_uid=self._uids.get(_TRANSFER_SYNTAX, ""),
        )

    def _walk(self) -> bool:
        """Go over whole elements of group 0002 (explicit VR little endian); whether the head has ended."""
        buffer = self._buffer
        if len(buffer) < _PREAMBLE_BYTES:
            return False
        if buffer[128:132] != b"DICM":
            raise NotUnderstoodError("not a DICOM file: no 'DICM' after the preamble")
        while not self._is_over():
            position = self._position
            if len(buffer) - position < 8:
                return False
            vr = bytes(buffer[position + 4 : position + 6])
            if vr in _LONG_VRS:
                if len(buffer) - position < 12:
                    return False
                value = position + 12
                length = struct.unpack_from("<I", buffer, position + 8)[0]
            else:
                value = position + 8
                length = struct.unpack_from("<H", buffer, position + 6)[0]
            if value + length > LONGEST_HEAD_BYTES:
                raise NotUnderstoodError(f"file meta information of more than {LONGEST_HEAD_BYTES} bytes")
            if len(buffer) < value + length:
                return False
            self._note(struct.unpack_from("<H", buffer, position + 2)[0], bytes(buffer[value : value + length]))
            self._position = value + length
        return True

    def _is_over(self) -> bool:
        """Whether the data set begins at the position.

        By its group, since group lengths are wrong in practice; but a deflated data set may begin with any bytes, so
        there the declared length decides.
        """
        encoding = encoding_of(self._uids.get(_TRANSFER_SYNTAX, ""))
        if encoding is not None and encoding.deflated and self._declared_end:
            return self._position >= self._declared_end
        following = self._buffer[self._position : self._position + 2]
        return len(following) == 2 and following != b"\x02\x00"

    def _note(self, number: int, value: bytes) -> None:
        if number == _GROUP_LENGTH and len(value) == 4:
            self._declared_end = self._position + 12 + struct.unpack("<I", value)[0]
        elif number in (_SOP_CLASS, _SOP_INSTANCE, _TRANSFER_SYNTAX):
            text = value.decode("ascii", "replace").rstrip("\0 ")
            if UID_PATTERN.match(text):
                self._uids[number] = text
