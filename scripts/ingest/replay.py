"""A sender that costs next to nothing: the PDUs of an object are encoded once and sent again with other UIDs.

Per instance it overwrites a few bytes of the first PDUs, hands the kernel two buffers, and finds (0000,0900) *Status*
in the answer. All receivers get the same bytes from it, cut to the length that each has announced.

References
----------
PS3.7 section 9.3.1 (C-STORE-RQ, C-STORE-RSP); PS3.8 section 9.3 (PDUs) and Annex D.1 (maximum length).
"""

from __future__ import annotations

import itertools
import multiprocessing
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from ingest.objects import PLACES, SentObject

CALLING = "BENCHMARK"
_CONTEXT_ID = 1
_APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
_TIMEOUT_S = 300.0
_STATUS = b"\x00\x00\x00\x09\x02\x00\x00\x00"  # (0000,0900), length 2, implicit VR


class SendError(Exception):
    """The receiver refused, or answered with something else than Success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What one run of the sender measured."""

    seconds: float
    """From the moment all associations stand to the last Success."""
    latencies_s: tuple[float, ...] = field(repr=False)
    """From the first byte to Success, for each instance."""
    pdu_bytes: int
    """Length of the P-DATA-TF PDUs, as negotiated."""
    cpu_s: float
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stream:
    """The PDUs of one C-STORE request."""

    head: bytes
    """Command and first PDU of the data set, which hold all that changes."""
    tail: Sequence[bytes]
    places: tuple[tuple[str, int], ...]
    """What changes, and where in `head`."""


def send(
    target: tuple[str, int, str], what: SentObject, *, associations: int, pdu_bytes: int, count: int, seconds: float,
    run: int, quick: bool = True, meanwhile: Callable[[], None] = lambda: None,
) -> Sent:  # fmt: skip
    """Send instances from a process of its own until `count` are sent or `seconds` have passed.

    Parameters
    ----------
    target
        Host, port and AE title.
    run
        Makes the UIDs unlike those of other calls.
    quick
        Acknowledge each TCP segment of an answer at once. DCMTK and Orthanc send an answer in two pieces with Nagle's
        algorithm on, so that the second waits up to 40 ms for the acknowledgement of the first.
    meanwhile
        Called every 0.2 s while the sender runs.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(
        target=_send_here, args=(there, target, what, associations, pdu_bytes, count, seconds, run, quick), daemon=True
    )
    process.start()
    there.close()
    try:
        while not here.poll(0.2):
            meanwhile()
        sent: Sent = here.recv()
    except EOFError:
        raise SendError("the sender died") from None
    finally:
        here.close()
        process.join()
    return sent


def _send_here(
    answer: Connection, target: tuple[str, int, str], what: SentObject, associations: int, pdu_bytes: int, count: int,
    seconds: float, run: int, quick: bool,
) -> None:  # fmt: skip
    latencies: list[float] = []
    errors: list[str] = []
    cpu_before = time.process_time()
    open_associations: list[_Association] = []
    elapsed, used_bytes = 0.0, 0
    try:
        open_associations += [_Association(*target, what, quick=quick) for _ in range(associations)]
        announced = min(each.longest_pdu_bytes or pdu_bytes for each in open_associations)
        used_bytes = min(pdu_bytes, announced)
        stream = _encode(what, used_bytes)
        cpu_before = time.process_time()
        started = time.perf_counter()
        numbers = iter(range(count))

        def share(which: int) -> None:
            try:
                for local in itertools.count():
                    if (local and time.perf_counter() - started > seconds) or next(numbers, None) is None:
                        return
                    head = _patched(stream, what, run, which, local)
                    latencies.append(open_associations[which].store(head, stream.tail))
            except (OSError, SendError) as error:
                errors.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=share, args=(which,)) for which in range(associations)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - started
        cpu_s = time.process_time() - cpu_before
        for each in open_associations:
            each.release()
    except (OSError, SendError) as error:
        errors.append(f"{type(error).__name__}: {error}")
        cpu_s = 0.0
    answer.send(
        Sent(
            seconds=elapsed,
            latencies_s=tuple(latencies),
            pdu_bytes=used_bytes,
            cpu_s=cpu_s,
            error="; ".join(dict.fromkeys(errors)),
        )
    )


def values(what: SentObject, run: int, which: int, local: int) -> dict[str, bytes]:
    """The values of one instance in the order of :data:`PLACES`, each as long as its placeholder."""
    study = local // what.per_study
    group = f"{run:06d}{which:03d}"
    return {
        "instance": PLACES["instance"][:-19] + f"{group}{local:010d}".encode(),
        "study": PLACES["study"][:-19] + f"{group}{study:010d}".encode(),
        "series": PLACES["series"][:-19] + f"{group}{study:010d}".encode(),
        "patient": b"BENCH-" + f"{run % 1000:03d}{which:03d}{study:06d}".encode(),
    }


def _patched(stream: _Stream, what: SentObject, run: int, which: int, local: int) -> bytearray:
    head = bytearray(stream.head)
    new = values(what, run, which, local)
    for name, position in stream.places:
        head[position : position + len(new[name])] = new[name]
    return head


def _encode(what: SentObject, pdu_bytes: int) -> _Stream:
    uid, sop_class = PLACES["instance"], _even(what.sop_class_uid.encode())
    command = b"".join(
        struct.pack("<HHI", 0, number, len(value)) + value
        for number, value in (
            (0x0002, sop_class),
            (0x0100, b"\x01\x00"),  # C-STORE-RQ
            (0x0110, b"\x01\x00"),  # Message ID; one is open at a time
            (0x0700, b"\x00\x00"),
            (0x0800, b"\x01\x00"),  # a data set follows
            (0x1000, _even(uid)),
        )
    )
    command = struct.pack("<HHII", 0, 0, 4, len(command)) + command
    room = pdu_bytes - 6
    pdus = [_p_data(command, 3)]
    made: dict[tuple[bytes, bool], bytes] = {}
    for piece, last in _pieces(what, room):
        pdus.append(made.setdefault((piece, last), _p_data(piece, 2 if last else 0)))
    head = pdus[0] + pdus[1]
    found = [(name, position) for name, value in PLACES.items() for position in _all(head, value)]
    assert sorted(name for name, _ in found) == ["instance", "instance", "patient", "series", "study"], found
    # A giant's PDUs stay apart, of which most are the same object; the others become one buffer.
    tail = pdus[2:] if what.repeats[1] else [b"".join(pdus[2:])]
    return _Stream(head=head, tail=tail, places=tuple(found))


def _pieces(what: SentObject, room: int) -> Iterator[tuple[bytes, bool]]:
    """The data set in pieces of at most `room` bytes, and whether it is the last."""
    block, times = what.repeats
    for start in range(0, len(what.data_set), room):
        piece = what.data_set[start : start + room]
        yield piece, not times and start + room >= len(what.data_set)
    parts = [block[start : start + room] for start in range(0, len(block), room)]
    for number in range(times):
        for position, part in enumerate(parts):
            yield part, number == times - 1 and position == len(parts) - 1


def _p_data(piece: bytes, control: int) -> bytes:
    """A P-DATA-TF PDU of one presentation data value."""
    return struct.pack(">BBLLBB", 4, 0, len(piece) + 6, len(piece) + 2, _CONTEXT_ID, control) + piece


def _all(buffer: bytes, value: bytes) -> Iterator[int]:
    position = buffer.find(value)
    while position >= 0:
        yield position
        position = buffer.find(value, position + 1)


def _even(value: bytes) -> bytes:
    return value + b"\0" * (len(value) % 2)


class _Association:
    """One association as requestor, with one presentation context."""

    def __init__(self, host: str, port: int, called: str, what: SentObject, *, quick: bool) -> None:
        self._quick = quick
        self._socket = socket.create_connection((host, port), timeout=_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = bytes([_CONTEXT_ID, 0, 0, 0]) + _item(0x30, what.sop_class_uid.encode())
        context += _item(0x40, what.transfer_syntax_uid.encode())
        user = _item(0x51, (131072).to_bytes(4, "big")) + _item(0x52, b"1.2.826.0.1.3680043.8.498.9")
        body = struct.pack(">HH16s16s32x", 1, 0, called.encode().ljust(16), CALLING.encode().ljust(16))
        body += _item(0x10, _APPLICATION_CONTEXT) + _item(0x20, context) + _item(0x50, user)
        self._socket.sendall(struct.pack(">BBL", 1, 0, len(body)) + body)
        kind, body = self._read_pdu()
        if kind != 2:
            raise SendError(f"association refused: PDU type {kind}, {body[:4].hex()}")
        self.longest_pdu_bytes = self._negotiated(body)

    @staticmethod
    def _negotiated(body: bytes) -> int:
        """The acceptor's maximum length; 0 means none."""
        longest, position = 0, 68
        while position < len(body):
            kind, length = struct.unpack_from(">BxH", body, position)
            value = body[position + 4 : position + 4 + length]
            if kind == 0x21 and value[2] != 0:
                raise SendError(f"presentation context refused: {value[2]}")
            if kind == 0x50 and value[0] == 0x51:
                longest = int.from_bytes(value[4:8], "big")
            position += 4 + length
        return longest

    def store(self, head: bytearray, tail: Sequence[bytes]) -> float:
        """Send one instance and wait for Success; returns the seconds."""
        started = time.perf_counter()
        self._socket.sendall(head)
        for piece in tail:
            self._socket.sendall(piece)
        kind, body = self._read_pdu()
        position = body.find(_STATUS)
        if kind != 4 or position < 0:
            raise SendError(f"PDU type {kind} in place of an answer: {body[:4].hex()}")
        status = int.from_bytes(body[position + 8 : position + 10], "little")
        if status:
            raise SendError(f"status 0x{status:04X}")
        return time.perf_counter() - started

    def release(self) -> None:
        self._socket.sendall(b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00")
        self._read_pdu()
        self._socket.close()

    def _read_pdu(self) -> tuple[int, bytes]:
        header = self._read(6)
        kind, length = struct.unpack(">BxL", header)
        return kind, self._read(length)

    def _read(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            if self._quick:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # lasts for one answer
            piece = self._socket.recv(length - len(received))
            if not piece:
                raise SendError("the connection was closed")
            received += piece
        return received


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value
