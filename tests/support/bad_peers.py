"""Careless and hostile peers, fifty of a kind at a time, in a process of their own."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from intake_rig import PROCESSES
from pydicom.uid import CTImageStorage
from pynetdicom.sop_class import Verification
from wire import command_set, request_pdu

from gateway import acse

FIFTY = 50
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
    (stops_in_a_data_set, "silent for"),
)


def run_all(port: int, numbers: Sequence[int], over: threading.Event) -> None:
    """Fifty threads for each kind, each with one peer; where it is let go it does not come again."""

    def one(attack: Attack) -> None:
        with suppress(OSError), socket.socket() as connection:
            connection.settimeout(60)
            if attack is never_reads_its_answers:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            attack(connection, over)
            over.wait()

    threads = [
        threading.Thread(target=one, args=(ATTACKS[number][0],), daemon=True)
        for number in numbers
        for _ in range(FIFTY)
    ]
    for thread in threads:
        thread.start()
    over.wait()


@contextmanager
def at_it(port: int, numbers: Sequence[int]) -> Iterator[None]:
    """Have fifty peers of each of these kinds at a port."""
    over = PROCESSES.Event()
    process = PROCESSES.Process(target=run_all, args=(port, numbers, over), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()
