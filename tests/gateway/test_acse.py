"""The association's PDUs, held against pynetdicom's reading and writing of them."""

from __future__ import annotations

import struct

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_RELEASE_RP
from pynetdicom.pdu_primitives import (
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import build_context, negotiate_as_acceptor
from pynetdicom.sop_class import _STORAGE_CLASSES, StorageCommitmentPushModel, Verification
from wire import FIND, request_pdu

from gateway import acse
from gateway.acse import ProtocolError, Request
from gateway.contexts import supports
from gateway.validate import encoding_of

COMMITMENT = str(StorageCommitmentPushModel)


def understands(transfer_syntax: str) -> bool:
    return encoding_of(transfer_syntax) is not None


def test_a_request_is_read_as_it_was_meant() -> None:
    pdu = request_pdu(
        [(CTImageStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]), (COMMITMENT, [ImplicitVRLittleEndian])],
        roles={COMMITMENT: (False, True)},
    )
    request = acse.read_request(pdu[6:])
    assert (request.calling_ae_title, request.called_ae_title) == ("CALLING", "CALLED")
    assert request.maximum_length == 54321
    assert request.roles == {COMMITMENT: (False, True)}
    assert [(each.context_id, each.abstract_syntax, each.transfer_syntaxes) for each in request.contexts] == [
        (1, CTImageStorage, (ExplicitVRLittleEndian, ImplicitVRLittleEndian)),
        (3, COMMITMENT, (ImplicitVRLittleEndian,)),
    ]


def test_negotiation_agrees_with_pynetdicoms() -> None:
    """Contexts in the peer's order, for every storage class, with and without syntaxes that are known."""
    syntaxes = [["1.2.3.4", str(JPEGBaseline8Bit), str(ImplicitVRLittleEndian)], ["1.2.3.4"], [ExplicitVRLittleEndian]]
    proposed = [(str(each), syntaxes[n % 3]) for n, each in enumerate([*_STORAGE_CLASSES.values()][:100])]
    proposed += [(str(Verification), [ImplicitVRLittleEndian]), (FIND, [ImplicitVRLittleEndian])]
    request = acse.read_request(request_pdu(proposed)[6:])
    ours = acse.negotiate(request, supports=supports, understands=understands)
    requested, supported = [], []
    for context in request.contexts:
        theirs = build_context(context.abstract_syntax, list(context.transfer_syntaxes))
        theirs.context_id = context.context_id
        requested.append(theirs)
        known = [each for each in context.transfer_syntaxes if understands(each)]
        if supports(context.abstract_syntax) and known:
            supported.append(build_context(context.abstract_syntax, known))
        elif supports(context.abstract_syntax):
            supported.append(build_context(context.abstract_syntax, ["1.2.840.10008.1.2"]))
    expected, _ = negotiate_as_acceptor(requested, supported)
    assert [(each.context_id, each.result) for each in ours] == [(each.context_id, each.result) for each in expected]
    accepted = [each for each in expected if each.result == 0]
    assert len(accepted) > 60
    assert [each.transfer_syntax for each in ours if each.result == 0] == [each.transfer_syntax[0] for each in accepted]


def accepted_by_us(request: Request) -> A_ASSOCIATE_AC:
    contexts = acse.negotiate(request, supports=supports, understands=understands)
    pdu = acse.accept_pdu(
        request,
        contexts,
        supports=supports,
        maximum_length=65536,
        implementation_class_uid="1.2.3",
        implementation_version_name="NAME",
    )
    answer = A_ASSOCIATE_AC()
    answer.decode(pdu)
    return answer


def test_pynetdicom_reads_the_acceptance() -> None:
    request = acse.read_request(
        request_pdu(
            [(CTImageStorage, [ExplicitVRLittleEndian]), (COMMITMENT, [ImplicitVRLittleEndian]), (FIND, ["1.2.3"])],
            roles={COMMITMENT: (False, True), CTImageStorage: (True, True)},
        )[6:]
    )
    primitive = accepted_by_us(request).to_primitive()
    results = [(each.context_id, each.result) for each in primitive.presentation_context_definition_results_list]
    assert results == [(1, 0), (3, 0), (5, 3)]
    assert primitive.maximum_length_received == 65536
    assert str(primitive.implementation_class_uid) == "1.2.3"
    roles = {
        str(item.sop_class_uid): (item.scu_role, item.scp_role)
        for item in primitive.user_information
        if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
    }
    # The gateway takes both roles of storage commitment, and is never a storage SCU on a peer's association.
    assert roles == {COMMITMENT: (False, True), CTImageStorage: (True, False)}


def test_a_role_that_the_gateway_does_not_take_refuses_the_context() -> None:
    pdu = request_pdu([(CTImageStorage, [ExplicitVRLittleEndian])], roles={CTImageStorage: (False, True)})
    (context,) = acse.negotiate(acse.read_request(pdu[6:]), supports=supports, understands=understands)
    assert context.result == acse.USER_REJECTION


def test_short_pdus_are_read_by_pynetdicom() -> None:
    rejection = A_ASSOCIATE_RJ()
    rejection.decode(acse.reject_pdu(1, 1, 7))
    assert (rejection.result, rejection.source, rejection.reason_diagnostic) == (1, 1, 7)
    abort = A_ABORT_RQ()
    abort.decode(acse.abort_pdu())
    assert (abort.source, abort.reason_diagnostic) == (2, 0)
    release = A_RELEASE_RP()
    release.decode(acse.release_pdu())
    assert release.encode() == acse.release_pdu()


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


FIXED = struct.pack(">HH", 1, 0) + b"CALLED          CALLING         " + bytes(32)
APPLICATION = item(0x10, b"1.2.840.10008.3.1.1.1")
CONTEXT = item(0x20, b"\1\0\0\0" + item(0x30, b"1.2.840.10008.1.1") + item(0x40, b"1.2.840.10008.1.2"))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (FIXED[:40], "too short"),
        (b"\0\2" + FIXED[2:] + APPLICATION + CONTEXT, "protocol version"),
        (FIXED + CONTEXT, "application context"),
        (FIXED + APPLICATION, "no presentation context"),
        (FIXED + APPLICATION + CONTEXT + CONTEXT, "one ID"),
        (FIXED + APPLICATION + CONTEXT[:4] + b"\2" + CONTEXT[5:], "even ID"),
        (FIXED + APPLICATION + CONTEXT[:-3], "longer than what holds it"),
        (FIXED + APPLICATION + CONTEXT + b"\x50", "cut item"),
        (FIXED + APPLICATION + item(0x20, b"\1\0"), "too short"),
        (FIXED + APPLICATION + item(0x20, b"\1\0\0\0" + item(0x30, b"1.2")), "without abstract or transfer syntax"),
        (FIXED + APPLICATION + CONTEXT + item(0x50, item(0x54, b"\0\x09abcd")), "role selection"),
        (
            FIXED + APPLICATION + item(0x20, b"\1\0\0\0" + item(0x30, b"1.2") + 9000 * item(0x40, b"1")),
            "too many transfer syntaxes",
        ),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_with_its_reason(body: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        acse.read_request(body)


def test_a_request_cut_anywhere_is_refused_or_shorter() -> None:
    body = request_pdu([(CTImageStorage, [ExplicitVRLittleEndian])])[6:]
    for length in range(len(body)):
        try:
            shorter = acse.read_request(body[:length])
        except ProtocolError:
            continue
        assert len(shorter.contexts) == 1
