"""Receivers, as peers see them: real processes, real sockets, DCMTK and pynetdicom on the other side."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from intake_rig import (
    Receivers,
    data_set_bytes,
    dcmtk,
    encoded,
    environment,
    memory_bytes,
    peer,
    small_dataset,
    store_bytes,
)
from pydicom import Dataset, Sequence
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from pynetdicom import AE
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.sop_class import Verification
from running import wait_until

from gateway import results
from gateway.scp import sweep
from gateway.send import send_files

ENCODINGS = {
    # file of pydicom's test data -> transfer syntax
    "MR_small_implicit.dcm": "1.2.840.10008.1.2",
    "CT_small.dcm": "1.2.840.10008.1.2.1",
    "MR_small_bigendian.dcm": "1.2.840.10008.1.2.2",
    "image_dfl.dcm": "1.2.840.10008.1.2.1.99",
    "SC_rgb_jpeg_dcmtk.dcm": "1.2.840.10008.1.2.4.50",
    "JPEG-lossy.dcm": "1.2.840.10008.1.2.4.51",
    "JPEG-LL.dcm": "1.2.840.10008.1.2.4.70",
    "MR_small_jpeg_ls_lossless.dcm": "1.2.840.10008.1.2.4.80",
    "MR_small_jp2klossless.dcm": "1.2.840.10008.1.2.4.90",
    "JPEG2000.dcm": "1.2.840.10008.1.2.4.91",
    "MR_small_RLE.dcm": "1.2.840.10008.1.2.5",
}
ENCAPSULATED = [
    # Lossless JPEG, near-lossless JPEG-LS, JPEG 2000 part 2, MPEG2, MPEG-4, HEVC, HTJ2K, JPEG XL (PS3.6 table A-1)
    *(f"1.2.840.10008.1.2.4.{number}" for number in (57, 81, 92, 93, 100, 101, 102, 104, 105, 106, 107, 108)),
    *(f"1.2.840.10008.1.2.4.{number}" for number in (201, 202, 203, 110, 111, 112)),
]
"""Syntaxes of which there is no file at hand. The intake does not decode, so that made-up fragments do."""


def pydicom_file(name: str) -> Path:
    found = get_testdata_file(name, download=False)
    assert found is not None, name
    return Path(str(found))


def with_own_uid(source: Path, folder: Path) -> Path:
    """A copy with a SOP Instance UID of its own: some of the files are one image in two encodings."""
    uid = str(pydicom.dcmread(source, stop_before_pixels=True).SOPInstanceUID).encode()
    own = str(generate_uid()).encode()[-len(uid) :].lstrip(b".0").ljust(len(uid), b"1")
    copy = folder / source.name
    content = source.read_bytes()
    # The deflated one has no twin.
    copy.write_bytes(content.replace(uid, own) if content.count(uid) == 2 else content)
    return copy


def encapsulated_file(folder: Path, transfer_syntax_uid: str) -> Path:
    dataset = small_dataset(NumberOfFrames=2)
    dataset.PixelData = encapsulate([bytes(range(100)), bytes(range(50))])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    if not dataset.file_meta.TransferSyntaxUID.is_transfer_syntax:
        dataset.file_meta.TransferSyntaxUID.set_private_encoding(False, True)
    path = folder / f"{transfer_syntax_uid}.dcm"
    dataset.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return path


# --- good peers ---------------------------------------------------------------------------------------------------


def test_dcmtk_echoes_and_stores(receivers: Receivers) -> None:
    source = pydicom_file("CT_small.dcm")
    for program, *arguments in (["echoscu"], ["storescu", str(source)], ["dcmsend", str(source)]):
        subprocess.run(
            [dcmtk(program), "-aec", "GATEWAY", "127.0.0.1", str(receivers.port), *arguments],
            check=True,
            env=environment(),
        )
    (row,) = receivers.rows()
    stored = pydicom.dcmread(receivers.objects / row.path)
    assert stored.SOPInstanceUID == row.sop_instance_uid == pydicom.dcmread(source).SOPInstanceUID
    assert (stored.pixel_array == pydicom.dcmread(source).pixel_array).all()


def test_fragments_of_4096_bytes(receivers: Receivers) -> None:
    source = pydicom_file("MR_small_implicit.dcm")
    subprocess.run(
        [dcmtk("storescu"), "--max-send-pdu", "4096", "-xi", "127.0.0.1", str(receivers.port), str(source)],
        check=True,
        env=environment(),
    )
    (row,) = receivers.rows()
    assert data_set_bytes(receivers.objects / row.path) == data_set_bytes(source)


def test_every_encoding_is_stored_as_received(receivers: Receivers, tmp_path: Path) -> None:
    sources = {with_own_uid(pydicom_file(name), tmp_path): syntax for name, syntax in ENCODINGS.items()}
    sources |= {encapsulated_file(tmp_path, syntax): syntax for syntax in ENCAPSULATED}
    report = send_files(sources, host="127.0.0.1", port=receivers.port, called_ae_title="GATEWAY")
    assert [(each.path.name, each.status) for each in report.files] == [(path.name, 0) for path in sources]
    by_hash = {row.sha256: row for row in receivers.rows()}
    for source, syntax in sources.items():
        content = data_set_bytes(source)
        row = by_hash[hashlib.sha256(content).hexdigest()]
        assert row.transfer_syntax_uid == syntax
        path = receivers.objects / row.path
        assert data_set_bytes(path) == content
        assert row.size_bytes == path.stat().st_size
        meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
        assert meta.TransferSyntaxUID == syntax
        assert meta.MediaStorageSOPInstanceUID == row.sop_instance_uid
        assert "SourceApplicationEntityTitle" not in meta
    assert len(by_hash) == len(sources)


def test_private_and_future_storage_classes(receivers: Receivers) -> None:
    classes = {"1.2.276.0.7230010.3.1.0.1", "1.2.840.10008.5.1.4.1.1.99999"}
    for sop_class_uid in classes:
        with peer(receivers.port, sop_class_uid=sop_class_uid) as association:
            assert association.send_c_store(small_dataset(SOPClassUID=sop_class_uid)).Status == 0x0000
    assert {row.sop_class_uid for row in receivers.rows()} == classes


@pytest.mark.parametrize(
    ("abstract_syntax", "transfer_syntax", "result"),
    [
        ("1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.1.2", 3),  # Study Root Q/R FIND
        ("1.2.840.10008.5.1.1.9", "1.2.840.10008.1.2", 3),  # Basic Grayscale Print
        (str(CTImageStorage), "1.2.840.10008.1.2.6.2", 4),  # XML encoding
        (str(CTImageStorage), "1.2.840.10008.1.2.4.110", 0),  # JPEG XL, which pydicom 3.0 does not know
        (str(Verification), "1.2.840.10008.1.2", 0),
    ],
)
def test_what_is_not_storage_is_not_accepted(
    receivers: Receivers, abstract_syntax: str, transfer_syntax: str, result: int
) -> None:
    entity = AE()
    entity.add_requested_context(Verification, "1.2.840.10008.1.2.1")
    entity.add_requested_context(abstract_syntax, transfer_syntax)
    association = entity.associate("127.0.0.1", receivers.port)
    answers = [*association.accepted_contexts, *association.rejected_contexts]
    association.release()
    found = [each.result for each in answers if str(each.transfer_syntax[0]) != "1.2.840.10008.1.2.1"]
    assert found == [result]


def test_worklist_columns_come_from_the_header(receivers: Receivers) -> None:
    dataset = small_dataset(PatientName="Müller^Jörg", AccessionNumber="A1", StudyDescription="Kopf nativ")
    dataset.SpecificCharacterSet = "ISO_IR 100"
    with peer(receivers.port) as association:
        assert association.send_c_store(dataset).Status == 0x0000
    with receivers.store() as store, store.read() as connection:
        (row,) = connection.exec_driver_sql(
            "SELECT patient_name, accession_number, study_description, modality, state, instance_count FROM study"
        )
    assert tuple(row) == ("Müller^Jörg", "A1", "Kopf nativ", "CT", "receiving", 1)


def test_called_ae_title_is_checked_when_asked(make_receivers: Callable[..., Receivers]) -> None:
    receivers = make_receivers(overrides={"dicom.require_called_ae_title": True})
    command = [dcmtk("echoscu"), "-v", "-aet", "PYNETDICOM", "-aec", "SOMEBODY", "127.0.0.1", str(receivers.port)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode != 0
    assert "Called AE Title Not Recognized" in refused.stdout + refused.stderr  # PS3.8 table 9-21, reason 7
    with peer(receivers.port, sop_class_uid=str(Verification), called_ae_title="GATEWAY") as good:
        assert good.send_c_echo().Status == 0
    wait_until(lambda: "rejected; PYNETDICOM at 127.0.0.1" in receivers.log(), "the log line")


# --- what is refused ----------------------------------------------------------------------------------------------


def nested(depth: int) -> Dataset:
    inner = Dataset()
    inner.CodeValue = "1"
    for _ in range(depth):
        outer = Dataset()
        outer.ConceptCodeSequence = Sequence([inner])
        inner = outer
    return inner


def refused_contents() -> dict[str, tuple[bytes, int]]:
    """Name -> data set bytes, status."""
    whole = encoded(small_dataset(SOPInstanceUID="1.2.3.4"))
    sequence = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    deep = (item + sequence) * 300
    closing = struct.pack("<HHIHHI", 0xFFFE, 0xE0DD, 0, 0xFFFE, 0xE00D, 0) * 300
    ends = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    split = whole.index(struct.pack("<HH2s", 0x0010, 0x0010, b"PN"))
    huge = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, 0xFFFFFFFE)
    return {
        "one byte short": (whole[:-1], 0xC000),
        "half": (whole[: len(whole) // 2], 0xC000),
        "garbage": (random.Random(5).randbytes(4000), 0xC000),
        "text": (b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n" * 20, 0xC000),
        "300 deep": (whole[:split] + sequence + deep + closing + ends + whole[split:], 0xC000),
        "no study": (encoded(small_dataset(SOPInstanceUID="1.2.3.4", StudyInstanceUID=None)), 0xC000),
        "another instance": (encoded(small_dataset(SOPInstanceUID="1.2.3.5")), 0xA900),
        "another class": (encoded(small_dataset(SOPInstanceUID="1.2.3.4", SOPClassUID=str(MRImageStorage))), 0xA900),
        "length of 4 GiB": (whole[:-136] + huge + bytes(8), 0xC000),
        "path as UID": (whole.replace(b"1.2.3.4\0", b"../../x\0"), 0xC000),
        "file meta in the data set": (b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0" + whole, 0xC000),
    }


def test_refused_and_quarantined(receivers: Receivers, subtests: pytest.Subtests) -> None:
    with peer(receivers.port) as association:
        for number, (name, (content, status)) in enumerate(refused_contents().items(), start=1):
            with subtests.test(name):
                response = store_bytes(association, content, sop_instance_uid="1.2.3.4")
                assert f"0x{response.Status:04X}" == f"0x{status:04X}"
                assert 0 < len(response.ErrorComment) <= 64
                # The association goes on.
                assert association.send_c_store(small_dataset()).Status == 0x0000
                assert len(receivers.rows()) == number
                row = max(receivers.quarantined(), key=lambda each: each.received_at)
                kept = (receivers.objects / row.path).read_bytes()
                assert kept[128:132] == b"DICM" and kept.endswith(content) and len(kept) - len(content) < 500
                assert (row.calling_ae_title, row.peer_address) == ("PEER", "127.0.0.1")
                assert row.quarantine_key in receivers.log()
    assert receivers.files("incoming") == []
    assert len(receivers.files("quarantine")) == len(refused_contents())


def test_command_without_data_set(receivers: Receivers) -> None:
    with peer(receivers.port) as association:
        request = C_STORE()
        request.MessageID, request.Priority = 1, 2
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = str(CTImageStorage), "1.2.3"
        message = C_STORE_RQ()
        message.primitive_to_message(request)
        message.command_set.CommandDataSetType = 0x0101
        association._reactor_checkpoint.clear()
        wait_until(lambda: association._is_paused, "pynetdicom to pause")
        for fragment in message.encode_msg(association.accepted_contexts[0].context_id, 16384):
            association.dul.send_pdu(fragment)
        _, response = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
    assert response.Status == 0xC000


def test_deflate_bomb_costs_no_disk(receivers: Receivers) -> None:
    whole = encoded(small_dataset(SOPInstanceUID="1.2.3.4"))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    cut = packer.compress(whole) + packer.flush(zlib.Z_SYNC_FLUSH)
    with peer(receivers.port, transfer_syntax_uid=str(DeflatedExplicitVRLittleEndian)) as association:
        response = store_bytes(association, cut, sop_instance_uid="1.2.3.4")
        assert response.Status == 0xC000
        assert "truncated" in response.ErrorComment
        response = store_bytes(association, cut + packer.flush(), sop_instance_uid="1.2.3.4")
        assert response.Status == 0x0000


def test_same_bytes_again_and_other_bytes(receivers: Receivers) -> None:
    first = small_dataset(SOPInstanceUID="1.2.3.4")
    other = small_dataset(SOPInstanceUID="1.2.3.4", StudyInstanceUID=first.StudyInstanceUID, PixelData=bytes(128))
    with peer(receivers.port) as association:
        assert association.send_c_store(first).Status == 0x0000
        assert association.send_c_store(first).Status == 0x0000
        response = association.send_c_store(other)
    assert response.Status == 0xC001
    assert "stored already" in response.ErrorComment
    (row,) = receivers.rows()
    assert data_set_bytes(receivers.objects / row.path) == encoded(first)
    assert [each.name for each in receivers.files("instances")] == [Path(row.path).name]
    (kept,) = receivers.quarantined()
    assert data_set_bytes(receivers.objects / kept.path) == encoded(other)


def test_full_disk_is_said_and_recovers(receivers: Receivers) -> None:
    """A limit on file size fails writes as a full disk does, with EFBIG in place of ENOSPC."""
    pid = receivers.processes["receiver-0"].pid
    assert pid is not None
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    large = small_dataset(Rows=1024, Columns=1024, PixelData=bytes(1024 * 1024 * 2))
    with peer(receivers.port) as association:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 20, unlimited[1]))
        assert association.send_c_store(large).Status == 0xA700
        assert association.send_c_store(small_dataset()).Status == 0x0000
        assert receivers.files("incoming") == []
        assert len(receivers.files("instances")) == 1
        assert receivers.quarantined() == []
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
        assert association.send_c_store(large).Status == 0x0000
    assert len(receivers.rows()) == 2


def test_broken_store_is_said_and_leaves_nothing_behind(receivers: Receivers) -> None:
    with peer(receivers.port) as association:
        with receivers.store() as store, store.write() as connection:
            connection.exec_driver_sql("ALTER TABLE instance RENAME TO away")
        dataset = small_dataset()
        assert association.send_c_store(dataset).Status == 0xA700
        with receivers.store() as store, store.write() as connection:
            connection.exec_driver_sql("ALTER TABLE away RENAME TO instance")
        assert association.send_c_store(dataset).Status == 0x0000
    # While the store could not say whether the row was there, the file had to stay; the sweep removes it.
    (row,) = receivers.rows()
    with receivers.store() as store:
        assert sweep(store, receivers.objects) == 1
    assert [each.name for each in receivers.files("instances")] == [Path(row.path).name]


def test_log_holds_no_phi(receivers: Receivers) -> None:
    bad = encoded(small_dataset(SOPInstanceUID="1.2.3.4.987654"))[:-1]
    with peer(receivers.port) as association:
        good = small_dataset()
        assert association.send_c_store(good).Status == 0x0000
        assert store_bytes(association, bad, sop_instance_uid="1.2.3.4.987654").Status == 0xC000
    wait_until(lambda: "refused" in receivers.log(), "the log line")
    log = receivers.log()
    assert "PEER at 127.0.0.1, 1 of 1 contexts" in log
    for secret in ("Secret", "SECRET", "4711", "987654", str(good.StudyInstanceUID), str(good.SOPInstanceUID)):
        assert secret not in log


# --- bad peers ----------------------------------------------------------------------------------------------------


def associate_request(port: int) -> tuple[socket.socket, bytes]:
    """A connected socket and a valid A-ASSOCIATE-RQ PDU."""
    entity = AE()
    entity.add_requested_context(CTImageStorage, ImplicitVRLittleEndian)
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "BAD", "GATEWAY"
    longest, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    longest.maximum_length_received = 16384
    implementation.implementation_class_uid = "1.2.3"
    primitive.user_information = [longest, implementation]
    contexts = entity.requested_contexts
    contexts[0].context_id = 1
    primitive.presentation_context_definition_list = contexts
    return socket.create_connection(("127.0.0.1", port), timeout=20), A_ASSOCIATE_RQ(primitive).encode()


def read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    header = b""
    while len(header) < 6:
        piece = connection.recv(6 - len(header))
        if not piece:
            return 0, b""
        header += piece
    length = struct.unpack(">L", header[2:])[0]
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return header[0], body


BAD_PDUS = {
    "P-DATA of 4 GiB": struct.pack(">BBL", 0x04, 0, 0xFFFFFFFF),
    "P-DATA over the negotiated size": struct.pack(">BBL", 0x04, 0, 131073) + bytes(131073),
    "an unknown PDU": struct.pack(">BBL", 0x77, 0, 4) + b"....",
    "A-ASSOCIATE-RQ of 4 GiB": struct.pack(">BBL", 0x01, 0, 0xFFFFFFFF),
    "an item longer than its PDU": struct.pack(">BBLLBB", 0x04, 0, 6, 5000, 1, 3),
    "a command that is garbage": struct.pack(">BBLLBB", 0x04, 0, 40, 36, 1, 3) + bytes(range(34)),
    "a data set without a command": struct.pack(">BBLLBB", 0x04, 0, 40, 36, 1, 2) + bytes(34),
    "a context that was not accepted": struct.pack(">BBLLBB", 0x04, 0, 40, 36, 99, 3) + bytes(34),
}


def test_bad_pdus_end_the_association_and_nothing_else(receivers: Receivers, subtests: pytest.Subtests) -> None:
    for name, pdu in BAD_PDUS.items():
        with subtests.test(name):
            connection, request = associate_request(receivers.port)
            with connection:
                connection.sendall(request)
                assert read_pdu(connection)[0] == 0x02
                connection.sendall(pdu)
                kind, _ = read_pdu(connection)
                assert kind in (0x07, 0)  # A-ABORT, or the connection's end
            with peer(receivers.port) as association:
                assert association.send_c_store(small_dataset()).Status == 0x0000


def test_connection_lost_in_a_data_set_leaves_no_file(receivers: Receivers) -> None:
    entity = AE()
    entity.add_requested_context(CTImageStorage, "1.2.840.10008.1.2.1")
    association = entity.associate("127.0.0.1", receivers.port, ae_title="GATEWAY")
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = str(CTImageStorage), "1.2.3"
    request.DataSet = BytesIO(bytes(100_000))
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    fragments = list(message.encode_msg(association.accepted_contexts[0].context_id, 16384))
    for fragment in fragments[:-2]:
        association.dul.send_pdu(fragment)
    wait_until(lambda: receivers.files("incoming"), "the spool")
    association.abort()
    wait_until(lambda: not receivers.files("incoming"), "the spool to go")
    assert receivers.rows() == []


def test_large_object_costs_no_memory(receivers: Receivers) -> None:
    pid = receivers.processes["receiver-0"].pid
    assert pid is not None
    size = 200 << 20
    dataset = small_dataset(SOPInstanceUID="1.2.3.4")
    del dataset.PixelData
    head = encoded(dataset)
    with peer(receivers.port) as association:
        assert association.send_c_store(small_dataset()).Status == 0x0000
    before = memory_bytes(pid, "VmHWM")
    connection, request = associate_request(receivers.port)
    command = Dataset()
    command.AffectedSOPClassUID, command.CommandField, command.MessageID = CTImageStorage, 1, 1
    command.Priority, command.CommandDataSetType, command.AffectedSOPInstanceUID = 2, 0, "1.2.3.4"
    body = encode(command, True, True)
    assert body is not None
    command_set = struct.pack("<HHII", 0, 0, 4, len(body)) + body
    content = encode(dataset, True, True)
    assert content is not None and head
    content += struct.pack("<HHI", 0x7FE0, 0x0010, size)
    with connection:
        connection.sendall(request)
        assert read_pdu(connection)[0] == 0x02
        connection.sendall(fragment(command_set, 3) + fragment(content, 0))
        zeros = fragment(bytes(131066), 0)
        sent = 0
        while size - sent > 131066:
            connection.sendall(zeros)
            sent += 131066
        connection.sendall(fragment(bytes(size - sent), 2))
        kind, answer = read_pdu(connection)
        assert kind == 0x04
        assert struct.pack("<HHIH", 0, 0x0900, 2, 0) in answer  # Status 0x0000
        connection.sendall(struct.pack(">BBLL", 0x05, 0, 4, 0))
        assert read_pdu(connection)[0] == 0x06
    assert memory_bytes(pid, "VmHWM") - before < 24 << 20
    assert max(row.size_bytes for row in receivers.rows()) > size


def fragment(value: bytes, control: int) -> bytes:
    """A P-DATA-TF PDU with one presentation data value in context 1."""
    return struct.pack(">BBLLBB", 0x04, 0, len(value) + 6, len(value) + 2, 1, control) + value


def test_more_associations_than_allowed(make_receivers: Callable[..., Receivers]) -> None:
    receivers = make_receivers(overrides={"dicom.maximum_associations": 2})
    held = []
    for _ in range(2):
        connection, request = associate_request(receivers.port)
        connection.sendall(request)
        assert read_pdu(connection)[0] == 0x02
        held.append(connection)
    connection, request = associate_request(receivers.port)
    with connection:
        connection.sendall(request)
        kind, body = read_pdu(connection)
    assert (kind, body[1:]) == (0x03, bytes([2, 3, 2]))  # transient, presentation provider, local limit exceeded
    for each in held:
        each.close()

    def can_associate() -> bool:
        entity = AE()
        entity.add_requested_context(Verification)
        association = entity.associate("127.0.0.1", receivers.port)
        if association.is_established:
            association.release()
        return bool(association.is_released)

    wait_until(can_associate, "a place")


def test_more_connections_of_an_address_than_allowed(make_receivers: Callable[..., Receivers]) -> None:
    receivers = make_receivers(overrides={"dicom.maximum_connections_per_address": 2})
    held = [socket.create_connection(("127.0.0.1", receivers.port), timeout=20) for _ in range(2)]
    with socket.create_connection(("127.0.0.1", receivers.port), timeout=20) as third:
        assert third.recv(1) == b""
    with socket.create_connection(("127.0.0.1", receivers.port), timeout=20, source_address=("127.0.0.2", 0)) as other:
        other.settimeout(1)
        with pytest.raises(TimeoutError):
            other.recv(1)  # another address has a place
    for each in held:
        each.close()
    wait_until(lambda: "too many connections: 127.0.0.1 refused" in receivers.log(), "the log line")


def test_a_receiver_without_descriptors_listens_again(make_receivers: Callable[..., Receivers]) -> None:
    receivers = make_receivers()
    with peer(receivers.port) as association:
        assert association.send_c_store(small_dataset()).Status == 0x0000
    pid = receivers.processes["receiver-0"].pid or 0
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    open_now = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now + 2, before[1]))
    waiting = [socket.create_connection(("127.0.0.1", receivers.port), timeout=20) for _ in range(30)]
    # More than one pause: also what fails while it listens again is tried again.
    wait_until(lambda: receivers.log().count("cannot accept connections") >= 3, "it to run out of descriptors")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    for each in waiting:
        each.close()
    with peer(receivers.port) as association:
        assert association.send_c_store(small_dataset()).Status == 0x0000


def test_a_full_queue_refuses_before_the_data_set(make_receivers: Callable[..., Receivers]) -> None:
    receivers = make_receivers(overrides={"dicom.longest_queue": 1})
    with peer(receivers.port) as association:
        assert association.send_c_store(small_dataset()).Status == 0x0000

        def refused() -> bool:
            response = association.send_c_store(small_dataset())
            return bool(response.Status == 0xA700)

        wait_until(refused, "the queue to be full")
        assert association.send_c_store(small_dataset(PixelData=bytes(100_000))).Status == 0xA700
    assert receivers.files("incoming") == []


@pytest.mark.parametrize(
    ("instance_uid", "action_type", "status"), [("1.2.840.10008.1.20.1.1", 2, 0x0123), ("1.2.3", 1, 0x0112)]
)
def test_what_storage_commitment_is_not_asked_for(
    receivers: Receivers, instance_uid: str, action_type: int, status: int
) -> None:
    information = Dataset()
    information.TransactionUID = generate_uid()
    with peer(receivers.port, sop_class_uid="1.2.840.10008.1.20.1") as association:
        response, _ = association.send_n_action(information, action_type, "1.2.840.10008.1.20.1", instance_uid)
        assert response.Status == status


def test_silent_peers_are_let_go(make_receivers: Callable[..., Receivers]) -> None:
    receivers = make_receivers(overrides={"dicom.network_timeout_s": 1, "dicom.association_timeout_s": 1})
    silent = socket.create_connection(("127.0.0.1", receivers.port), timeout=20)
    idle, request = associate_request(receivers.port)
    halfway, _ = associate_request(receivers.port)
    with silent, idle, halfway:
        for connection in (idle, halfway):
            connection.sendall(request)
            assert read_pdu(connection)[0] == 0x02
        halfway.sendall(struct.pack(">BBL", 0x04, 0, 500) + bytes(10))
        assert read_pdu(idle)[0] == 0x07  # A-ABORT
        assert read_pdu(silent)[0] == 0  # closed
        assert read_pdu(halfway)[0] in (0x07, 0)


def test_gateway_has_one_implementation_class_uid(receivers: Receivers) -> None:
    connection, request = associate_request(receivers.port)
    with connection:
        connection.sendall(request)
        _, body = read_pdu(connection)
    assert results.IMPLEMENTATION_CLASS_UID.encode() in body


# --- several receivers, killed ------------------------------------------------------------------------------------


def stop_process(pid: int) -> None:
    """Stop a process, and wait until it stands still: until then it may accept once more."""
    os.kill(pid, signal.SIGSTOP)
    status = Path(f"/proc/{pid}/stat")
    wait_until(lambda: status.read_text().rpartition(")")[2].split()[0] == "T", "a process to stand still")


def test_no_waiting_connection_is_lost_with_a_receiver(make_receivers: Callable[..., Receivers]) -> None:
    receivers = make_receivers(count=2)
    for process in receivers.processes.values():
        stop_process(process.pid or 0)  # nobody accepts
    waiting = [socket.create_connection(("127.0.0.1", receivers.port), timeout=30) for _ in range(8)]
    receivers.kill("receiver-0")
    os.kill(receivers.processes["receiver-1"].pid or 0, signal.SIGCONT)
    for connection in waiting:
        with connection:
            spare, request = associate_request(receivers.port)
            spare.close()
            connection.sendall(request)
            assert read_pdu(connection)[0] == 0x02


def test_associations_spread_over_receivers(make_receivers: Callable[..., Receivers], tmp_path: Path) -> None:
    receivers = make_receivers(count=2)
    files = []
    for number in range(80):
        files.append(tmp_path / f"{number}.dcm")
        small_dataset(Rows=512, Columns=512, PixelData=bytes(512 * 512 * 2)).save_as(
            files[-1], enforce_file_format=True
        )
    report = send_files(files, host="127.0.0.1", port=receivers.port, called_ae_title="GATEWAY", associations=8)
    assert report.accepted == len(files)
    with receivers.store() as store:

        def stored() -> list[int]:
            with store.read() as connection:
                rows = connection.exec_driver_sql("SELECT detail FROM process").scalars()
                return [json.loads(row)["stored"] for row in rows]

        counts = wait_until(lambda: stored() if sum(stored()) == len(files) else None, "both reports")
    assert min(counts) > 0, counts


ROUNDS = 200


def test_kill_loop_loses_nothing_acknowledged(make_receivers: Callable[..., Receivers]) -> None:
    """kill -9 of a receiver at random moments, four associations sending: what got Success is there, whole, once."""
    receivers = make_receivers(count=2)
    acknowledged: dict[str, str] = {}
    ended = threading.Event()
    lock = threading.Lock()
    chance = random.Random(11)

    def send_forever(seed: int) -> None:
        own = random.Random(seed)
        while not ended.is_set():
            entity = AE()
            entity.add_requested_context(CTImageStorage, "1.2.840.10008.1.2.1")
            entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 10
            association = entity.associate("127.0.0.1", receivers.port, ae_title="GATEWAY")
            while association.is_established and not ended.is_set():
                dataset = small_dataset(Rows=64, Columns=512, PixelData=own.randbytes(64 * 512 * 2))
                digest = hashlib.sha256(encoded(dataset)).hexdigest()
                try:
                    response = association.send_c_store(dataset)
                except (RuntimeError, ValueError):
                    break
                if response.get("Status") == 0x0000:
                    with lock:
                        acknowledged[str(dataset.SOPInstanceUID)] = digest
            if association.is_established:
                association.release()

    senders = [threading.Thread(target=send_forever, args=(seed,)) for seed in range(4)]
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    for sender in senders:
        sender.start()
    try:
        for number in range(ROUNDS):
            already = len(acknowledged)
            wait_until(lambda before=already: len(acknowledged) > before, "an acknowledgement")
            ended.wait(chance.uniform(0, 0.15))
            name = f"receiver-{number % 2}"
            receivers.kill(name)
            receivers.start(name)
    finally:
        ended.set()
        for sender in senders:
            sender.join()
    receivers.end()
    with receivers.store() as store:
        sweep(store, receivers.objects)
    rows = {row.sop_instance_uid: row for row in receivers.rows()}
    assert len(acknowledged) >= ROUNDS
    assert set(acknowledged) <= set(rows)
    for uid, row in rows.items():
        content = data_set_bytes(receivers.objects / row.path)
        assert hashlib.sha256(content).hexdigest() == row.sha256 == acknowledged.get(uid, row.sha256)
    # One file a row, and none besides.
    assert {str(path.relative_to(receivers.objects)) for path in receivers.files("instances")} == {
        row.path for row in rows.values()
    }
    assert receivers.files("incoming") == []


def test_sweep_removes_what_no_row_refers_to(receivers: Receivers) -> None:
    with peer(receivers.port) as association:
        assert association.send_c_store(small_dataset()).Status == 0x0000
    (kept,) = receivers.files("instances")
    for relative in ("incoming/abc", "instances/00/orphan.dcm", "quarantine/orphan.dcm"):
        (receivers.objects / relative).write_bytes(b"half")
    with receivers.store() as store:
        assert sweep(store, receivers.objects) == 3
        assert sweep(store, receivers.objects) == 0
    assert receivers.files("instances") == [kept]
    assert receivers.files("incoming") == receivers.files("quarantine") == []
