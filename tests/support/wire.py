"""PDUs and command sets as a peer makes them, by pynetdicom's and pydicom's hand."""

from __future__ import annotations

import struct

from pydicom import Dataset
from pynetdicom.dsutils import encode
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import build_context

FIND = "1.2.840.10008.5.1.4.1.2.2.1"


def request_pdu(contexts: list[tuple[str, list[str]]], *, roles: dict[str, tuple[bool, bool]] | None = None) -> bytes:
    """An A-ASSOCIATE-RQ of pynetdicom's making, with all that a peer may say of itself."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "CALLING", "CALLED"
    proposed = []
    for number, (abstract_syntax, transfer_syntaxes) in enumerate(contexts):
        context = build_context(abstract_syntax, transfer_syntaxes)
        context.context_id = 2 * number + 1
        proposed.append(context)
    primitive.presentation_context_definition_list = proposed
    length = MaximumLengthNotification()
    length.maximum_length_received = 54321
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = "1.2.3.4"
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = "PEER"
    operations = AsynchronousOperationsWindowNegotiation()
    operations.maximum_number_operations_invoked = 5
    extended = SOPClassExtendedNegotiation()
    extended.sop_class_uid, extended.service_class_application_information = FIND, b"\1\1"
    identity = UserIdentityNegotiation()
    identity.user_identity_type, identity.primary_field = 1, b"somebody"
    selections = []
    for sop_class_uid, (scu, scp) in (roles or {}).items():
        selection = SCP_SCU_RoleSelectionNegotiation()
        selection.sop_class_uid, selection.scu_role, selection.scp_role = sop_class_uid, scu, scp
        selections.append(selection)
    primitive.user_information = [length, implementation, version, operations, extended, identity, *selections]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


def command_set(**attributes: object) -> bytes:
    """A command set of pydicom's making, with its group length."""
    command = Dataset()
    for keyword, value in attributes.items():
        setattr(command, keyword, value)
    body = encode(command, True, True)
    assert body is not None
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body
