"""Fifty of each kind of careless or hostile peer at once, and a good one beside them.

While they are at it the good peer's C-ECHO is answered within a second, its C-STORE goes through, the receivers grow by
less than 50 MB, and each of them is let go with a line in the log.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from intake_rig import Receivers, memory_bytes, peer, small_dataset
from pydicom.uid import CTImageStorage
from pynetdicom.sop_class import Verification
from running import wait_until
from wire import command_set, request_pdu

from gateway import acse, dimse

FIFTY = 50
GROWTH_BYTES = 50 << 20
REQUEST = request_pdu([(str(CTImageStorage), ["1.2.840.10008.1.2.1"]), (str(Verification), ["1.2.840.10008.1.2"])])
STORE = command_set(
    AffectedSOPClassUID=CTImageStorage,
    CommandField=1,
    MessageID=1,
    Priority=2,
    CommandDataSetType=0,
    AffectedSOPInstanceUID="1.2.3",
)
ECHO = command_set(AffectedSOPClassUID=str(Verification), CommandField=0x30, MessageID=1, CommandDataSetType=0x0101)
Attack = Callable[[socket.socket, threading.Event], None]


def fragment(value: bytes, control: int, context_id: int = 1) -> bytes:
    return struct.pack(">BxLLBB", acse.P_DATA_TF, len(value) + 6, len(value) + 2, context_id, control) + value


def associate(connection: socket.socket) -> None:
    connection.sendall(REQUEST)
    header = connection.recv(6, socket.MSG_WAITALL)
    kind, length = struct.unpack(">BxL", header)
    assert kind == acse.ASSOCIATE_AC
    connection.recv(length, socket.MSG_WAITALL)


def drip(connection: socket.socket, content: bytes, over: threading.Event) -> None:
    """A byte now and then, until the other side has had enough."""
    for number in range(len(content)):
        if over.wait(0.3):
            return
        connection.sendall(content[number : number + 1])


def pour(connection: socket.socket, content: bytes, over: threading.Event) -> None:
    """As fast as it goes, as long as it goes."""
    while not over.is_set():
        connection.sendall(content)


def idle(connection: socket.socket, over: threading.Event) -> None:
    over.wait()


def drips_a_request(connection: socket.socket, over: threading.Event) -> None:
    drip(connection, REQUEST, over)


def drips_a_command(connection: socket.socket, over: threading.Event) -> None:
    associate(connection)
    drip(connection, fragment(STORE, 3), over)


def drips_a_data_set(connection: socket.socket, over: threading.Event) -> None:
    associate(connection)
    connection.sendall(fragment(STORE, 3) + struct.pack(">BxLLBB", acse.P_DATA_TF, 10006, 10002, 1, 2))
    drip(connection, bytes(10000), over)


def declares_4_gib(connection: socket.socket, over: threading.Event) -> None:
    pour(connection, struct.pack(">BxL", acse.ASSOCIATE_RQ, 0xFFFFFFFF) + bytes(1 << 20), over)


def declares_4_gib_in_an_association(connection: socket.socket, over: threading.Event) -> None:
    associate(connection)
    connection.sendall(fragment(STORE, 3))
    pour(connection, struct.pack(">BxLLBB", acse.P_DATA_TF, 0xFFFFFFFF, 0xFFFFFFFB, 1, 0) + bytes(1 << 20), over)


def sends_pdus_over_the_size(connection: socket.socket, over: threading.Event) -> None:
    associate(connection)
    pour(connection, fragment(STORE, 3) + fragment(bytes(1 << 18), 0), over)


def proposes_endless_contexts(connection: socket.socket, over: threading.Event) -> None:
    context = REQUEST[6 + 68 + 25 :][:60]
    pour(connection, struct.pack(">BxL", acse.ASSOCIATE_RQ, 1 << 18) + REQUEST[6:74] + context * 5000, over)


def floods_with_user_identities(connection: socket.socket, over: threading.Event) -> None:
    identity = struct.pack(">BxHBBH", 0x58, 60006, 1, 0, 60000) + bytes(60000) + b"\0\0"
    items = struct.pack(">BxH", 0x50, len(identity)) + identity
    body = REQUEST[6:] + items * 4
    connection.sendall(struct.pack(">BxL", acse.ASSOCIATE_RQ, len(body)) + body)
    over.wait()


def sends_an_endless_command(connection: socket.socket, over: threading.Event) -> None:
    associate(connection)
    pour(connection, fragment(bytes(60000), 1), over)


def never_reads_its_answers(connection: socket.socket, over: threading.Event) -> None:
    associate(connection)
    pour(connection, fragment(ECHO, 3, context_id=3) * 200, over)


def stops_in_a_data_set(connection: socket.socket, over: threading.Event) -> None:
    associate(connection)
    connection.sendall(fragment(STORE, 3) + fragment(bytes(100_000), 0))
    over.wait()


ATTACKS: tuple[tuple[Attack, str], ...] = (
    (idle, "no A-ASSOCIATE-RQ within"),
    (drips_a_request, "no A-ASSOCIATE-RQ within"),
    (drips_a_command, "bytes a second of a message"),
    (drips_a_data_set, "bytes a second of a message"),
    (declares_4_gib, "a PDU of type 0x01 and 4294967295 bytes"),
    (declares_4_gib_in_an_association, "a PDU of type 0x04 and 4294967295 bytes"),
    (sends_pdus_over_the_size, "a PDU of type 0x04 and 262150 bytes"),
    (proposes_endless_contexts, "A-ASSOCIATE-RQ"),
    (floods_with_user_identities, "silent for"),
    (sends_an_endless_command, "a command set of more than"),
    (never_reads_its_answers, "silent for"),
    (stops_in_a_data_set, "bytes a second of a message"),
)


@contextmanager
def at_it(port: int, attack: Attack) -> Iterator[None]:
    """Fifty threads, each with a peer of that kind; where it is let go it does not come again."""
    over = threading.Event()

    def one() -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            attack(connection, over)
            over.wait()

    threads = [threading.Thread(target=one, daemon=True) for _ in range(FIFTY)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(30)


def resident(receivers: Receivers) -> int:
    return sum(memory_bytes(process.pid or 0) for process in receivers.processes.values())


@pytest.mark.parametrize(("attack", "reason"), ATTACKS, ids=[attack.__name__ for attack, _ in ATTACKS])
def test_good_peers_are_served_beside_fifty_bad_ones(
    make_receivers: Callable[..., Receivers], attack: Attack, reason: str
) -> None:
    receivers = make_receivers(
        count=2,
        overrides={
            "dicom.association_timeout_s": 4,
            "dicom.network_timeout_s": 4,
            "dicom.minimum_rate_window_s": 2,
        },
    )
    for _ in range(4):  # both processes have done it once, so that growth is not their own
        with peer(receivers.port) as association:
            assert association.send_c_store(small_dataset()).Status == 0x0000
    before = resident(receivers)
    most = 0
    with ExitStack() as stack:
        stack.enter_context(at_it(receivers.port, attack))
        deadline = time.monotonic() + 7
        served = 0
        while time.monotonic() < deadline:
            began = time.monotonic()
            with peer(receivers.port, sop_class_uid=str(Verification)) as association:
                assert association.send_c_echo().Status == 0x0000
            assert time.monotonic() - began < 1, "an echo took over a second"
            with peer(receivers.port) as association:
                assert association.send_c_store(small_dataset()).Status == 0x0000
            served += 1
            most = max(most, resident(receivers))
            time.sleep(0.3)
        assert served >= 5
        wait_until(lambda: receivers.log().count(reason) >= FIFTY, f"{FIFTY} lines: {reason}")
    assert most - before < GROWTH_BYTES, f"{(most - before) >> 20} MB more"
    assert receivers.files("incoming") == []


def test_all_kinds_at_once(make_receivers: Callable[..., Receivers]) -> None:
    """Six hundred bad peers, with the settings that are shipped."""
    receivers = make_receivers(count=2)
    with peer(receivers.port) as association:
        assert association.send_c_store(small_dataset()).Status == 0x0000
    before = resident(receivers)
    with ExitStack() as stack:
        for attack, _ in ATTACKS:
            stack.enter_context(at_it(receivers.port, attack))
        for _ in range(5):
            began = time.monotonic()
            with peer(receivers.port, sop_class_uid=str(Verification)) as association:
                assert association.send_c_echo().Status == 0x0000
            assert time.monotonic() - began < 5  # this process, with its 600 threads, is slow itself
            with peer(receivers.port) as association:
                assert association.send_c_store(small_dataset()).Status == 0x0000
        assert resident(receivers) - before < GROWTH_BYTES


def test_response_length_follows_the_peers_maximum(receivers: Receivers) -> None:
    """A peer that takes 16 bytes at a time gets its answer in pieces of 16."""
    with socket.create_connection(("127.0.0.1", receivers.port), timeout=30) as connection:
        request = bytearray(REQUEST)
        place = request.index(b"\x51\0\0\4") + 4
        request[place : place + 4] = struct.pack(">L", 16)
        connection.sendall(request)
        _, length = struct.unpack(">BxL", connection.recv(6, socket.MSG_WAITALL))
        connection.recv(length, socket.MSG_WAITALL)
        connection.sendall(fragment(ECHO, 3, context_id=3))
        value, control = b"", 0
        while not control & dimse.LAST_FRAGMENT:
            kind, length = struct.unpack(">BxL", connection.recv(6, socket.MSG_WAITALL))
            assert kind == acse.P_DATA_TF
            assert length <= 16
            body = connection.recv(length, socket.MSG_WAITALL)
            control = body[5]
            value += body[6:]
        assert struct.pack("<HHLH", 0, 0x0900, 2, 0) in value
