"""The sender against real peers: DCMTK's storescp, and pynetdicom's SCP where a peer has to misbehave."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from certificates import Authority
from intake_rig import PROCESSES, data_set_bytes, dcmtk, deliver
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pynetdicom import AE, AllStoragePresentationContexts, evt
from running import free_port, running_storescp, wait_until
from sqlalchemy import insert, select

from gateway.objects import ObjectFolder, result_path
from gateway.send import Address, Timeouts, association_with, contexts_for, send_files
from gateway.sender import Courier, next_attempt
from gateway.settings import Destination, SenderSettings, load_settings
from gateway.store import Store, open_store
from gateway.store.deliveries import Delivery
from gateway.store.intake import new_key
from gateway.store.schema import delivery, result, study

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
SENDER = load_settings(environment={}).sender


def base(sop_class_uid: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class_uid
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientName, dataset.PatientID = "A^B", "1"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def report() -> Dataset:
    dataset = base(Comprehensive3DSRStorage)
    dataset.Modality, dataset.ValueType = "SR", "CONTAINER"
    return dataset


def key_image() -> Dataset:
    dataset = base(SecondaryCaptureImageStorage)
    ramp = np.zeros((64, 96, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(96) * 2, np.arange(64)[:, None] * 3
    stream = BytesIO()
    Image.fromarray(ramp).save(stream, "JPEG", quality=95, subsampling=0)
    dataset.Modality = "OT"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PlanarConfiguration = 64, 96, 3, 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.PhotometricInterpretation = 7, 0, "YBR_FULL_422"
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return dataset


class Outbox:
    """A data folder with results to deliver."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.store: Store = open_store("", data_dir=data_dir, migrate=True)
        self.objects = ObjectFolder.in_data_dir(data_dir)
        self.study_key = new_key()
        with self.store.write() as connection:
            connection.execute(
                insert(study).values(
                    study_key=self.study_key,
                    study_instance_uid="1.2",
                    state="judged",
                    first_received_at=NOW,
                    last_received_at=NOW,
                    complete_at=NOW,
                )
            )

    def add(self, dataset: Dataset, *destinations: str, at: datetime = NOW) -> str:
        """Add a result; returns its SOP Instance UID."""
        key = new_key()
        stream = BytesIO()
        pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
        self.objects.write(result_path(key), stream.getvalue())
        uid = str(dataset.SOPInstanceUID)
        with self.store.write() as connection:
            connection.execute(
                insert(result).values(
                    result_key=key,
                    study_key=self.study_key,
                    kind="SR",
                    sop_class_uid=str(dataset.SOPClassUID),
                    sop_instance_uid=uid,
                    path=result_path(key),
                    created_at=at,
                )
            )
            for destination in destinations:
                connection.execute(
                    insert(delivery).values(
                        result_key=key,
                        study_key=self.study_key,
                        destination=destination,
                        state="pending",
                        next_attempt_at=at,
                        created_at=at,
                    )
                )
        return uid

    def path(self, uid: str) -> Path:
        with self.store.read() as connection:
            return self.objects.root / str(
                connection.execute(select(result.c.path).where(result.c.sop_instance_uid == uid)).scalar_one()
            )

    def row(self, uid: str, destination: str = "pacs") -> Any:
        return next(row for row in self.rows() if row.sop_instance_uid == uid and row.destination == destination)

    def rows(self) -> list[Any]:
        with self.store.read() as connection:
            query = select(delivery, result.c.sop_instance_uid).join(
                result, result.c.result_key == delivery.c.result_key
            )
            return list(connection.execute(query.order_by(delivery.c.delivery_id)).all())

    def courier(self, port: int, *, clock: Callable[[], datetime] = lambda: NOW, **options: Any) -> Courier:
        return Courier(
            store=self.store,
            objects=self.objects.root,
            destination=Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=port),
            settings=options.pop("settings", SENDER),
            clock=clock,
            stop=threading.Event(),
            timeouts=Timeouts(connection_s=3, association_s=5, response_s=5, network_s=5),
        )


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    made = Outbox(tmp_path)
    yield made
    made.store.close()


@contextmanager
def pacs(handle: Callable[[Any], int], *, syntaxes: list[str] | None = None, **settings: Any) -> Iterator[int]:
    """An SCP that answers as `handle` says; gives its port."""
    entity = AE("PACS")
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(
            context.abstract_syntax, syntaxes or [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit]
        )
    for name, value in settings.items():
        setattr(entity, name, value)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, handle)])
    try:
        yield int(server.socket.getsockname()[1])
    finally:
        server.shutdown()


def test_delivers_files_as_they_are(outbox: Outbox, tmp_path: Path) -> None:
    dcmtk("storescp")
    uids = [outbox.add(report(), "pacs"), outbox.add(key_image(), "pacs"), outbox.add(report(), "pacs")]
    with running_storescp(tmp_path / "pacs", ae_title="PACS") as peer:
        courier = outbox.courier(peer.port)
        assert courier.round()
        assert not courier.round()
        received = {str(pydicom.dcmread(path).SOPInstanceUID): path for path in peer.files()}
    assert set(received) == set(uids)
    for uid in uids:
        assert data_set_bytes(received[uid]) == data_set_bytes(outbox.path(uid))
        row = outbox.row(uid)
        assert (row.state, row.attempts, row.last_error, row.delivered_at) == ("delivered", 1, "", NOW)


def test_decompresses_for_a_peer_that_takes_implicit_vr_alone(outbox: Outbox) -> None:
    received: list[Dataset] = []

    def keep(event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        received.append(dataset)
        return 0x0000

    picture = outbox.add(key_image(), "pacs")
    text = outbox.add(report(), "pacs")
    with pacs(keep, syntaxes=[ImplicitVRLittleEndian]) as port:
        outbox.courier(port).round()
    assert {row.state for row in outbox.rows()} == {"delivered"}
    by_uid = {str(each.SOPInstanceUID): each for each in received}
    assert by_uid[text].ValueType == "CONTAINER"
    image = by_uid[picture]
    assert image.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert (image.PhotometricInterpretation, image.PlanarConfiguration) == ("RGB", 0)
    frame = pydicom.encaps.get_frame(pydicom.dcmread(outbox.path(picture)).PixelData, 0, number_of_frames=1)
    expected = np.asarray(Image.open(BytesIO(frame)).convert("RGB"))
    found = np.frombuffer(image.PixelData, np.uint8).reshape(64, 96, 3)
    assert np.abs(found.astype(int) - expected).max() <= 3


@pytest.mark.parametrize(
    ("status", "state", "error"),
    [
        (0x0000, "delivered", ""),
        (0xB000, "delivered", ""),
        (0xB007, "delivered", ""),
        (0x0111, "delivered", ""),
        (0xA700, "pending", "refused with status 0xA700"),
        (0xC123, "pending", "refused with status 0xC123"),
        (0x0122, "pending", "refused with status 0x0122"),
    ],
)
def test_statuses(outbox: Outbox, status: int, state: str, error: str) -> None:
    uid = outbox.add(report(), "pacs")
    with pacs(lambda _: status) as port:
        outbox.courier(port).round()
    row = outbox.row(uid)
    assert (row.state, row.last_error, row.attempts) == (state, error, 1)


def test_object_that_ends_associations_does_not_hold_the_next(outbox: Outbox) -> None:
    poison = outbox.add(report(), "pacs")
    good = outbox.add(report(), "pacs")

    def handle(event: evt.Event) -> int:
        if event.request.AffectedSOPInstanceUID == poison:
            event.assoc.abort()
        return 0x0000

    with pacs(handle) as port:
        outbox.courier(port).round()
    assert outbox.row(good).state == "delivered"
    assert (outbox.row(poison).state, outbox.row(poison).attempts) == ("pending", 1)
    assert "association ended" in outbox.row(poison).last_error


def test_missing_file_does_not_hold_the_next(outbox: Outbox) -> None:
    lost, good = outbox.add(report(), "pacs"), outbox.add(report(), "pacs")
    outbox.path(lost).unlink()
    with pacs(lambda _: 0x0000) as port:
        outbox.courier(port).round()
    assert outbox.row(good).state == "delivered"
    assert outbox.row(lost).last_error == "the result's file cannot be read: FileNotFoundError"


def test_says_why_there_is_no_association(outbox: Outbox) -> None:
    uid = outbox.add(report(), "pacs")
    port = free_port()
    outbox.courier(port).round()
    assert outbox.row(uid).last_error == f"PACS at 127.0.0.1:{port} could not be reached"
    uid = outbox.add(report(), "pacs")
    with pacs(lambda _: 0x0000, require_calling_aet=["SOMEBODY"]) as port:
        outbox.courier(port).round()
    assert "rejected the association" in outbox.row(uid).last_error
    assert "calling" in outbox.row(uid).last_error.lower()


# --- when to try again --------------------------------------------------------------------------------------------


def waiting(attempts: int) -> Delivery:
    return Delivery(
        delivery_id=1,
        study_key="k",
        destination="pacs",
        kind="SR",
        sop_class_uid="1",
        sop_instance_uid="1",
        path="p",
        attempts=attempts,
        created_at=NOW,
    )


def test_schedule_of_a_day() -> None:
    """Three quick tries, 30 s doubling to 10 min, an end after 24 h: the times written out by hand."""
    now, times = NOW, [0.0]
    for attempts in range(10_000):
        again = next_attempt(waiting(attempts), now, SENDER)
        if again is None:
            break
        now = again
        times.append((now - NOW).total_seconds())
    assert times[:10] == [0, 1, 2, 32, 92, 212, 452, 932, 1532, 2132]
    assert all(later - earlier == 600 for earlier, later in pairwise(times[7:]))
    assert 86400 - 600 < times[-1] <= 86400


def test_dead_letter_after_a_day(outbox: Outbox) -> None:
    uid = outbox.add(report(), "pacs")
    now = NOW
    settings = SenderSettings.model_validate({**SENDER.model_dump(), "give_up_after_s": 100})
    courier = outbox.courier(free_port(), clock=lambda: now, settings=settings)
    rounds = 0
    while outbox.row(uid).state == "pending":
        now = outbox.row(uid).next_attempt_at
        assert courier.round()
        rounds += 1
    assert outbox.row(uid).state == "dead"
    assert rounds == outbox.row(uid).attempts == 5  # at 0, 1, 2, 32 and 92 s; the next would be at 212 s
    assert not courier.round()


# --- the process --------------------------------------------------------------------------------------------------


def start_sender(outbox: Outbox, ports: dict[str, int], *, tls: dict[str, str] | None = None) -> Any:
    known = {"ae_title": "PACS", "host": "127.0.0.1", "tls": tls is not None}
    destinations = [{"name": name, "port": port, **known} for name, port in ports.items()]
    overrides = {"destinations": destinations, "sender.first_delay_s": 0.5, "rules": [], "vault.enabled": False}
    overrides |= {f"tls.{key}": value for key, value in (tls or {}).items()}
    settings = load_settings(environment={}, overrides=overrides)
    process = PROCESSES.Process(target=deliver, args=(settings, outbox.data_dir))
    process.start()
    return process


def test_delivers_by_tls_where_the_destination_says_so(outbox: Outbox, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pem")
    pacs_pem, ours = authority.issue("pacs", addresses=("127.0.0.1",)), authority.issue("gateway")
    tls = {"certificate": str(ours.certificate), "key": str(ours.key), "authorities": str(authority.pem)}
    options = ["+tls", str(pacs_pem.key), str(pacs_pem.certificate), "+cf", str(authority.pem)]
    with running_storescp(tmp_path / "inbox", options=options) as scp, pacs(lambda _: 0x0000) as plain:
        uid = outbox.add(report(), "pacs", "plain", at=datetime.now(UTC))
        process = start_sender(outbox, {"pacs": scp.port, "plain": plain}, tls=tls)
        wait_until(lambda: outbox.row(uid).state == "delivered", "the delivery")
        wait_until(lambda: outbox.row(uid, "plain").attempts, "a try without a TLS peer")
        process.terminate()
        process.join(20)
    assert len(scp.files()) == 1
    assert "TLS failed: wrong version number" in outbox.row(uid, "plain").last_error


def test_dead_destination_holds_no_other(outbox: Outbox) -> None:
    with pacs(lambda _: 0x0000) as port:
        uids = [outbox.add(report(), "dead", "alive", at=datetime.now(UTC)) for _ in range(5)]
        process = start_sender(outbox, {"dead": free_port(), "alive": port})
        wait_until(lambda: all(outbox.row(uid, "alive").state == "delivered" for uid in uids), "deliveries")
        wait_until(lambda: all(outbox.row(uid, "dead").attempts >= 2 for uid in uids), "tries")
        assert all(outbox.row(uid, "dead").state == "pending" for uid in uids)
        process.terminate()
        process.join(20)
        assert process.exitcode == 0


def test_kill_loop_delivers_each_once(outbox: Outbox) -> None:
    """kill -9 at random moments: all arrive; what is sent twice is at most one object for each kill."""
    received: list[str] = []
    chance = random.Random(3)
    kills = 8

    def keep(event: evt.Event) -> int:
        received.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    with pacs(keep) as port:
        uids: set[str] = set()
        for _ in range(kills):
            before = len(received)
            uids |= {outbox.add(report(), "pacs", at=datetime.now(UTC)) for _ in range(40)}
            process = start_sender(outbox, {"pacs": port})
            wait_until(lambda before=before: len(received) > before, "a delivery")
            threading.Event().wait(chance.uniform(0, 0.3))
            process.kill()
            process.join()
        process = start_sender(outbox, {"pacs": port})
        wait_until(lambda: all(row.state == "delivered" for row in outbox.rows()), "all deliveries")
        process.terminate()
        process.join(20)
    assert set(received) == uids
    assert len(received) <= len(uids) + kills


# --- gateway send -------------------------------------------------------------------------------------------------


def test_send_files_reports_each(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for number, dataset in enumerate([report(), key_image(), report()]):
        pydicom.dcmwrite(folder / f"{number}.dcm", dataset, enforce_file_format=True)
    (folder / "notes.txt").write_text("not DICOM")
    refused = str(pydicom.dcmread(folder / "2.dcm").SOPInstanceUID)
    seen = []
    with pacs(lambda event: 0xA700 if event.request.AffectedSOPInstanceUID == refused else 0) as port:
        sent = send_files(
            [folder, tmp_path / "absent.dcm"],
            host="127.0.0.1",
            port=port,
            called_ae_title="PACS",
            associations=3,
            progress=seen.append,
        )
    assert [(each.path.name, each.status, each.error) for each in sent.files] == [
        ("0.dcm", 0, ""),
        ("1.dcm", 0, ""),
        ("2.dcm", 0xA700, "refused with status 0xA700"),
        ("notes.txt", None, "is not a DICOM file"),
        ("absent.dcm", None, "cannot be read: No such file or directory"),
    ]
    assert sent.accepted == 2
    assert {each.path for each in seen} == {each.path for each in sent.files}


def test_send_files_to_nobody(tmp_path: Path) -> None:
    pydicom.dcmwrite(tmp_path / "0.dcm", report(), enforce_file_format=True)
    sent = send_files([tmp_path], host="127.0.0.1", port=free_port(), called_ae_title="PACS")
    assert [each.status for each in sent.files] == [None]
    assert "could not be reached" in sent.files[0].error


def test_an_answer_is_left_to_whoever_waits_for_it(tmp_path: Path) -> None:
    """pynetdicom's reactor would take it within a millisecond, when its pause comes too late, and drop it."""
    kinds = [("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.1.2.1")]
    with running_storescp(tmp_path / "pacs") as pacs:
        address = Address(host="127.0.0.1", port=pacs.port, called_ae_title="PACS", calling_ae_title="GATEWAY")
        with association_with(address, contexts_for(kinds, convertible=False)) as association:
            association.dimse.msg_queue.put((1, "answer"))
            turns = threading.Event()
            turns.wait(0.1)
            assert association.dimse.get_msg(block=False) == (1, "answer")
