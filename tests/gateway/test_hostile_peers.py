"""Fifty of each kind of careless or hostile peer at once, and a good one beside them.

While they are at it the good peer's C-ECHO is answered within a second, its C-STORE goes through, the receivers grow by
less than 50 MB, and each of them is let go with a line in the log.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

import pytest
from bad_peers import ATTACKS, ECHO, FIFTY, REQUEST, at_it, fragment
from intake_rig import Receivers, memory_bytes, peer, small_dataset
from pynetdicom.sop_class import Verification
from running import wait_until

from gateway import acse, dimse

GROWTH_BYTES = 50 << 20


def resident(receivers: Receivers) -> int:
    return sum(memory_bytes(process.pid or 0) for process in receivers.processes.values())


@pytest.mark.parametrize("number", range(len(ATTACKS)), ids=[attack.__name__ for attack, _ in ATTACKS])
def test_good_peers_are_served_beside_fifty_bad_ones(make_receivers: Callable[..., Receivers], number: int) -> None:
    _, reason = ATTACKS[number]
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
    with at_it(receivers.port, [number]):
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
    with at_it(receivers.port, range(len(ATTACKS))):
        for _ in range(10):
            began = time.monotonic()
            with peer(receivers.port, sop_class_uid=str(Verification)) as association:
                assert association.send_c_echo().Status == 0x0000
            assert time.monotonic() - began < 2  # three processes share two cores with it
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
