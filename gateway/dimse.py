"""DIMSE messages of a provider: command sets read and written, and cut into presentation data values.

References
----------
PS3.7 section 6.3 (command sets are Implicit VR Little Endian), section 9.3 and 10.3 (message fields), Annex C (status);
PS3.8 section 9.3.5 and Annex E (P-DATA-TF, message control header).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from gateway.acse import P_DATA_TF, ProtocolError

C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0FFF
N_EVENT_REPORT_RQ, N_ACTION_RQ = 0x0100, 0x0130
RESPONSE = 0x8000
COMMAND_FRAGMENT, LAST_FRAGMENT = 0x01, 0x02
"""Bits of the message control header."""
LONGEST_COMMAND_BYTES = 1 << 14

# Statuses: PS3.7 section 9.1.1.1.9, 10.1.1.1.8, 10.1.4.1.10 and Annex C. The intake's own are gateway.errors'.
SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
"""An error inside the gateway; nothing was stored."""
NO_SUCH_INSTANCE, NO_SUCH_EVENT_TYPE, INVALID_ARGUMENT_VALUE = 0x0112, 0x0113, 0x0115
CLASS_INSTANCE_CONFLICT = 0x0119
SOP_CLASS_NOT_SUPPORTED, NO_SUCH_ACTION = 0x0122, 0x0123
UNRECOGNISED_OPERATION, RESOURCE_LIMITATION = 0x0211, 0x0213

_NO_DATA_SET = 0x0101
_US = {0x0100, 0x0110, 0x0120, 0x0700, 0x0800, 0x0900, 0x1002, 0x1008}
_UI = {0x0002, 0x0003, 0x1000, 0x1001}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command set."""

    command_field: int
    message_id: int
    has_data_set: bool
    sop_class_uid: str
    """(0000,0002) *Affected SOP Class UID*, or (0000,0003) *Requested SOP Class UID*."""
    sop_instance_uid: str
    """(0000,1000) *Affected SOP Instance UID*, or (0000,1001) *Requested SOP Instance UID*."""
    type_id: int
    """(0000,1002) *Event Type ID* or (0000,1008) *Action Type ID*."""


def read_command(content: bytes) -> Command:
    """The command of a complete command set.

    Raises
    ------
    ProtocolError
        It is no command set, or lacks what every request has.
    """
    numbers: dict[int, int] = {}
    uids: dict[int, str] = {}
    position = 0
    while position < len(content):
        if len(content) - position < 8:
            raise ProtocolError("a cut command set")
        group, element, length = struct.unpack_from("<HHL", content, position)
        position += 8
        if group or length > len(content) - position:
            raise ProtocolError("a command set that is malformed")
        if element in _US:
            if length != 2:
                raise ProtocolError(f"a command element (0000,{element:04X}) of {length} bytes")
            (numbers[element],) = struct.unpack_from("<H", content, position)
        elif element in _UI:
            uids[element] = content[position : position + length].decode("latin-1").rstrip("\0 ")
        position += length
    if 0x0100 not in numbers or 0x0800 not in numbers:
        raise ProtocolError("a command set without Command Field or Command Data Set Type")
    return Command(
        command_field=numbers[0x0100],
        message_id=numbers.get(0x0110, 0),
        has_data_set=numbers[0x0800] != _NO_DATA_SET,
        sop_class_uid=uids.get(0x0002, "") or uids.get(0x0003, ""),
        sop_instance_uid=uids.get(0x1000, "") or uids.get(0x1001, ""),
        type_id=numbers.get(0x1002, numbers.get(0x1008, 0)),
    )


def response(command: Command, status: int, comment: str = "") -> bytes:
    """The command set that answers `command`; never with a data set."""
    elements = [
        _element(0x0002, _padded(command.sop_class_uid, b"\0")),
        _element(0x0100, struct.pack("<H", command.command_field | RESPONSE)),
        _element(0x0120, struct.pack("<H", command.message_id)),
        _element(0x0800, struct.pack("<H", _NO_DATA_SET)),
        _element(0x0900, struct.pack("<H", status)),
    ]
    if comment:
        elements.append(_element(0x0902, _padded(comment, b" ")))
    if command.sop_instance_uid:
        elements.append(_element(0x1000, _padded(command.sop_instance_uid, b"\0")))
    if command.command_field in (N_EVENT_REPORT_RQ, N_ACTION_RQ):
        element = 0x1002 if command.command_field == N_EVENT_REPORT_RQ else 0x1008
        elements.append(_element(element, struct.pack("<H", command.type_id)))
    body = b"".join(elements)
    return _element(0x0000, struct.pack("<L", len(body))) + body


def _element(element: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, element, len(value)) + value


def _padded(text: str, padding: bytes) -> bytes:
    value = text.encode("latin-1", "replace")
    return value + padding if len(value) % 2 else value


def command_pdus(content: bytes, context_id: int, maximum_length: int) -> bytes:
    """P-DATA-TF PDUs of a command set, none longer than the peer's `maximum_length` (0: any)."""
    room = len(content) if maximum_length == 0 else max(1, min(len(content), maximum_length - 6))
    pdus = bytearray()
    for start in range(0, len(content), room):
        piece = content[start : start + room]
        control = COMMAND_FRAGMENT | (LAST_FRAGMENT if start + room >= len(content) else 0)
        pdus += struct.pack(">BxLLBB", P_DATA_TF, len(piece) + 6, len(piece) + 2, context_id, control) + piece
    return bytes(pdus)
