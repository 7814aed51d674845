"""Command sets, held against pynetdicom's and pydicom's."""

from __future__ import annotations

import struct
from io import BytesIO

import pytest
from pydicom.uid import CTImageStorage, generate_uid
from pynetdicom.dimse_messages import C_STORE_RSP, N_EVENT_REPORT_RSP
from pynetdicom.dsutils import decode
from pynetdicom.pdu import P_DATA_TF
from wire import command_set

from gateway import dimse
from gateway.acse import ProtocolError

INSTANCE = str(generate_uid())


STORE = command_set(
    AffectedSOPClassUID=CTImageStorage,
    CommandField=1,
    MessageID=7,
    Priority=2,
    CommandDataSetType=0,
    AffectedSOPInstanceUID=INSTANCE,
    MoveOriginatorApplicationEntityTitle="PACS",
    MoveOriginatorMessageID=3,
)


def test_a_store_command_is_read() -> None:
    command = dimse.read_command(STORE)
    assert (command.command_field, command.message_id, command.has_data_set) == (1, 7, True)
    assert (command.sop_class_uid, command.sop_instance_uid) == (CTImageStorage, INSTANCE)


def test_requested_uids_and_action_type_are_read() -> None:
    command = dimse.read_command(
        command_set(
            RequestedSOPClassUID="1.2.840.10008.1.20.1",
            CommandField=0x0130,
            MessageID=1,
            CommandDataSetType=1,
            RequestedSOPInstanceUID="1.2.840.10008.1.20.1.1",
            ActionTypeID=1,
        )
    )
    assert (command.sop_class_uid, command.sop_instance_uid) == ("1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1")
    assert command.type_id == 1


@pytest.mark.parametrize("comment", ["", "a reason", "an odd one"])
def test_pynetdicom_reads_the_response(comment: str) -> None:
    content = dimse.response(dimse.read_command(STORE), 0xC000, comment)
    message = C_STORE_RSP()
    message.command_set = decode(BytesIO(content), True, True)
    primitive = message.message_to_primitive()
    assert (primitive.MessageIDBeingRespondedTo, primitive.Status) == (7, 0xC000)
    assert (primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID) == (CTImageStorage, INSTANCE)
    assert message.command_set.CommandGroupLength == len(content) - 12
    assert message.command_set.get("ErrorComment", "") == comment


def test_pynetdicom_reads_an_event_response() -> None:
    command = dimse.read_command(
        command_set(
            AffectedSOPClassUID="1.2.840.10008.1.20.1",
            CommandField=0x0100,
            MessageID=5,
            CommandDataSetType=0,
            AffectedSOPInstanceUID="1.2.840.10008.1.20.1.1",
            EventTypeID=2,
        )
    )
    message = N_EVENT_REPORT_RSP()
    message.command_set = decode(BytesIO(dimse.response(command, 0)), True, True)
    primitive = message.message_to_primitive()
    assert (primitive.Status, primitive.EventTypeID, primitive.MessageIDBeingRespondedTo) == (0, 2, 5)


@pytest.mark.parametrize("maximum_length", [0, 7, 20, 64, 1 << 17])
def test_fragments_fit_the_peers_maximum(maximum_length: int) -> None:
    content = dimse.response(dimse.read_command(STORE), 0, "comment")
    stream = dimse.command_pdus(content, 5, maximum_length)
    position, values = 0, []
    while position < len(stream):
        (length,) = struct.unpack_from(">L", stream, position + 2)
        assert maximum_length == 0 or length <= max(maximum_length, 7)
        pdu = P_DATA_TF()
        pdu.decode(stream[position : position + 6 + length])
        values += [(each.context_id, each.presentation_data_value) for each in pdu.presentation_data_value_items]
        position += 6 + length
    assert {context for context, _ in values} == {5}
    assert b"".join(value[1:] for _, value in values) == content
    assert [value[0] for _, value in values] == [1] * (len(values) - 1) + [3]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (STORE[:-1], "malformed"),
        (STORE + b"\0\0", "cut"),
        (b"\x08\0\0\0\0\0\0\0" + STORE, "malformed"),
        (b"", "without Command Field"),
        (struct.pack("<HHL", 0, 0x0100, 4) + bytes(4), "of 4 bytes"),
        (struct.pack("<HHL", 0, 0x0100, 0xFFFFFFFF), "malformed"),
    ],
)
def test_what_is_no_command_set_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        dimse.read_command(content)
